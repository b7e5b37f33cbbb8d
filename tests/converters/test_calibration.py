"""Streamed calibration: ranges, and memory that does not grow with the number of samples."""

import subprocess
import sys
import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from converters.quantize.calibration import Spread, spreads
from edgekit.errors import DataError, ToolFailedError

CHUNKS = st.lists(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1000, 1000, width=32)),
    min_size=1,
    max_size=6,
)


@given(CHUNKS)
@example([np.array([-8e-20], np.float32), np.array([1], np.float32)])
def test_a_spread_fed_in_pieces_is_the_spread_of_the_whole(chunks):
    whole, pieces = Spread(), Spread()
    for chunk in chunks:
        pieces.add(chunk)
    whole.add(np.concatenate(chunks))
    assert pieces.extremes() == whole.extremes()
    assert np.array_equal(pieces.counts, whole.counts)
    assert pieces.zeros + whole.counts.sum() >= sum(chunk.size for chunk in chunks)
    assert pieces.percentile() == whole.percentile()


@given(CHUNKS)
def test_a_range_holds_zero_and_a_percentile_lies_inside_the_extremes(chunks):
    spread = Spread()
    for chunk in chunks:
        spread.add(chunk)
    low, high = spread.extremes()
    inner_low, inner_high = spread.percentile()
    assert low <= inner_low <= 0 <= inner_high <= high


def test_zeros_that_come_before_anything_else_count_too():
    pieces, whole = Spread(), Spread()
    values = np.array([*[0.0] * 1000, 1.0], np.float32)
    pieces.add(values[:1000])
    pieces.add(values[1000:])
    whole.add(values)
    assert pieces.percentile(0.99) == whole.percentile(0.99)


def test_a_percentile_cuts_what_a_lone_outlier_stretches():
    spread = Spread()
    spread.add(np.random.default_rng(0).standard_normal(100_000).astype(np.float32))
    spread.add(np.array([500.0], np.float32))
    assert spread.extremes()[1] == 500
    assert 3 < spread.percentile()[1] < 6


def model(width=256):
    weights = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / 16
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
        "model",
        [helper.make_tensor_value_info("x", 1, [64, width])],
        [helper.make_tensor_value_info("y", 1, [64, width])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def feeds(count, width=256):
    random = np.random.default_rng(1)
    return ({"x": random.standard_normal((64, width)).astype(np.float32)} for _ in range(count))


def test_every_tensor_gets_a_range_and_the_model_is_left_as_it_was():
    made = model()
    found = spreads(made, feeds(3))
    assert set(found) == {"x", "h", "r", "y"}
    assert found["r"].extremes()[0] == 0
    assert [value.name for value in made.graph.output] == ["y"]


def test_memory_of_calibration_is_flat():
    spreads(model(), feeds(2))
    peaks = []
    for count in (10, 120):
        tracemalloc.start()
        spreads(model(), feeds(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Twelve times the samples, 8 MB of inputs more: not a tenth of that may stay.
    assert peaks[1] - peaks[0] < 0.8e6


PEAK = """
import importlib.util, resource, sys
from pathlib import Path
import numpy as np, onnx
from converters.quantize.calibration import spreads
found = Path(importlib.util.find_spec("silero_vad").origin).parent / "data" / "silero_vad_op18_ifless.onnx"
random = np.random.default_rng(0)
fixed = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
feeds = ({"input": random.standard_normal((1, 576)).astype(np.float32), **fixed} for _ in range(int(sys.argv[1])))
assert spreads(onnx.load(str(found)), feeds)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_process_needs_no_more_memory_for_two_thousand_samples_than_for_sixteen():
    pytest.importorskip("silero_vad")
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, count], capture_output=True, text=True, check=True
            ).stdout
        )
        for count in ("16", "2000")
    ]
    # In kB. Keeping only the largest activation of each sample would take more than that.
    assert peaks[1] - peaks[0] < 30_000


def test_no_sample_and_a_sample_that_is_not_finite_are_named():
    with pytest.raises(DataError, match="no sample"):
        spreads(model(), iter(()))
    bad = {"x": np.full((64, 256), np.inf, np.float32)}
    with pytest.raises(ToolFailedError, match="sample 3"):
        spreads(model(), [*feeds(2), bad])
