"""What an ONNX file that is quantized already is, and its float form where that computes the same.

Most int8 files on the web are one of three: Q/DQ pairs around float operators, operators over integers (ONNX's own and
ONNX Runtime's, of the domain com.microsoft), or weights alone in few bits that are widened before they are used.

Always true
 1. A file counts as quantized where a tensor of weights is stored in integers and used through a scale; integers that
    are indices, shapes or a picture's bytes are none.
 2. A float form is made only where weights alone are quantized: a weight is then exactly what its integers say. A file
    that rounds activations too is not the float model that it was made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.source import onnx_nodes
from converters.source.work import Work

CONTRIBUTED = "com.microsoft"
# What is made of it is not shipped where it is larger than this times the file: a device got 85 MB for 35.
MOST_GROWN = 1.25
# What an engine's format takes beside the weights (an OpenVINO IR is text), and which says nothing about them.
FRAME_BYTES = 100_000
# Fewer numbers than this are a scale, a table of steps or a bias.
LEAST_NUMBERS = 64
_INTEGERS = frozenset(
    {
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT4,
        TensorProto.UINT4,
        TensorProto.INT16,
        TensorProto.UINT16,
    }
)
# Operators over integers or that round activations → where their weights stand.
_ROUNDING: Mapping[str, tuple[int, ...]] = {
    "MatMulInteger": (0, 1),
    "ConvInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
    "QGemm": (3,),
    "QAttention": (1,),
    "DynamicQuantizeMatMul": (1,),
    "DynamicQuantizeLSTM": (1, 2),
    "MatMulIntegerToFloat": (0, 1),
}
# Operators that widen weights and compute in float.
_WIDENING: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,),
    "MatMulNBits": (1,),
    "GatherBlockQuantized": (0,),
}
_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})


@dataclass(frozen=True)
class Quantized:
    """`what` names it in a sentence; `is_widened` where weights alone are quantized; `size_bytes` of its files; `work`
    of one inference.
    """

    what: str
    is_widened: bool
    size_bytes: int
    work: Work

    @property
    def most_bytes(self) -> int:
        """That what is made of it for another engine may weigh."""
        return int(MOST_GROWN * self.size_bytes) + FRAME_BYTES


def kind(model: onnx.ModelProto) -> tuple[str, bool] | None:
    """What it is and whether weights alone are quantized; None for a float model."""
    nodes = list(onnx_nodes.inside(model.graph.node))
    stored = _stored(model.graph)
    weights = {**_ROUNDING, **_WIDENING}
    has_weights = any(
        _is_weights(stored.get(node.input[position]))
        for node in nodes
        for position in weights.get(node.op_type, ())
        if position < len(node.input)
    )
    if not has_weights:
        return None
    names = {node.op_type for node in nodes}
    if names & _DYNAMIC:
        return "an ONNX file with int8 weights and ranges taken at run time", False
    integers = sorted(
        node.op_type for node in nodes if node.op_type in _ROUNDING or node.op_type.startswith("QLinear")
    )
    if integers:
        return f"an int8 ONNX file ({', '.join(dict.fromkeys(integers))})", False
    if "QuantizeLinear" in names:
        return "an int8 ONNX file (Q/DQ pairs)", False
    return "an ONNX file with weights in few bits", True


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are in float: every DequantizeLinear of a constant computed, every MatMulNBits a MatMul.

    Raises: ValueError for a form of weights that is not known.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    stored = _stored(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        given = [stored.get(name) for name in node.input]
        if node.op_type == "DequantizeLinear" and all(tensor is not None for tensor in given):
            arrays = [numpy_helper.to_array(tensor) for tensor in given if tensor is not None]
            graph.initializer.append(numpy_helper.from_array(_real(node, *arrays), node.output[0]))
        elif node.op_type == "MatMulNBits":
            weights = f"{node.output[0]} weights"
            graph.initializer.append(numpy_helper.from_array(_unpacked(node, given), weights))
            product = node.output[0] if len(node.input) < 6 else f"{node.output[0]} product"
            nodes.append(helper.make_node("MatMul", [node.input[0], weights], [product], name=node.name))
            if len(node.input) > 5:
                nodes.append(helper.make_node("Add", [product, node.input[5]], [node.output[0]]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def _real(
    node: onnx.NodeProto,
    value: NDArray[np.generic],
    scale: NDArray[np.floating],
    zero: NDArray[np.generic] | None = None,
) -> NDArray[np.floating]:
    """`(value - zero) * scale`, each of one entry, one for each entry of an axis, or one for each block of it."""
    axis = _attribute(node, "axis", 1)
    block = _attribute(node, "block_size", 0)

    def beside(parameter: NDArray[np.generic]) -> NDArray[np.generic]:
        if parameter.size == 1:
            return parameter.reshape(())
        if parameter.ndim == 1 and not block:
            return parameter.reshape([-1 if at == axis % value.ndim else 1 for at in range(value.ndim)])
        return np.repeat(parameter, block, axis).take(range(value.shape[axis]), axis)

    shifted = value.astype(np.float32) - (0 if zero is None else beside(zero).astype(np.float32))
    real: NDArray[np.floating] = (shifted * beside(scale).astype(np.float32)).astype(scale.dtype)
    return real


def _unpacked(node: onnx.NodeProto, given: list[TensorProto | None]) -> NDArray[np.floating]:
    """The weights of a MatMulNBits, K rows and N columns. Source: ONNX Runtime's description of the operator (1.32)."""
    rows, columns = _attribute(node, "K", 0), _attribute(node, "N", 0)
    bits, block = _attribute(node, "bits", 4), _attribute(node, "block_size", 0)
    if bits not in (4, 8) or given[1] is None or given[2] is None or (len(given) > 4 and node.input[4]):
        raise ValueError(f"MatMulNBits of {bits} bits, or with computed or reordered weights")
    blocks = -(-rows // block)
    scales = numpy_helper.to_array(given[2]).reshape(columns, blocks, 1)
    values = _split(numpy_helper.to_array(given[1]).reshape(columns, blocks, -1), bits)[:, :, :block]
    zero: NDArray[np.generic] = np.asarray(1 << (bits - 1))
    if len(given) > 3 and node.input[3]:
        if given[3] is None:
            raise ValueError("MatMulNBits with computed zero points")
        told = numpy_helper.to_array(given[3])
        zero = _split(told.reshape(columns, -1), bits)[:, :blocks] if told.dtype == np.uint8 else told
        zero = zero.reshape(columns, blocks, 1)
    real = (values.astype(np.float32) - zero.astype(np.float32)) * scales.astype(np.float32)
    whole: NDArray[np.floating] = real.reshape(columns, -1)[:, :rows].T.astype(scales.dtype)
    return np.ascontiguousarray(whole)


def _split(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Two numbers of four bits in each byte, the lower half first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _is_weights(tensor: TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type in _INTEGERS and prod(tensor.dims) >= LEAST_NUMBERS


def _stored(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Every constant by name, those of branches too."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.GRAPH:
                found |= _stored(entry.g)
            elif node.op_type == "Constant" and entry.name == "value":
                found[node.output[0]] = entry.t
    return found
