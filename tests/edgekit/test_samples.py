"""Data files: read strictly, written the same way every time."""

import io
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.samples import Samples, dump_npz, load_npz

X = TensorSpec("x", "float32", (1, 2, 3))
STATE = TensorSpec("state", "float32", (1, 4))


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def full(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def test_what_was_dumped_is_loaded_back() -> None:
    samples = Samples({"x": full(4, 1, 2, 3)}, np.array(list("abca")), np.array([1, 1, 2, 2]))
    back = load_npz(dump_npz(samples), [X])
    assert len(back) == 4
    assert np.array_equal(back.inputs["x"], samples.inputs["x"])
    assert back.labels is not None
    assert back.labels.tolist() == list("abca")
    assert back.sequence is not None
    assert back.sequence.dtype == np.int64


def test_the_same_values_give_the_same_bytes_whatever_their_layout_and_order() -> None:
    plain = np.arange(12, dtype=np.float32).reshape(4, 3)
    odd = np.asfortranarray(plain).astype(">f4")
    first = dump_npz(Samples({"a": plain, "b": plain}))
    second = dump_npz(Samples({"b": odd, "a": odd}))
    assert first == second


def test_a_leading_one_may_be_left_out() -> None:
    assert load_npz(npz(x=full(5, 2, 3)), [X]).inputs["x"].shape == (5, 1, 2, 3)
    assert load_npz(npz(x=full(5, 1, 2, 3)), [X]).inputs["x"].shape == (5, 1, 2, 3)


def test_float_widths_are_converted() -> None:
    assert load_npz(npz(x=full(5, 2, 3, dtype="float64")), [X]).inputs["x"].dtype == np.float32


def test_raw_inputs_are_taken_as_they_are_and_states_may_be_absent() -> None:
    samples = load_npz(npz(x=full(5, 40, 30, 3, dtype="uint8")), [X, STATE], raw=["x"], optional=["state"])
    assert samples.sample(3)["x"].shape == (40, 30, 3)


def test_labels_may_be_an_input_when_the_model_says_so() -> None:
    samples = load_npz(npz(labels=full(5, 4)), [TensorSpec("labels", "float32", (1, 4))])
    assert samples.labels is None
    assert samples.inputs["labels"].shape == (5, 1, 4)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npz(x=full(5, 2, 4)), r"array 'x' has shape 5x2x4; expected N samples of x: float32 1x2x3"),
        (npz(x=np.float32(1)), r"array 'x' has shape scalar"),
        (npz(x=full(5, 2, 3, dtype="int32")), r"array 'x' has dtype int32; expected N samples of x: float32"),
        (npz(y=full(5, 2, 3)), r"array 'y' is no input of the model; expected x"),
        (npz(labels=full(5)), r"array 'x' is missing; expected N samples of x: float32 1x2x3"),
        (npz(x=full(5, 2, 3), labels=full(4)), r"differ in their number of samples \(x 5, labels 4\)"),
        (npz(x=full(5, 2, 3), sequence=full(5)), r"'sequence' is float32 of 1 axes"),
        (npz(x=full(0, 2, 3)), r"holds no sample"),
        (npz(x=np.array([{}, {}])), r"not an .npz of plain arrays"),
        (npz(x=full(5, 2, 3))[:-30], r"not an .npz of plain arrays, or damaged"),
        (b"what is this", r"not an .npz of plain arrays"),
        (b"", r"not an .npz of plain arrays"),
    ],
)
def test_refuses(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.npz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=says) as refused:
        load_npz(path, [X])
    assert "calibration.npz" in str(refused.value)


def test_a_bare_array_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", full(3))
    with pytest.raises(DataError, match="one bare array"):
        load_npz(tmp_path / "bare.npy")
    with pytest.raises(DataError, match="no such file"):
        load_npz(tmp_path / "absent.npz")


def test_taking_keeps_inputs_labels_and_sequence_together() -> None:
    samples = Samples({"x": np.arange(5)}, np.arange(5) * 10, np.array([0, 0, 1, 1, 1]))
    taken = samples.take([4, 0])
    assert taken.inputs["x"].tolist() == [4, 0]
    assert taken.labels is not None
    assert taken.labels.tolist() == [40, 0]
    assert [samples.starts(index) for index in range(5)] == [True, False, True, False, False]
    assert all(Samples({"x": np.arange(3)}).starts(index) for index in range(3))


def test_an_input_cannot_have_a_reserved_name_beside_its_namesake() -> None:
    with pytest.raises(DataError, match="rename the input"):
        dump_npz(Samples({"labels": np.arange(3)}, labels=np.arange(3)))


def test_compressed_data_of_a_bundle_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 1000), np.float32))
    with pytest.raises(DataError, match=r"x\.npy is compressed; a bundle's data is stored"):
        load_npz(tmp_path / "bomb.npz", stored_only=True)
    assert len(load_npz(tmp_path / "bomb.npz")) == 1000
    np.savez(tmp_path / "plain.npz", x=np.zeros((2, 3), np.float32))
    assert len(load_npz(tmp_path / "plain.npz", stored_only=True)) == 2
