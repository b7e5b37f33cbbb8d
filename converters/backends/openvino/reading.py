"""What OpenVINO's ONNX reader (2026.4) takes for something else, spelled with what it takes right.

Each rule looks at one node and gives those that stand in its place. To add one: a function, and its line in `RULES`.

Always true
 1. The graph computes the same; only OpenVINO gets it so.
 2. A model that no rule changes is read as it lies there.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shapes = Mapping[str, Sequence[int]]
# Nodes in the place of one, and the constants that they read.
Spelled = tuple[Sequence[onnx.NodeProto], Mapping[str, Sequence[int]]]

# From here on these had their axes as an input in the reader, which they have from 18 on in ONNX.
_AXES_TAKEN, _AXES_GIVEN = 13, 18


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """The model's file; where a rule applies another one beside it, where its weights may lie, for as long as it is read."""
    model = _model(path)
    if model is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.flush()
        yield Path(file.name)


def _model(path: Path) -> onnx.ModelProto | None:
    """As the reader is given it; None where no rule applies."""
    model = onnx.load(str(path), load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if not any(node.op_type in RULES for node in model.graph.node):
        return None
    shapes = _shapes(model)
    spelled = {index: _spelled(node, opset, shapes) for index, node in enumerate(model.graph.node)}
    if not any(spelled.values()):
        return None
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(model.graph.node):
        found = spelled[index]
        nodes.extend(found[0] if found else [node])
        for name, values in (found[1] if found else {}).items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _spelled(node: onnx.NodeProto, opset: int, shapes: Shapes) -> Spelled | None:
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return None if rule is None else rule(node, opset, shapes)


def _shapes(model: onnx.ModelProto) -> Shapes:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = [dim.dim_value for dim in tensor.shape.dim]
    return found


def _gather_elements(node: onnx.NodeProto, _opset: int, shapes: Shapes) -> Spelled | None:
    """Data cut to where the places reach: off the axis OpenVINO wants both of one size.

    By `Split`, since a pass of its own takes a `Slice` before this operator away again, and fails.
    """
    data, places = (shapes.get(name) for name in node.input)
    if data is None or places is None:
        return None
    axis, name = _attributes(node).get("axis", 0) % len(data), node.output[0]
    cut = [index for index in range(len(data)) if index != axis and places[index] < data[index]]
    nodes, sizes, last = [], {}, node.input[0]
    for index in cut:
        part, rest, told = (f"{name}.{word}{index}" for word in ("part", "rest", "sizes"))
        nodes.append(
            helper.make_node("Split", [last, told], [part, rest], f"{node.name}.part{index}", axis=index)
        )
        sizes[told], last = [places[index], data[index] - places[index]], part
    nodes.append(helper.make_node("GatherElements", [last, node.input[1]], [name], node.name, axis=axis))
    return (nodes, sizes) if cut else None


def _reduction(node: onnx.NodeProto, opset: int, _shapes: Shapes) -> Spelled | None:
    """Axes that are an attribute are not seen, and everything is reduced: a sum's, which are an input, are."""
    given = _attributes(node)
    if not _AXES_TAKEN <= opset < _AXES_GIVEN or "axes" not in given:
        return None
    name, keep = node.output[0], given.get("keepdims", 1)
    axes = f"{name}.axes"
    before, after = _PARTS[node.op_type]
    nodes = []
    last = node.input[0]
    if node.op_type == "ReduceLogSumExp":
        # From the largest, which keeps it finite.
        for made, kept in ((f"{name}.top", 1), (f"{name}.rest", keep)):
            nodes.append(
                helper.make_node(
                    "ReduceMax", [last], [made], f"{node.name}.{made}", axes=given["axes"], keepdims=kept
                )
            )
        nodes.append(helper.make_node("Sub", [last, f"{name}.top"], [f"{name}.less"], f"{node.name}.less"))
        last = f"{name}.less"
    if before:
        nodes.append(helper.make_node(before, [last], [f"{name}.each"], f"{node.name}.each"))
        last = f"{name}.each"
    ends = f"{name}.sum" if after else name
    nodes.append(helper.make_node("ReduceSum", [last, axes], [ends], f"{node.name}.sum", keepdims=keep))
    if node.op_type == "ReduceLogSumExp":
        nodes.append(helper.make_node(after, [ends], [f"{name}.log"], f"{node.name}.log"))
        nodes.append(helper.make_node("Add", [f"{name}.log", f"{name}.rest"], [name], node.name))
    elif after:
        nodes.append(helper.make_node(after, [ends], [name], node.name))
    return nodes, {axes: given["axes"]}


# What is done to each entry before the sum, and to the sum.
_PARTS = {"ReduceL1": ("Abs", ""), "ReduceLogSum": ("", "Log"), "ReduceLogSumExp": ("Exp", "Log")}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


RULES: Mapping[str, Callable[[onnx.NodeProto, int, Shapes], Spelled | None]] = {
    "GatherElements": _gather_elements,
    **dict.fromkeys(_PARTS, _reduction),
}
