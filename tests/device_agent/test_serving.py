"""What a worker serves by the standard: datatypes, versions, codings, pictures, sound, several samples, sequences."""

import gzip
import io
import json
import zlib

import numpy as np
import pytest

from device_agent.folder import DeploymentFolder
from device_agent.serve.predict import MAX_SAMPLES
from edgekit.samples import Samples, dump_npz
from edgekit.tensors import V2_DTYPES

INFER = "/v2/models/digits/infer"


@pytest.fixture
def hosted(tmp_path, tools, host_worker):
    """A client of a worker with a bundle that a tool builds."""

    def start(build, name):
        return tools.Client(
            host_worker(tools.staged(DeploymentFolder(tmp_path / name), build(tmp_path)), name).port
        )

    return start


@pytest.fixture
def digits(module_worker, tools):
    return tools.Client(module_worker.port)


EDGES = {
    "bool": [True, False, False, True], "int8": [-128, 127, 0, 1], "uint8": [0, 255, 1, 2],
    "int16": [-(2**15), 2**15 - 1, 0, 1], "uint16": [0, 2**16 - 1, 1, 2], "int32": [-(2**31), 2**31 - 1, 0, 1],
    "uint32": [0, 2**32 - 1, 1, 2], "int64": [-(2**63), 2**63 - 1, 0, 1], "uint64": [0, 2**64 - 1, 1, 2],
    "float16": [65504, -0.5, 0, 1], "float32": [3.4e38, -0.1, 0, 1], "float64": [1.7e308, -0.1, 0, 1],
}  # fmt: skip


def tensors(values, *, is_binary):
    """The request's inputs and, in binary, what follows the JSON."""
    described, tail = [], b""
    for name, listed in values.items():
        array = np.array(listed, name).reshape(2, 2)
        entry = {"name": f"in_{name}", "shape": [2, 2], "datatype": V2_DTYPES[name]}
        if is_binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            entry["data"] = (
                array.tolist() if name.startswith(("b", "i", "u")) else [float(v) for v in array.ravel()]
            )
        described.append(entry)
    return described, tail


@pytest.mark.parametrize("is_binary", [False, True])
def test_each_datatype_goes_in_and_comes_out_with_its_values(hosted, tools, is_binary):
    client = hosted(tools.build_types, "types")
    described, tail = tensors(EDGES, is_binary=is_binary)
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": is_binary}}).encode()
    headers = (
        {"Inference_Header_Content_Length": str(len(head))}
        if is_binary
        else {"Content_Type": "application/json"}
    )
    answer = client.post("/v2/models/types/infer", head + tail, **headers)
    assert answer.status == 200, answer.body
    split = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    outputs, rest = json.loads(answer.body[:split])["outputs"], answer.body[split:]
    for output in outputs:
        name = output["name"].removeprefix("out_")
        assert output["datatype"] == V2_DTYPES[name]
        if is_binary:
            size = output["parameters"]["binary_data_size"]
            found, rest = np.frombuffer(rest[:size], name), rest[size:]
        else:
            found = np.array(output["data"], name)
        np.testing.assert_array_equal(found, np.array(EDGES[name], name))


def test_bfloat16_is_taken_where_the_model_takes_floats(digits):
    values = np.linspace(0, 1, 64, dtype=np.float32).view(np.uint32) & 0xFFFF0000
    as_bf16 = (values >> 16).astype(np.uint16).tobytes()
    entry = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "BF16", "parameters": {"binary_data_size": 128}}
    head = json.dumps({"inputs": [entry]}).encode()
    by_bf16 = digits.post(INFER, head + as_bf16, Inference_Header_Content_Length=str(len(head)))
    plain = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": values.view(np.float32).tolist()}
    assert by_bf16.json["outputs"] == digits.post(INFER, {"inputs": [plain]}).json["outputs"]


def good(tools):
    return {"input": tools.digit_images(1)[0].tolist()}


def test_versions_in_the_path(digits):
    for path, status in (
        ("/v2/models/digits/versions/1.0.0", 200),
        ("/v2/models/digits/versions/1.0.0/ready", 200),
        ("/v2/models/digits/versions/2", 404),
        ("/v2/models/digits/versions/2/ready", 404),
    ):
        answer = digits.get(path)
        assert answer.status == status
        assert status == 200 or "it runs 1.0.0" in answer.json["error"]
    x = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
    assert digits.post("/v2/models/digits/versions/1.0.0/infer", {"inputs": [x]}).status == 200
    assert digits.post("/v2/models/digits/versions/0.9/infer", {"inputs": [x]}).status == 404


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: (made := zlib.compressobj(wbits=-15)).compress(data) + made.flush()),
        ("identity", bytes),
    ],
)
def test_packed_requests_are_unpacked(digits, tools, coding, pack):
    plain = digits.post("/predict", good(tools))
    body = pack(json.dumps(good(tools)).encode())
    packed = digits.post("/predict", body, Content_Type="application/json", Content_Encoding=coding)
    assert (packed.status, packed.json) == (200, plain.json)


def test_another_coding_is_415_and_a_bomb_413(digits, tools):
    body = json.dumps(good(tools)).encode()
    assert digits.post("/predict", body, Content_Encoding="br").status == 415
    bomb = gzip.compress(b" " * (40 << 20))
    assert digits.post("/predict", bomb, Content_Encoding="gzip").status == 413


def test_a_long_answer_is_packed_for_who_takes_it(hosted, tools):
    client = hosted(tools.build_types, "types")
    described, _ = tensors(EDGES, is_binary=False)
    told = {"inputs": described, "id": "a" * 5000}
    plain = client.post("/v2/models/types/infer", told)
    packed = client.post("/v2/models/types/infer", told, Accept_Encoding="deflate, gzip;q=0.5")
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 4
    assert gzip.decompress(packed.body) == plain.body
    for refused in ("gzip;q=0", "identity", "br"):
        assert (
            "content-encoding"
            not in client.post("/v2/models/types/infer", told, Accept_Encoding=refused).headers
        )


@pytest.mark.parametrize(
    ("form", "kind"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp")]
)
def test_pictures_of_the_four_kinds_are_taken(digits, tools, form, kind):
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(tools.digit_images(1)[0].astype(np.uint8)).save(stream, form)
    answer = digits.post("/predict", stream.getvalue(), Content_Type=f"image/{kind}")
    # WebP has no grey pictures, and this model takes no others.
    assert answer.status == (400 if form == "WEBP" else 200), answer.body
    if form == "WEBP":
        assert "not a readable image" not in answer.json["error"]


def test_a_picture_that_says_it_is_another_is_read_for_what_it_is_among_the_four(digits, tools):
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(tools.digit_images(1)[0].astype(np.uint8)).save(stream, "GIF")
    answer = digits.post("/predict", stream.getvalue(), Content_Type="image/png")
    assert answer.status == 400
    assert "JPEG, PNG, WEBP, BMP" in answer.json["error"]


def sound(values, rate=16000, form="WAV"):
    soundfile = pytest.importorskip("soundfile", reason="soundfile comes with the audio extra")
    stream = io.BytesIO()
    soundfile.write(stream, values, rate, format=form, subtype="PCM_16")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_sound_is_taken_and_its_channels_averaged(hosted, tools, form):
    client = hosted(tools.build_waves, "waves")
    stereo = np.stack([np.full(8, 0.5), np.zeros(8)], axis=1)
    answer = client.post("/predict", sound(stereo, form=form), Content_Type=f"audio/{form.lower()}")
    assert answer.status == 200, answer.body
    assert answer.json["outputs"]["y"] == pytest.approx([2.0], rel=1e-3)


def test_another_sample_rate_and_another_format_are_refused_never_converted(hosted, tools):
    client = hosted(tools.build_waves, "waves")
    answer = client.post("/predict", sound(np.zeros(8), rate=44100), Content_Type="audio/wav")
    assert answer.status == 400
    assert "44100 samples a second; the model takes 16000" in answer.json["error"]
    answer = client.post("/predict", sound(np.zeros(8), form="AIFF"), Content_Type="audio/wav")
    assert (answer.status, "read are WAV, FLAC" in answer.json["error"]) == (400, True)
    assert client.post("/predict", b"RIFFxxxx", Content_Type="audio/wav").status == 400


def npz(images):
    return dump_npz(Samples({"x": images}))


def test_several_samples_in_one_request_give_an_answer_each(digits, tools):
    images = tools.digit_images(3)
    answer = digits.post("/predict", npz(images), Content_Type="application/x-npz").json
    alone = [digits.post("/predict", {"input": image.tolist()}).json for image in images]
    assert [sample["outputs"] for sample in answer["samples"]] == [one["outputs"] for one in alone]
    too_many = digits.post(
        "/predict", npz(tools.digit_images(MAX_SAMPLES + 1)), Content_Type="application/x-npz"
    )
    assert (too_many.status, f"at most {MAX_SAMPLES}" in too_many.json["error"]) == (400, True)


@pytest.fixture
def counter(hosted, tools):
    return hosted(lambda folder: tools.build(folder, name="counter", stateful=True), "counter")


def test_a_sequence_says_when_it_began_anew_without_being_asked(counter):
    def add(value, **parameters):
        return counter.post("/predict", {"input": [[value]], **parameters}).json

    assert "parameters" not in add(1, sequence_id="a", sequence_start=True)
    assert "parameters" not in add(1, sequence_id="a", sequence_end=True)
    assert add(1, sequence_id="a")["parameters"] == {"sequence_reset": True}
    assert "parameters" not in add(1, sequence_id="a")
    assert "parameters" not in add(1)
    x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}
    asked = {"inputs": [x], "parameters": {"sequence_id": "b"}}
    assert counter.post("/v2/models/counter/infer", asked).json["parameters"] == {"sequence_reset": True}
    assert "parameters" not in counter.post("/v2/models/counter/infer", asked).json


def test_samples_of_one_request_are_steps_of_its_sequence(counter):
    steps = dump_npz(Samples({"x": np.ones((3, 1, 1), np.float32)}))
    answer = counter.post(
        "/predict?sequence_id=s&sequence_start=true", steps, Content_Type="application/x-npz"
    ).json
    assert [sample["outputs"]["y"] for sample in answer["samples"]] == [[[1.0]], [[2.0]], [[3.0]]]


def test_a_body_is_asked_for_only_once_it_is_admitted(digits):
    digits.connection.putrequest("POST", "/predict")
    for name, text in (("Content-Length", "99999999"), ("Expect", "100-continue")):
        digits.connection.putheader(name, text)
    digits.connection.endheaders()
    assert (
        digits.connection.getresponse().status == 413
    )  # no 100 before it, which the client would have skipped
