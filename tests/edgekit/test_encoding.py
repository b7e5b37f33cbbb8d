"""Arrays in fewer bytes: read as they say themselves, refused where they do not."""

import io

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.samples import load_arrays


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name.replace("__", "@"): array for name, array in arrays.items()})
    return stream.getvalue()


def test_bytes_are_scaled_in_the_type_of_their_scale() -> None:
    scale = np.array([0.5, -3], np.float32)
    found = load_arrays(npz(x=np.array([[0, 6], [8, 255]], np.uint8), x__scale=scale))
    assert list(found) == ["x"]
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [[-3, 0], [1, 124.5]]


def test_small_integers_are_widened() -> None:
    found = load_arrays(npz(ids=np.array([[7, 65535]], np.uint16), ids__scale=np.array([1, 0], np.int64)))
    assert found["ids"].dtype == np.int64
    assert found["ids"].tolist() == [[7, 65535]]


def test_entries_stand_for_their_neighbours_up_to_each_samples_own_shape() -> None:
    told = np.array([[1, 2], [1, 3], [1, 3]], np.int64)
    found = load_arrays(npz(x=np.array([[[1, 2]], [[3, 4]]], np.uint8), x__repeat=told))
    assert found["x"].tolist() == [[[1, 1, 2]], [[3, 3, 4]]]
    shapes, told = np.array([[1], [2]], np.int64), np.array([[2], [2], [3]], np.int64)
    ragged = load_arrays(npz(x=np.array([5, 6, 7], np.uint8), x__shapes=shapes, x__repeat=told))["x"]
    assert [part.tolist() for part in ragged] == [[5, 5], [6, 6, 7]]


X = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("array", "scale"),
    [
        (X, np.ones(3, np.float32)),
        (X, np.array([np.nan, 0], np.float32)),
        (X, np.array([np.inf, 0], np.float32)),
        (X, np.array([2, 0], np.int64)),
        (X, np.array([1, 1], np.int64)),
        (X, np.array(["1", "0"])),
        (X.astype(np.int8), np.array([1, 0], np.uint64)),
        (X.astype(np.float32), np.array([1, 0], np.float64)),
        (X.astype(np.float32), np.array([1, 0], np.int64)),
        (np.array([["a"]]), np.array([1, 0], np.float64)),
    ],
)
def test_a_scale_that_is_none_is_refused(array: np.ndarray, scale: np.ndarray) -> None:
    with pytest.raises(DataError, match="'x'"):
        load_arrays(npz(x=array, x__scale=scale))


@pytest.mark.parametrize(
    "told",
    [
        np.array([[2], [3], [3]], np.int64),
        np.array([[0], [3], [3]], np.int64),
        np.array([[1], [3]], np.int64),
        np.array([[1], [3], [3]], np.int32),
        np.array([[1], [3], [-3]], np.int64),
        np.array([[1, 1], [3, 1], [3, 1]], np.int64),
        np.array([1, 3, 3], np.int64),
        np.array([[1 << 40], [3 << 40], [3 << 40]], np.int64),
    ],
)
def test_repetition_that_does_not_fit_or_unfolds_to_too_much_is_refused(told: np.ndarray) -> None:
    with pytest.raises(DataError, match="'x'"):
        load_arrays(npz(x=X, x__repeat=told))
