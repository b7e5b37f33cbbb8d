"""What one inference of a model takes, counted from its ONNX graph."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates, elements of weights and of activations that pass through memory, operators."""

    macs: int
    weights: int
    activations: int
    operators: int


def work(model: onnx.ModelProto) -> Work:
    """Of one inference; operators whose shapes cannot be inferred count no MACs."""
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weights = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        # A tensor may be listed without a shape, as what comes behind an operator that onnx does not know.
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    macs = activations = 0
    for node in graph.node:
        macs += _counted(node, shapes)
        activations += sum(math.prod(shapes[name]) for name in node.output if name in shapes)
    return Work(macs, weights, activations, len(graph.node))


def _counted(node: onnx.NodeProto, shapes: Shapes) -> int:
    count = _MACS.get(node.op_type)
    try:
        return count(node, shapes) if count is not None else 0
    except (KeyError, IndexError):  # a shape that it needs is not known, or is none that it takes
        return 0


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


def _with_scales(weights: int) -> Callable[[onnx.NodeProto, Shapes], int]:
    """Of an operator over integers whose filter or matrix is input `weights`, behind the scale and zero point of the first."""

    def count(node: onnx.NodeProto, shapes: Shapes) -> int:
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weights]][1:])

    return count


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    steps_and_batch = int(np.prod(shapes[node.input[0]][:2]))
    return steps_and_batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


_MACS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "ConvInteger": _conv,
    "MatMulInteger": _matmul,
    "QLinearConv": _with_scales(3),
    "QLinearMatMul": _matmul,
    "LSTM": _recurrent,
    # Its weights lie the other way round, which makes no other number of them.
    "DynamicQuantizeLSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
