"""One real worker process with a real bundle, spoken to over real connections."""

import io
import json
import socket

import numpy as np
import pytest

from device_agent.folder import DeploymentFolder
from device_agent.update.selftest import judge


@pytest.fixture
def worker(tmp_path, tools, make_bundle, host_worker):
    folder = DeploymentFolder(tmp_path / "d")
    return host_worker(tools.staged(folder, make_bundle()))


@pytest.fixture
def client(worker, tools):
    return tools.Client(worker.port)


def test_it_says_what_it_loaded(worker, make_bundle):
    assert worker.first["type"] == "ready"
    assert worker.first["digest"] == make_bundle().sha256


def test_predict_takes_json_npy_and_images_and_gives_the_same_answer(client, tools):
    image = tools.digit_images(1)[0]
    by_json = client.post("/predict", {"input": image.tolist()})
    assert by_json.status == 200, by_json.body
    assert by_json.json["label"] == by_json.json["outputs"]["logits"][0]["label"]
    stream = io.BytesIO()
    np.save(stream, image)
    by_npy = client.post("/predict/digits", stream.getvalue(), Content_Type="application/x-npy")
    assert by_npy.json["outputs"] == by_json.json["outputs"]
    pillow = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    pillow.fromarray(image.astype(np.uint8)).save(stream, "PNG")
    by_image = client.post("/predict", stream.getvalue(), Content_Type="image/png")
    assert by_image.json["outputs"] == by_json.json["outputs"]


def test_infer_answers_in_json_and_in_binary_alike(client):
    x = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    plain = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": x.ravel().tolist()}
    answer = client.post("/v2/models/digits/infer", {"id": "7", "inputs": [plain]}).json
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "digits", "1.0.0")
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, 1, 8, 8],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 256},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    raw = client.post(
        "/v2/models/digits/infer",
        head + x.tobytes(),
        Content_Type="application/octet-stream",
        Inference_Header_Content_Length=str(len(head)),
    )
    split = int(raw.headers["inference-header-content-length"])
    described = json.loads(raw.body[:split])["outputs"][0]
    assert described["parameters"]["binary_data_size"] == 40
    np.testing.assert_allclose(
        np.frombuffer(raw.body[split:], "<f4"), np.array(answer["outputs"][0]["data"], np.float32), rtol=1e-6
    )


def test_metadata_and_readiness(client, worker):
    described = client.get("/v2/models/digits").json
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 1, 8, 8]}]
    assert described["parameters"]["digest"] == worker.first["digest"]
    assert client.get("/v2/models/digits/ready").status == 200


BAD = {
    "not JSON": ("/predict", b"{", {}),
    "no input": ("/predict", {"x": 1}, {}),
    "ragged": ("/predict", {"input": [[1, 2], [3]]}, {}),
    "text for numbers": ("/predict", {"input": "abc"}, {}),
    "wrong shape": ("/predict", {"input": [1, 2, 3]}, {}),
    "deeply nested": ("/predict", b'{"input":' + b"[" * 5000 + b"]" * 5000 + b"}", {"Content_Type": "application/json"}),
    "unknown input": ("/predict", {"inputs": {"y": [1]}}, {}),
    "not npy": ("/predict", b"\x00" * 100, {"Content_Type": "application/x-npy"}),
    "pickled npy": ("/predict", None, {"Content_Type": "application/x-npy"}),
    "not an image": ("/predict", b"GIF89a...", {"Content_Type": "image/gif"}),
    "unknown type": ("/predict", b"x", {"Content_Type": "text/csv"}),
    "infer: no inputs": ("/v2/models/digits/infer", {}, {}),
    "infer: bad type": ("/v2/models/digits/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "FP99", "data": [1]}]}, {}),
    "infer: too few": ("/v2/models/digits/infer", {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [1]}]}, {}),
    "infer: negative": ("/v2/models/digits/infer", {"inputs": [{"name": "x", "shape": [-1], "datatype": "FP32", "data": [1]}]}, {}),
    "infer: size lies": ("/v2/models/digits/infer", b'{"inputs":[]}', {"Inference_Header_Content_Length": "99999"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_the_callers_mistake(case, client, worker):
    path, value, headers = BAD[case]
    if value is None:
        stream = io.BytesIO()
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        value = stream.getvalue()
    answer = client.post(path, value, **headers)
    assert answer.status == (415 if headers.get("Content_Type") in ("image/gif", "text/csv") else 400)
    assert len(answer.json["error"]) > 10
    window = worker.count()
    assert (window["rejected_inputs"], window["errors"], window["requests"]) == (1, 0, 0)
    assert client.get("/v2/models/digits/ready").status == 200


def test_an_engine_failure_is_an_error_and_is_counted(client, worker, tools):
    good = {"input": tools.digit_images(1)[0].tolist()}
    assert client.post("/predict", {"input": [[1000.0] * 8] * 8}).status == 500
    assert client.post("/predict", good).status == 200
    window = worker.count()
    assert (window["requests"], window["errors"], window["rejected_inputs"]) == (2, 1, 0)
    assert sum(window["outputs"]["logits"]["counts"]) == 10
    assert sum(worker.count()["outputs"]["logits"]["counts"]) == 0


def test_a_body_beyond_the_bound_is_refused_before_it_is_read(client):
    client.connection.putrequest("POST", "/predict")
    client.connection.putheader("Content-Length", str(1 << 40))
    client.connection.endheaders()
    response = client.connection.getresponse()
    assert response.status == 413


def test_a_stateful_model_keeps_each_sequence_apart(tmp_path, tools, make_bundle, host_worker):
    slot = tools.staged(DeploymentFolder(tmp_path / "d"), make_bundle(name="counter", stateful=True))
    client = tools.Client(host_worker(slot, "counter").port)

    def add(value, **parameters):
        answer = client.post("/predict", {"input": [[value]], **parameters})
        assert answer.status == 200, answer.body
        assert set(answer.json["outputs"]) == {"y"}
        return answer.json["outputs"]["y"][0][0]

    assert [add(1, sequence_id="a"), add(2, sequence_id="a"), add(5, sequence_id=9)] == [1, 3, 5]
    assert add(1) == 1
    assert add(1, sequence_id="a", sequence_end=True) == 4
    assert add(1, sequence_id="a") == 1
    assert add(7, sequence_id="a", sequence_start=True) == 7


def test_a_drained_worker_gives_its_connections_back_unharmed(worker, client, tools):
    assert client.get("/v2/models/digits/ready").status == 200
    worker.ours.send(b'J{"type":"drain"}')
    packet, descriptors, *_ = socket.recv_fds(worker.ours, 1 << 16, 1)
    assert packet == b"C"
    with socket.socket(fileno=descriptors[0]) as back:
        client.connection.sock.sendall(b"hello")
        assert back.recv(5) == b"hello"
    assert worker.receive()["type"] == "counted"
    assert worker.process.wait(10) == 0


def test_an_altered_slot_is_never_loaded(tmp_path, tools, make_bundle, host_worker):
    slot = tools.staged(DeploymentFolder(tmp_path / "d"), make_bundle())
    model = slot / "model" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    host = host_worker(slot)
    assert host.first["type"] == "failed"
    assert "was altered after it was staged" in host.first["reason"]
    assert host.process.wait(10) == 3


def test_a_missing_engine_version_is_told(tmp_path, tools, make_bundle, host_worker):
    built = make_bundle()
    slot = tools.staged(DeploymentFolder(tmp_path / "d"), built)
    manifest = slot / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b">=1.0", b">=9.9"))
    mark = json.loads((slot / "slot.json").read_text())
    import hashlib

    mark["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (slot / "slot.json").write_text(json.dumps(mark))
    assert "needs onnxruntime >=9.9" in host_worker(slot).first["reason"]


@pytest.fixture
def lines(tmp_path, tools, host_worker):
    """A worker with a bundle whose input has buckets of 4 and 8."""
    folder = DeploymentFolder(tmp_path / "d")
    return tools.Client(host_worker(tools.staged(folder, tools.build_lines(tmp_path)), "lines").port)


def test_an_input_with_buckets_is_padded_to_the_next_and_runs_there(lines):
    for count, size in ((3, 4), (4, 4), (5, 8)):
        answer = lines.post("/predict", {"input": [[1.0] * count]})
        assert answer.status == 200, answer.body
        assert answer.json["outputs"]["y"] == [[2.0] * count + [0.0] * (size - count)]
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    answer = lines.post("/v2/models/lines/infer", {"inputs": [tensor]}).json
    assert answer["outputs"][0]["shape"] == [1, 4]
    described = lines.get("/v2/models/lines").json
    assert described["inputs"][0]["shape"] == [1, -1]
    assert described["parameters"]["buckets"] == [4, 8]


def test_an_input_that_no_bucket_holds_is_the_callers_mistake(lines):
    answer = lines.post("/predict", {"input": [[1.0] * 9]})
    assert answer.status == 400
    assert "input 'x' has 9 along axis 1; this model takes 1 to 8" in answer.json["error"]


def test_the_agents_own_self_test_runs_every_bucket(tmp_path, tools):
    slot = tools.staged(DeploymentFolder(tmp_path / "d"), tools.build_lines(tmp_path))
    assert judge(slot, None, tmp_path / "cache").passed
    # The file of the smaller bucket alone, which a device would meet with short lines only.
    (slot / "model/4.onnx").write_bytes((slot / "model/8.onnx").read_bytes())
    assert not judge(slot, None, tmp_path / "cache").passed
