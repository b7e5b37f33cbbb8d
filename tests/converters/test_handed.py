"""Samples that a build's processes hand to each other."""

import numpy as np

from converters.data.handed import hand
from edgekit.samples import Samples, stacked

SAMPLES = Samples(
    {"x/1": np.arange(12, dtype=np.float32).reshape(4, 3), "n": np.arange(4)},
    labels=np.array([1, 0, 1, 1]),
    sequence=np.array([0, 0, 1, 1]),
    slices=np.array(["day", "day", "night", "day"]),
)


def test_what_is_taken_is_what_was_handed(tmp_path):
    found = hand(SAMPLES, tmp_path).taken()
    assert list(found.inputs) == ["x/1", "n"]
    for name, array in SAMPLES.inputs.items():
        assert found.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(found.inputs[name], array)
    for name in ("labels", "sequence", "slices"):
        np.testing.assert_array_equal(getattr(found, name), getattr(SAMPLES, name))


def test_who_writes_into_them_changes_nobody_elses(tmp_path):
    handed = hand(SAMPLES, tmp_path)
    handed.taken().inputs["n"][:] = 9
    np.testing.assert_array_equal(handed.taken().inputs["n"], np.arange(4))


def test_what_is_not_there_stays_away(tmp_path):
    found = hand(Samples({"x": np.ones((3, 2))}), tmp_path).taken()
    assert (found.labels, found.sequence, found.slices) == (None, None, None)


def test_what_no_plain_file_holds_is_not_handed(tmp_path):
    assert hand(Samples({"x": stacked([np.ones(2), np.ones(3)])}), tmp_path) is None
    assert hand(Samples({"x": np.ones((3, 0))}), tmp_path) is None
