"""An estimate for hardware that is not here: work and traffic of the graph against the profile's figures.

The low end is the roofline itself, max(MACs / speed, bytes / bandwidth), which nothing beats; the high end assumes
that an engine reaches a tenth of it and spends some time on each operator. It is a range for planning, never a
measurement.

Source: Williams, Waterman, Patterson (2009), "Roofline", CACM 52(4).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from edgekit.profile import Profile

LEAST_EFFICIENCY = 0.1
OPERATOR_US = 5.0
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates, elements of weights and of activations that pass through memory, operators."""

    macs: int
    weights: int
    activations: int
    operators: int


@dataclass(frozen=True)
class Estimate:
    """`by` is what made the estimate."""

    low_ms: float
    high_ms: float
    by: str = "roofline of the profile"


def work(model: onnx.ModelProto) -> Work:
    """Of one inference; operators whose shapes cannot be inferred count no MACs."""
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weights = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    macs = activations = 0
    for node in graph.node:
        count = _MACS.get(node.op_type)
        known = all(name in shapes for name in (*filter(None, node.input), *node.output))
        if count is not None and known:
            macs += count(node, shapes)
        activations += sum(math.prod(shapes[name]) for name in node.output if name in shapes)
    return Work(macs, weights, activations, len(graph.node))


def estimate(done: Work, profile: Profile, precision: str) -> Estimate:
    """Milliseconds of one inference."""
    is_int8 = precision == "int8"
    speed = profile.gmacs_int8 if is_int8 else profile.gmacs_fp32
    width = {"int8": 1, "bf16": 2, "fp16": 2}.get(precision, 4)
    compute_ms = done.macs / (speed * 1e9) * 1e3
    traffic_ms = (done.weights + 2 * done.activations) * width / (profile.mem_gbps * 1e9) * 1e3
    low = max(compute_ms, traffic_ms)
    return Estimate(low, low / LEAST_EFFICIENCY + done.operators * OPERATOR_US / 1e3)


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    # Every output element sums over one filter: input channels of its group times the kernel.
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    left = shapes[node.input[0]]
    return math.prod(shapes[node.output[0]]) * left[-1] if left else 0


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    steps_and_batch = int(np.prod(shapes[node.input[0]][:2]))
    return steps_and_batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


_MACS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
