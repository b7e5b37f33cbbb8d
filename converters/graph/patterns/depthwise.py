"""Depthwise convolutions with more taps than XNNPACK has a quick kernel for, as a sum of smaller ones.

XNNPACK (ai-edge-litert 2.3.0) runs depthwise kernels of up to 25 taps in one pass. Above, it takes many times as long as
the work asks: 7 x 7 over 80 x 80 x 96 takes 21 ms on one AVX-512 thread, and 1.3 ms as 3 x 7, 3 x 7 and 1 x 7. An
Ethos-U takes kernels of that size whole.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from converters.graph.patterns.graph import Graph, attribute

# Taps of XNNPACK's largest kernel that works in one pass.
TAPS = 25


def wide_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """A depthwise Conv with a wide kernel: the padded image is cut for each part of the kernel, the parts are added."""
    shape = graph.shapes.get(node.input[0]) if node.op_type == "Conv" else None
    weight = graph.constants.get(node.input[1]) if shape is not None else None
    if shape is None or weight is None or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    kernel, axes = weight.shape[2:], len(shape) - 2
    is_depthwise = attribute(node, "group", 1) == shape[1] == weight.shape[0] and weight.shape[1] == 1
    if not is_depthwise or int(np.prod(kernel)) <= TAPS:
        return False
    pads = attribute(node, "pads", [0] * 2 * axes)
    strides, dilations = (attribute(node, name, [1] * axes) for name in ("strides", "dilations"))
    nodes: list[onnx.NodeProto] = []
    padded, sizes = node.input[0], list(shape[2:])
    if any(pads):
        padded = graph.fresh()
        sizes = [size + pads[axis] + pads[axis + axes] for axis, size in enumerate(sizes)]
        amounts = graph.constant(np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64))
        nodes.append(helper.make_node("Pad", [node.input[0], amounts], [padded]))
    outputs = [
        (size - (taps - 1) * dilation - 1) // stride + 1
        for size, taps, dilation, stride in zip(sizes, kernel, dilations, strides, strict=True)
    ]
    total, bias = "", list(node.input[2:])
    for part in _parts(kernel):
        starts = [one.start * dilation for one, dilation in zip(part, dilations, strict=True)]
        reaches = [
            (count - 1) * stride + (one.stop - one.start - 1) * dilation + 1
            for count, stride, one, dilation in zip(outputs, strides, part, dilations, strict=True)
        ]
        ends = [start + reach for start, reach in zip(starts, reaches, strict=True)]
        cut, product, tail = graph.fresh(), graph.fresh(), graph.fresh()
        names = [graph.constant(np.array(entry, np.int64)) for entry in (starts, ends, range(2, axes + 2))]
        weights = graph.constant(np.ascontiguousarray(weight[(slice(None), slice(None), *part)]))
        nodes.append(helper.make_node("Slice", [padded, *names], [cut]))
        nodes.append(
            helper.make_node(
                "Conv",
                [cut, weights, *bias],
                [product],
                group=shape[1],
                kernel_shape=[one.stop - one.start for one in part],
                strides=strides,
                dilations=dilations,
            )
        )
        if total:
            nodes.append(helper.make_node("Add", [total, product], [tail]))
        # The bias counts once.
        total, bias = tail if total else product, []
    nodes[-1].output[0] = node.output[0]
    graph.replace(node.output[0], nodes)
    return True


def _parts(kernel: Sequence[int]) -> list[tuple[slice, ...]]:
    """A kernel in pieces of at most `TAPS` taps, as long as can be along the last axis."""
    left, lengths = TAPS, []
    for size in reversed(kernel):
        lengths.append(min(size, max(left, 1)))
        left //= lengths[-1]
    cuts = [
        [slice(start, min(start + length, size)) for start in range(0, size, length)]
        for size, length in zip(kernel, reversed(lengths), strict=True)
    ]
    return list(itertools.product(*cuts))
