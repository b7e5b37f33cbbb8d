"""The agent as Triton's own HTTP client sees it, sync and async, unmodified."""

import asyncio

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http", reason="tritonclient comes with the dev extra")
aio = pytest.importorskip("tritonclient.http.aio")

IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)


def asked(module, *, is_binary):
    tensor = module.InferInput("x", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(IMAGE, binary_data=is_binary)
    return [tensor]


@pytest.fixture
def client(module_front):
    with http.InferenceServerClient(f"127.0.0.1:{module_front.port}", concurrency=4) as made:
        yield made


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1.0.0")
    assert not client.is_model_ready("digits", "9")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    for version in ("", "1.0.0"):
        described = client.get_model_metadata("digits", version)
        assert described["versions"] == ["1.0.0"]
        assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 1, 8, 8]}]


def test_json_and_binary_give_the_same_answer(client):
    answers = []
    for is_binary in (False, True):
        outputs = [http.InferRequestedOutput("logits", binary_data=is_binary)]
        result = client.infer("digits", asked(http, is_binary=is_binary), outputs=outputs, request_id="42")
        assert result.get_response()["id"] == "42"
        assert result.get_response()["model_version"] == "1.0.0"
        answers.append(result.as_numpy("logits"))
    np.testing.assert_allclose(*answers, rtol=1e-6)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_both_ways(client, coding):
    plain = client.infer("digits", asked(http, is_binary=True))
    packed = client.infer(
        "digits", asked(http, is_binary=True), request_compression_algorithm=coding, response_compression_algorithm=coding
    )  # fmt: skip
    np.testing.assert_array_equal(plain.as_numpy("logits"), packed.as_numpy("logits"))


def test_a_version_in_the_path_is_served_and_an_unknown_one_refused_clearly(client):
    assert client.infer("digits", asked(http, is_binary=True), "1.0.0").as_numpy("logits").shape == (1, 10)
    with pytest.raises(http.InferenceServerException, match="no version '2'"):
        client.infer("digits", asked(http, is_binary=True), "2")
    with pytest.raises(http.InferenceServerException, match="no deployment 'letters'"):
        client.infer("letters", asked(http, is_binary=True))


def test_text_tensors_are_refused_clearly(client):
    tensor = http.InferInput("x", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a"], object))
    with pytest.raises(http.InferenceServerException, match="BYTES"):
        client.infer("digits", [tensor])


def test_many_at_once(client):
    waiting = [client.async_infer("digits", asked(http, is_binary=True)) for _ in range(40)]
    assert {request.get_result().as_numpy("logits").shape for request in waiting} == {(1, 10)}


def test_the_async_client(module_front):
    async def story():
        async with aio.InferenceServerClient(f"127.0.0.1:{module_front.port}") as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("digits", "1.0.0")
            assert (await client.get_model_metadata("digits"))["name"] == "digits"
            results = await asyncio.gather(
                *(client.infer("digits", asked(aio, is_binary=index % 2 == 0)) for index in range(20))
            )
            assert {result.as_numpy("logits").shape for result in results} == {(1, 10)}

    asyncio.run(story())
