"""The same bytes become the same tensor, or the same sentence, in `edgekit run` and in the agent's `/predict`."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from device_agent.serve import predict
from device_agent.serve.http import Head
from edgekit import inputs
from edgekit.decode import decode
from edgekit.errors import DataError, InputError
from edgekit.manifest import EngineSpec, Manifest, SelfTest, StatePair, Step, TensorSpec
from edgekit.samples import Samples, dump_npz

TYPES = {
    ".json": "application/json",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}
PHOTO = (Step("scale", {"factor": 1 / 255}), Step("transpose", {"axes": [2, 0, 1]}))
DIGIT = (Step("cast", {"dtype": "float32"}), Step("reshape", {"shape": [1, 1, 8, 8]}))


def manifest(*specs, steps=(), state=()):
    first = specs[0]
    return Manifest(
        format=1,
        name="m",
        version="1",
        profile="x86-64-v3",
        engine=EngineSpec("onnxruntime", ">=1", "model/model.onnx"),
        inputs=specs,
        outputs=(TensorSpec("y", "float32", (1, 2)),),
        recipe="onnxruntime/fp32",
        source_sha256="0" * 64,
        files=(),
        selftest=SelfTest(
            "selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz", 1, {"y": 0.1}, 1.0
        ),
        state=state,
        preprocess={first.name: steps} if steps else {},
    )


MANIFESTS = {
    "photo": manifest(TensorSpec("x", "float32", (1, 3, 8, 8)), steps=PHOTO),
    "digit": manifest(TensorSpec("x", "float32", (1, 1, 8, 8)), steps=DIGIT),
    "floats": manifest(TensorSpec("x", "float32", (1, 4))),
    "bytes": manifest(TensorSpec("x", "uint8", (1, 4))),
    "ids": manifest(TensorSpec("x", "int64", (1, None))),
    "two": manifest(TensorSpec("a", "float32", (1, 2)), TensorSpec("b", "int32", (1, 2))),
    "state": manifest(
        TensorSpec("x", "float32", (1, 4)), TensorSpec("h", "float32", (1, 2)), state=(StatePair("h", "y"),)
    ),
}


def by_file(data: bytes, suffix: str, model: Manifest, folder: Path):
    """As `edgekit run` reads it: arrays of the first sample, or the sentence without the file's name."""
    path = folder / f"in{suffix}"
    path.write_bytes(data)
    try:
        return inputs.read_input(path, model).sample(0)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")


def by_agent(data: bytes, suffix: str, model: Manifest):
    """As `/predict` reads it."""
    head = Head("POST", "/predict", {}, {"content-type": TYPES[suffix]}, len(data), keep_alive=True)
    try:
        return predict.read_body(head, bytearray(data), model)[0]
    except InputError as error:
        return str(error)


def same(one, other) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=array.dtype == object)
    return stream.getvalue()


def picture(mode: str, form: str, side: int = 8) -> bytes:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 3)).astype(np.uint8)
    stream = io.BytesIO()
    image.fromarray(pixels).convert(mode).save(stream, form)
    return stream.getvalue()


_NUMBERS = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=2), st.none()
)
_VALUES = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["x", "a", "b", "input", "inputs", "sequence_id", "?"]), inner, max_size=3),
    ),
    max_leaves=12,
)  # fmt: skip


@st.composite
def _spoilt(draw):
    """A good body with a few of its bytes changed."""
    good = draw(
        st.sampled_from(
            [npy(np.zeros((1, 4), np.float32)), dump_npz(Samples({"x": np.zeros((1, 1, 4), np.float32)}))]
        )
    )
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


_SPOILED = _spoilt()
SHARED = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SHARED
@given(value=_VALUES, model=st.sampled_from(sorted(MANIFESTS)))
def test_any_json_is_read_alike(value, model, tmp_path):
    data = json.dumps(value).encode()
    assert same(by_file(data, ".json", MANIFESTS[model], tmp_path), by_agent(data, ".json", MANIFESTS[model]))


@SHARED
@given(
    array=arrays.arrays(
        st.sampled_from([np.dtype(name) for name in ("?", "u1", "<i8", ">i4", "<f4", ">f8", "<f2", "<U2", "<c8")]),
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=4),
    ),
    model=st.sampled_from(sorted(MANIFESTS)),
    cut=st.integers(0, 400),
)  # fmt: skip
def test_any_npy_is_read_alike_whole_or_cut(array, model, cut, tmp_path):
    for data in (npy(array), npy(array)[:cut]):
        assert same(
            by_file(data, ".npy", MANIFESTS[model], tmp_path), by_agent(data, ".npy", MANIFESTS[model])
        )


@SHARED
@given(
    data=st.binary(max_size=200),
    model=st.sampled_from(sorted(MANIFESTS)),
    suffix=st.sampled_from(sorted(TYPES)),
)
def test_any_bytes_at_all_are_read_alike_and_never_raise_anything_else(data, model, suffix, tmp_path):
    assert same(by_file(data, suffix, MANIFESTS[model], tmp_path), by_agent(data, suffix, MANIFESTS[model]))


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("P", "PNG"),
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
    ],
)
@pytest.mark.parametrize("model", ["photo", "digit", "floats", "two"])
def test_pictures_are_read_alike(mode, form, model, tmp_path):
    suffix = ".png" if form == "PNG" else ".jpg"
    data = picture(mode, form)
    one, other = by_file(data, suffix, MANIFESTS[model], tmp_path), by_agent(data, suffix, MANIFESTS[model])
    assert same(one, other)
    if model == "photo":
        assert one["x"].shape == (8, 8, 3)
    assert same(by_file(data[:-20], suffix, MANIFESTS[model], tmp_path), by_agent(data[:-20], suffix, MANIFESTS[model]))  # fmt: skip


def test_a_grey_picture_is_rgb_unless_the_model_is_grey(tmp_path):
    grey = picture("L", "PNG")
    assert by_agent(grey, ".png", MANIFESTS["photo"])["x"].shape == (8, 8, 3)
    assert by_agent(grey, ".png", MANIFESTS["digit"])["x"].shape == (8, 8)


def test_the_same_values_in_every_kind_of_file_are_the_same_tensor(tmp_path):
    model = MANIFESTS["floats"]
    values = np.array([[0.5, -1.25, 3.0, 0.1]], np.float32)
    told = {
        ".npy": npy(values),
        ".npz": dump_npz(Samples({"x": values[None]})),
        ".json": json.dumps(values.tolist()).encode(),
    }
    for suffix, data in told.items():
        for found in (by_file(data, suffix, model, tmp_path), by_agent(data, suffix, model)):
            np.testing.assert_array_equal(found["x"], values)
            assert found["x"].dtype == np.float32


@pytest.mark.parametrize(
    "text", ["[[1,2,3,4]]", '{"x":[[1,2,3,4]]}', '{"input":[[1,2,3,4]]}', '{"inputs":{"x":[[1,2,3,4]]}}']
)
def test_each_way_to_write_the_json_says_the_same(text, tmp_path):
    for found in (
        by_file(text.encode(), ".json", MANIFESTS["bytes"], tmp_path),
        by_agent(text.encode(), ".json", MANIFESTS["bytes"]),
    ):
        assert found["x"].tolist() == [[1, 2, 3, 4]]
        assert found["x"].dtype == np.uint8


def test_a_models_own_input_called_inputs_is_meant(tmp_path):
    model = manifest(TensorSpec("inputs", "float32", (1, 2)))
    assert by_agent(b'{"inputs": [[1, 2]]}', ".json", model)["inputs"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("model", "text", "says"),
    [
        ("bytes", "[[1, 300, 0, 0]]", "some of the data does not fit uint8"),
        ("bytes", "[[1, -1, 0, 0]]", "some of the data does not fit uint8"),
        ("bytes", "[[1, 0.5, 0, 0]]", "some of the data does not fit uint8"),
        ("ids", "[[9223372036854775808]]", "some of the data does not fit int64"),
        ("ids", "[[9.3e18]]", "some of the data does not fit int64"),
        ("floats", "[[1e39, 0, 0, 0]]", "outside the range of float32"),
        ("floats", '[["1", 0, 0, 0]]', "not made of numbers alone"),
        ("floats", "[[true, false, true, true]]", "not made of float32 values"),
        ("two", "[1, 2]", r"the model takes 2 inputs (a, b)"),
        ("two", "{}", "holds no input"),
        ("floats", '{"x": [1], "y": [2]}', "'y' is no input; the model takes x"),
        ("photo", "[[[1, 2], [3]]]", "no rectangular list"),
    ],
)
def test_a_number_that_would_change_is_refused(model, text, says):
    assert says in by_agent(text.encode(), ".json", MANIFESTS[model])


def test_numbers_keep_their_value_up_to_the_last_integer():
    found = by_agent(b"[[9223372036854775807, 3.0]]", ".json", MANIFESTS["ids"])
    assert "does not fit" in found  # one float makes all of them floats, which cannot tell that integer
    assert by_agent(b"[[9223372036854775807, 3]]", ".json", MANIFESTS["ids"])["x"].tolist() == [
        [2**63 - 1, 3]
    ]
    assert by_agent(b"[[4.0, 3.0]]", ".json", MANIFESTS["ids"])["x"].tolist() == [[4, 3]]


def test_whole_numbers_before_pre_processing_are_bytes_as_image_files_give_them():
    pixels = np.arange(192).reshape(8, 8, 3)
    found = by_agent(json.dumps(pixels.tolist()).encode(), ".json", MANIFESTS["photo"])
    assert found["x"].dtype == np.uint8
    found = by_agent(json.dumps((pixels + 100).tolist()).encode(), ".json", MANIFESTS["photo"])
    assert (found["x"].dtype, found["x"].max()) == (np.int64, 291)


def test_a_packed_archive_and_one_of_several_samples_are_not_for_the_agent(tmp_path):
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros((1, 1, 4), np.float32))
    assert "compressed" in by_agent(stream.getvalue(), ".npz", MANIFESTS["floats"])
    assert by_file(stream.getvalue(), ".npz", MANIFESTS["floats"], tmp_path)["x"].shape == (1, 4)
    many = dump_npz(Samples({"x": np.zeros((3, 1, 4), np.float32)}))
    assert by_agent(many, ".npz", MANIFESTS["floats"]).startswith("3 samples at once")
    assert len(decode("npz", many, MANIFESTS["floats"]).samples) == 3


def test_a_huge_picture_is_refused_before_it_is_unpacked():
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.new("1", (8000, 8000)).save(stream, "PNG")
    assert (
        by_agent(stream.getvalue(), ".png", MANIFESTS["photo"])
        == f"the image has more than {predict.MAX_PIXELS} pixels"
    )
