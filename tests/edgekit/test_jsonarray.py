"""Nested lists of numbers read piece by piece are what `json` and numpy make of the whole."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit import jsonarray
from edgekit.errors import InputError


@pytest.fixture(params=[1, 7, 65536], ids="pieces of {} bytes".format)
def piece(request, monkeypatch):
    monkeypatch.setattr(jsonarray, "_PIECE_BYTES", request.param)


@settings(max_examples=200, deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from([np.dtype(name) for name in ("?", "i8", "u8", "f8")]),
        arrays.array_shapes(min_dims=0, max_dims=4, max_side=4),
        elements=None,
    ),
    indent=st.sampled_from([None, 1]),
    size=st.sampled_from([1, 5, 65536]),
)
def test_any_array_comes_back_with_its_values(array, indent, size):
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)
    jsonarray._PIECE_BYTES, kept = size, jsonarray._PIECE_BYTES
    try:
        text = json.dumps(array.tolist(), indent=indent).encode()
        found = jsonarray.read(text, "x")
        whole = np.asarray(json.loads(text))
    finally:
        jsonarray._PIECE_BYTES = kept
    assert found.shape == whole.shape
    assert found.tolist() == whole.tolist()


@settings(max_examples=500, deadline=None)
@given(text=st.text("[],1 2.5e-truefalsn", max_size=24))
def test_any_text_is_read_as_json_would_or_refused(text):
    try:
        expected = np.asarray(json.loads(text))
    except ValueError:
        expected = None
    try:
        found = jsonarray.read(text.encode(), "x")
    except InputError:
        # Numbers and lists beside each other, and numbers beyond a float, are refused here and odd arrays there.
        assert expected is None or expected.dtype == object or not np.isfinite(expected).all()
        return
    assert expected is not None, text
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("text", ["[[1,2],[3]]", "[1,[2]]", "[[1],2]", "[1][2]", "[1,]", "[,1]", "[1,,2]", "1 2", "[", "]",
                                  "", "[[]", "[],[]", "[1]]", "[[1],[]]", "[ ,]", "nan", "[1[2]]", ",", "[NaN]"])  # fmt: skip
@pytest.mark.usefixtures("piece")
def test_what_is_no_rectangular_list_of_numbers_is_refused(text):
    with pytest.raises(InputError):
        jsonarray.read(text.encode(), "x")


@pytest.mark.parametrize(
    ("text", "shape"), [("[]", (0,)), ("[[],[]]", (2, 0)), ("[[[]]]", (1, 1, 0)), ("5", ())]
)
def test_what_is_empty_keeps_its_shape(text, shape):
    assert jsonarray.read(text.encode(), "x").shape == shape


def test_large_integers_keep_their_value_across_pieces(monkeypatch):
    monkeypatch.setattr(jsonarray, "_PIECE_BYTES", 1)
    found = jsonarray.read(b"[18446744073709551615, 1, 9007199254740993]", "x")
    assert found.tolist() == [2**64 - 1, 1, 2**53 + 1]


def test_text_is_never_made_an_array():
    with pytest.raises(InputError, match="numbers alone"):
        jsonarray.read(json.dumps(["a" * 10**6] + ["b"] * 1000).encode(), "x")
