"""Channels of zeros behind a block's input: a concatenation for OpenVINO, of the same numbers."""

from collections import Counter

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from converters.backends.openvino import pads
from edgekit.engines.openvino import core

SHAPE = [1, 3, 4, 4]


def padded(*, before=(0, 0, 0, 0), behind=(0, 2, 0, 0), mode="constant", fill=0.0, reader="add"):
    """x, padded, and added to ones or convolved."""
    x = ops.parameter(SHAPE, np.float32)
    value = ops.pad(
        x, ops.constant(list(before)), ops.constant(list(behind)), mode, ops.constant(np.float32(fill))
    )
    shape = [size + low + high for size, low, high in zip(SHAPE, before, behind, strict=True)]
    if reader == "add":
        end = ops.add(value, ops.constant(np.ones(shape, np.float32)))
    else:
        kernel = ops.constant(np.ones((2, shape[1], 3, 3), np.float32))
        end = ops.convolution(value, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    return ov.Model([end], [x], "model")


def kinds(model):
    return Counter(node.get_type_name() for node in model.get_ops())


def answer(model):
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    return next(iter(core().compile_model(model, "CPU")(x).values()))


@pytest.mark.parametrize("behind", [(0, 2, 0, 0), (0, 0, 0, 3)])
def test_zeros_behind_one_axis_are_joined_and_nothing_changes(behind):
    model = padded(behind=behind)
    wanted = answer(model)
    pads.joined(model)
    assert (kinds(model)["Pad"], kinds(model)["Concat"]) == (0, 1)
    np.testing.assert_array_equal(answer(model), wanted)


@pytest.mark.parametrize(
    "other",
    [
        {"before": (0, 1, 0, 0)},
        {"behind": (0, 1, 1, 0)},
        {"fill": 1.0},
        {"mode": "edge"},
        {"behind": (0, 0, 1, 0), "reader": "convolution"},
    ],
    ids=str,
)
def test_every_other_pad_stays(other):
    model = padded(**other)
    pads.joined(model)
    assert (kinds(model)["Pad"], kinds(model)["Concat"]) == (1, 0)
