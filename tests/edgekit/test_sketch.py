"""The latency sketch: bounded error, and merging is the same as having seen everything."""

import math

from hypothesis import given
from hypothesis import strategies as st

from edgekit import sketch
from edgekit.sketch import ACCURACY, Sketch

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=200)


@given(values, st.floats(0, 1))
def test_a_quantile_is_within_the_relative_accuracy(seen: list[float], q: float) -> None:
    exact = sorted(seen)[math.floor(q * (len(seen) - 1))]
    estimate = sketch.of(seen).quantile(q)
    assert estimate is not None
    assert abs(estimate - exact) <= ACCURACY * exact * (1 + 1e-9) + sketch.SMALLEST


@given(st.lists(values, max_size=5))
def test_merging_windows_equals_one_long_window(windows: list[list[float]]) -> None:
    merged = sketch.merge(sketch.of(window) for window in windows)
    whole = sketch.of(value for window in windows for value in window)
    assert (merged.bins, merged.zeros, merged.largest) == (whole.bins, whole.zeros, whole.largest)
    assert math.isclose(merged.total, whole.total, rel_tol=1e-9, abs_tol=1e-9)


def test_without_values_there_is_no_quantile_and_no_mean() -> None:
    assert Sketch().quantile(0.5) is None
    assert Sketch().mean is None
