"""Layers that are spelled out: normalizations, softmax, pooling, and constants whose rank differs from the data's.

Each rule looks at one node, the last of its pattern, and replaces it if everything before it fits.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph.patterns.graph import Graph, Rule, attribute, axes, is_close


def layer_norm(graph: Graph, node: onnx.NodeProto) -> bool:
    """(x - mean) / sqrt(mean((x - mean)²) + epsilon), times a scale and plus a shift where they follow."""
    core = _centred_over_spread(graph, node)
    if core is None:
        return False
    x, over, epsilon = core
    shape = graph.shapes.get(x)
    if shape is None or over != list(range(len(shape) - len(over), len(shape))):
        return False
    width = shape[len(shape) - len(over) :]
    output, scale, shift = node.output[0], None, None
    product = graph.reader(output, "Mul")
    if product is not None and _spans(graph, graph.other(product, output), width):
        scale, output = graph.constants[graph.other(product, output)], product.output[0]
        total = graph.reader(output, "Add")
        if total is not None and _spans(graph, graph.other(total, output), width):
            shift, output = graph.constants[graph.other(total, output)], total.output[0]
    whole = np.ones(width, np.float32) if scale is None else scale.reshape(width)
    names = [x, graph.constant(whole)]
    if shift is not None:
        names.append(graph.constant(shift.reshape(width)))
    graph.replace(
        output, [helper.make_node("LayerNormalization", names, [output], axis=-len(over), epsilon=epsilon)]
    )
    return True


def _centred_over_spread(graph: Graph, node: onnx.NodeProto) -> tuple[str, list[int], float] | None:
    """The tensor, the axes (from 0) and the epsilon of a normalization whose division is `node`."""
    if node.op_type not in ("Div", "Mul"):
        return None
    for left, right in (tuple(node.input), tuple(node.input)[::-1])[: 1 if node.op_type == "Div" else 2]:
        if node.op_type == "Div":
            root = graph.maker(right, "Sqrt")
        else:
            inverse = graph.maker(right, "Reciprocal")
            root = graph.maker(inverse.input[0], "Sqrt") if inverse is not None else None
        centred = _centred(graph, left)
        total = graph.maker(root.input[0], "Add") if root is not None else None
        if centred is None or total is None:
            continue
        x, over = centred
        for variance, epsilon in (tuple(total.input), tuple(total.input)[::-1]):
            small = graph.scalar(epsilon)
            mean = graph.maker(variance, "ReduceMean")
            if mean is None or small is None or small < 0 or _over(graph, mean) != over:
                continue
            if _squared_of(graph, mean.input[0]) == centred:
                return x, over, small
    return None


def _centred(graph: Graph, name: str) -> tuple[str, list[int]] | None:
    """For `x - mean(x)`: x and the axes."""
    node = graph.maker(name, "Sub")
    mean = graph.maker(node.input[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or mean.input[0] != node.input[0]:
        return None
    over = _over(graph, mean)
    return None if over is None else (node.input[0], over)


def _squared_of(graph: Graph, name: str) -> tuple[str, list[int]] | None:
    """For `(x - mean(x))²`, as a power or a product: x and the axes."""
    node = graph.maker(name, "Pow", "Mul")
    if node is None:
        return None
    is_square = (
        is_close(graph.scalar(node.input[1]), 2) if node.op_type == "Pow" else len(set(node.input)) == 1
    )
    return _centred(graph, node.input[0]) if is_square else None


def _over(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Axes of a reduction that keeps them, counted from 0."""
    given, shape = axes(graph, node), graph.shapes.get(node.input[0])
    if given is None or shape is None or not attribute(node, "keepdims", 1):
        return None
    return sorted(axis % len(shape) for axis in given)


def _spans(graph: Graph, name: str, width: tuple[int, ...]) -> bool:
    """Whether a constant has one value for each entry of the trailing axes."""
    value = graph.constants.get(name)
    return value is not None and tuple(size for size in value.shape if size != 1) == tuple(
        size for size in width if size != 1
    )


def softmax(graph: Graph, node: onnx.NodeProto) -> bool:
    """exp(x) / sum(exp(x)) along one axis, with or without the largest entry taken off first."""
    power = graph.maker(node.input[0], "Exp") if node.op_type == "Div" else None
    total = graph.maker(node.input[1], "ReduceSum") if power is not None else None
    if power is None or total is None or total.input[0] != power.output[0]:
        return False
    over = _over(graph, total)
    if over is None or len(over) != 1:
        return False
    x = power.input[0]
    lowered = graph.maker(x, "Sub")
    largest = graph.maker(lowered.input[1], "ReduceMax") if lowered is not None else None
    if lowered is not None and largest is not None and largest.input[0] == lowered.input[0]:
        x = lowered.input[0] if _over(graph, largest) == over else x
    graph.replace(node.output[0], [helper.make_node("Softmax", [x], [node.output[0]], axis=over[0])])
    return True


def attention_scale(graph: Graph, node: onnx.NodeProto) -> bool:
    """(q · k) times a number, where q is smaller than the product: the number goes to q."""
    if node.op_type not in ("Mul", "Div"):
        return False
    name = next((entry for entry in node.input if graph.scalar(entry) is None), "")
    number = next((entry for entry in node.input if graph.scalar(entry) is not None), "")
    product = graph.maker(name, "MatMul")
    if (
        product is None
        or not number
        or graph.uses[name] != 1
        or (node.op_type == "Div" and number == node.input[0])
    ):
        return False
    query, key = product.input
    sizes = [int(np.prod(graph.shapes.get(entry, (0,)))) for entry in (query, name)]
    if query in graph.constants or key in graph.constants or not 0 < sizes[0] < sizes[1]:
        return False
    scaled = graph.fresh()
    graph.replace(
        node.output[0],
        [
            helper.make_node(node.op_type, [query, number], [scaled]),
            helper.make_node("MatMul", [scaled, key], [node.output[0]]),
        ],
    )
    return True


def global_pool(graph: Graph, node: onnx.NodeProto) -> bool:
    """An average over all of the spatial axes, as a reduction or as a pool of the image's size."""
    shape = graph.shapes.get(node.input[0]) if node.op_type in ("ReduceMean", "AveragePool") else None
    if shape is None or len(shape) < 3:
        return False
    if node.op_type == "ReduceMean":
        is_global = _over(graph, node) == list(range(2, len(shape)))
    else:
        is_global = attribute(node, "kernel_shape") == list(shape[2:]) and not any(
            attribute(node, "pads", [0])
        )
        is_global = is_global and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if is_global:
        graph.replace(
            node.output[0], [helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]])]
        )
    return is_global


def batch_norm(graph: Graph, node: onnx.NodeProto) -> bool:
    """A BatchNormalization behind a Conv, ConvTranspose or Gemm goes into its weights."""
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
        return False
    layer = graph.maker(node.input[0], "Conv", "ConvTranspose", "Gemm")
    if layer is None or graph.uses[layer.output[0]] != 1:
        return False
    fixed = [graph.constants.get(name) for name in (*layer.input[1:], *node.input[1:])]
    if any(value is None for value in fixed) or not _is_plain_linear(layer):
        return False
    weight = graph.constants[layer.input[1]].astype(np.float64)
    scale, shift, mean, variance = (graph.constants[name].astype(np.float64) for name in node.input[1:])
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    bias = graph.constants[layer.input[2]].astype(np.float64).reshape(-1) if len(layer.input) > 2 else 0.0
    across = 0
    if layer.op_type == "ConvTranspose":
        group = attribute(layer, "group", 1)
        factors = factor.reshape(group, -1).repeat(weight.shape[0] // group, axis=0)
        weight = weight * factors.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))
    else:
        across = 1 if layer.op_type == "Gemm" and not attribute(layer, "transB", 0) else 0
        weight = weight * factor.reshape([-1 if axis == across else 1 for axis in range(weight.ndim)])
    folded = onnx.NodeProto()
    folded.CopyFrom(layer)
    names = [
        graph.constant(weight.astype(np.float32)),
        graph.constant(((bias - mean) * factor + shift).astype(np.float32)),
    ]
    folded.input[:] = [layer.input[0], *names]
    folded.output[:] = [node.output[0]]
    graph.replace(node.output[0], [folded])
    return True


def _is_plain_linear(layer: onnx.NodeProto) -> bool:
    return layer.op_type != "Gemm" or bool(
        attribute(layer, "alpha", 1.0) == attribute(layer, "beta", 1.0) == 1.0
    )


# In the order in which they are tried.
RULES: Mapping[str, Rule] = {
    "layer norm": layer_norm,
    "softmax": softmax,
    "attention scale": attention_scale,
    "global pooling": global_pool,
    "batch norm": batch_norm,
}
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "PRelu"})


def align(graph: Graph) -> None:
    """Give constants of broadcasting operators the rank of the data.

    litert-torch 0.10 keeps an operator in its channels-last layout only if all of its inputs have four axes; a number
    or a (C, 1, 1) constant costs two transposes.
    """
    for node in graph.model.graph.node:
        rank = len(graph.shapes.get(node.output[0], ()))
        if node.op_type not in _BROADCASTING or rank < 4:
            continue
        for index, name in enumerate(node.input):
            value = graph.constants.get(name)
            if value is not None and value.ndim < rank:
                fresh = graph.fresh()
                wide = value.reshape((1,) * (rank - value.ndim) + value.shape)
                graph.model.graph.initializer.append(numpy_helper.from_array(wide, fresh))
                node.input[index] = fresh
    graph.index()
