"""What old and careless exporters leave in an ONNX file, put in order before anything else looks at it.

Always true
 1. The model computes the same under the same public names: nodes and their order stay.
 2. Every constant is read by a node, and no output is a constant itself. None is sparse.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx.numpy_helper

from edgekit.tensors import Array

# IR 4 is the first in which an initializer need not be listed among the inputs; 8 goes with the canonical opset.
IR_VERSION = 8


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the newest form that needs no conversion of operators. The inputs may still list initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = max(made.ir_version, IR_VERSION)
    graph = made.graph
    outputs_computed(graph)
    read = set(_read(graph))
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    # OpenVINO (2026.4) reads no sparse ones, and ONNX Runtime's quantizer takes none for a weight.
    graph.initializer.extend(
        onnx.numpy_helper.from_array(dense(tensor), tensor.values.name)
        for tensor in graph.sparse_initializer
        if tensor.values.name in read
    )
    del graph.sparse_initializer[:]
    return made


def dense(tensor: onnx.SparseTensorProto) -> Array:
    """A sparse tensor's array; its indices are linear, or one row of coordinates for each value."""
    values, indices = onnx.numpy_helper.to_array(tensor.values), onnx.numpy_helper.to_array(tensor.indices)
    made = np.zeros(list(tensor.dims), values.dtype)
    if indices.ndim == 1:
        made.reshape(-1)[indices] = values
    else:
        made[tuple(indices.T)] = values
    return made


def closed_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Closed shapes by tensor, as far as shape inference tells."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    found = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if all(dim > 0 for dim in dims):
                found[value.name] = tuple(dims)
    return found


def outputs_computed(graph: onnx.GraphProto) -> None:
    """An output that is a constant becomes a copy of one: quantizers and engines look for the node that makes it."""
    constants = {tensor.name for tensor in graph.initializer}
    taken = set(_read(graph)) | {name for node in graph.node for name in node.output} | constants
    nodes: list[onnx.NodeProto] = []
    for value in graph.output:
        if value.name not in constants:
            continue
        stored = f"{value.name}@stored"
        while stored in taken:
            stored += "'"
        renamed(graph, {value.name: stored}, is_public=False)
        nodes.append(onnx.helper.make_node("Identity", [stored], [value.name]))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def renamed(graph: onnx.GraphProto, names: Mapping[str, str], *, is_public: bool = True) -> None:
    """Values renamed, inside of branches too; inputs and outputs as well if `is_public`."""
    values = (*graph.value_info, *graph.initializer)
    for part in (*values, *((*graph.input, *graph.output) if is_public else ())):
        part.name = names.get(part.name, part.name)
    for node in graph.node:
        for words in (node.input, node.output):
            words[:] = [names.get(name, name) for name in words]
        for branch in _branches(node):
            renamed(branch, names)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Each node behind those that make what it reads, inside of branches too; what need not move stays in order."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    placed: dict[int, onnx.NodeProto] = {}
    for first in range(len(graph.node)):
        waiting = [first]
        while waiting:
            index = waiting[-1]
            before = {makers[name] for name in _taken(graph.node[index]) if name in makers} - placed.keys()
            if index in placed or not before - {index}:
                placed.setdefault(index, graph.node[index])
                waiting.pop()
            else:
                waiting.extend(sorted(before - {index}, reverse=True))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in placed.values()]
    del graph.node[:]
    graph.node.extend(nodes)


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, in its branches too."""
    yield from node.input
    for branch in _branches(node):
        yield from _read(branch)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that nodes read, those of branches too, and that are outputs."""
    for node in graph.node:
        yield from _taken(node)
    yield from (value.name for value in graph.output)


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
