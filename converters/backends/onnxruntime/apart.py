"""Dynamic int8 of a model whose weights are kept apart: one weight after the other, in the operators that ONNX Runtime's own
quantizer writes, which holds the whole model.

Always true
 1. Weights are symmetric, a scale for each column (or one for all): q = round(w / scale), scale = max |w| / 127, or / 63 where
    8-bit products saturate.
 2. Memory holds a band of one weight in float, and of one that is stored transposed the whole in int8.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from converters.graph.canonical import Canonical
from converters.graph.patterns.graph import attribute
from converters.source import onnx_weights
from converters.source.onnx_files import Place

_FULL, _REDUCED = 127, 63
# Numbers of a weight that are looked at together.
_BAND = 1 << 22


@dataclass(frozen=True)
class _Small:
    """A weight in int8: names of its tensor and its scale."""

    weight: str
    scale: str


@dataclass
class _Graph:
    """What has been written so far."""

    made: onnx.GraphProto
    weights: Mapping[str, TensorProto]
    small: dict[tuple[str, bool], _Small]
    # Tensors that are quantized at run time already.
    quantized: set[str]


def quantized(
    model: onnx.ModelProto,
    form: Canonical,
    writer: onnx_weights.Writer,
    left: frozenset[str],
    *,
    per_channel: bool,
    reduce_range: bool,
) -> onnx.ModelProto:
    """The model with its large matrices in int8, but for the nodes named in `left`; all weights go to `writer`."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if uses_external_data(tensor)}
    chosen = [node.name not in left and _is_product(node, weights) for node in model.graph.node]
    kept = {
        name
        for node, is_int8 in zip(model.graph.node, chosen, strict=True)
        if not is_int8
        for name in node.input
    } | _read_inside(model.graph)
    del made.graph.node[:]
    del made.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.name not in kept:
            continue
        own = made.graph.initializer.add()
        own.CopyFrom(tensor)
        if tensor.name in weights:
            writer.add(own, onnx_weights.pieces(onnx_weights.place_of(form.path, tensor)))
    graph = _Graph(made.graph, weights, {}, set())
    for node, is_int8 in zip(model.graph.node, chosen, strict=True):
        if not is_int8:
            made.graph.node.append(node)
            continue
        key = (node.input[1], _is_transposed(node))
        if key not in graph.small:
            place = onnx_weights.place_of(form.path, weights[node.input[1]])
            graph.small[key] = _stored(
                graph, key, place, writer, most=_REDUCED if reduce_range else _FULL, per_channel=per_channel
            )
        _product(graph, node, graph.small[key])
    del made.graph.value_info[:]
    return made


def _is_product(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    weight = weights.get(node.input[1])
    is_plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(
        node, "transA", 0
    )
    return weight is not None and weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2 and is_plain


def _is_transposed(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Gemm" and attribute(node, "transB", 0))


def _read_inside(graph: onnx.GraphProto) -> set[str]:
    """Names that branches read, and outputs."""
    found = {value.name for value in graph.output}
    branches = [entry.g for node in graph.node for entry in node.attribute if entry.HasField("g")]
    while branches:
        branch = branches.pop()
        for node in branch.node:
            found.update(node.input)
            branches += [entry.g for entry in node.attribute if entry.HasField("g")]
        found.update(value.name for value in branch.output)
    return found


def _stored(
    graph: _Graph,
    key: tuple[str, bool],
    place: Place,
    writer: onnx_weights.Writer,
    *,
    most: int,
    per_channel: bool,
) -> _Small:
    """Write a weight in int8, rows along the sum and a column for each output; enter it and its scale."""
    name, is_transposed = key
    shape = tuple(graph.weights[name].dims)
    values = np.memmap(place.file, np.float32, "r", place.offset, shape)
    scale = _scale(values, most, axis=1 if is_transposed else 0, per_channel=per_channel)
    suffix = " transposed" if is_transposed else ""
    small = _Small(f"{name}{suffix} int8", f"{name}{suffix} scale")
    tensor = graph.made.initializer.add(
        name=small.weight, data_type=TensorProto.INT8, dims=shape[::-1] if is_transposed else shape
    )
    rounded = _rounded(values, scale[:, None] if is_transposed and per_channel else scale, most)
    writer.add(tensor, _turned(rounded, shape) if is_transposed else (band.tobytes() for band in rounded))
    graph.made.initializer.append(numpy_helper.from_array(scale, small.scale))
    return small


def _bands(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = max(1, _BAND // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def _scale(values: NDArray[np.float32], most: int, *, axis: int, per_channel: bool) -> NDArray[np.float32]:
    """Of each output (N,), or of all () ."""
    largest = [np.abs(band).max(axis=axis) for band in _bands(values)]
    found = np.concatenate(largest) if axis else np.max(largest, axis=0)
    scale = (found if per_channel else found.max()) / np.float32(most)
    # A column of zeros is exact under any scale.
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _rounded(
    values: NDArray[np.float32], scale: NDArray[np.float32], most: int
) -> Iterator[NDArray[np.int8]]:
    start = 0
    for band in _bands(values):
        own = scale[start : start + len(band)] if scale.ndim == 2 else scale
        start += len(band)
        yield np.clip(np.rint(band / own), -most, most).astype(np.int8)


def _turned(bands: Iterator[NDArray[np.int8]], shape: tuple[int, ...]) -> Iterator[bytes]:
    whole = np.empty(shape[::-1], np.int8)
    start = 0
    for band in bands:
        whole[:, start : start + len(band)] = band.T
        start += len(band)
    yield whole.tobytes()


def _product(graph: _Graph, node: onnx.NodeProto, small: _Small) -> None:
    """As ONNX Runtime's fusions know it: integers multiplied, scaled by both scales, the bias added."""
    given, output = node.input[0], node.output[0]
    values, scale, zero = (f"{given} {what}" for what in ("int8", "scale", "zero point"))
    add = graph.made.node.extend
    if given not in graph.quantized:
        graph.quantized.add(given)
        add([helper.make_node("DynamicQuantizeLinear", [given], [values, scale, zero], f"{given} quantized")])
    is_biased = len(node.input) > 2 and node.input[2]
    sums, real, both = (f"{output} {what}" for what in ("sums", "float sums", "scales"))
    product = f"{output} product" if is_biased else output
    add(
        [
            helper.make_node("MatMulInteger", [values, small.weight, zero], [sums], node.name),
            helper.make_node("Cast", [sums], [real], f"{node.name} cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, small.scale], [both], f"{node.name} scales"),
            helper.make_node("Mul", [real, both], [product], f"{node.name} scaled"),
        ]
    )
    if is_biased:
        add([helper.make_node("Add", [product, node.input[2]], [output], f"{node.name} bias")])
