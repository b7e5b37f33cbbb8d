"""What OpenVINO's ONNX reader (2026.4) takes for something else, spelled with what it takes right.

Each rule looks at one node and gives those that stand in its place. To add one: a function, and its line in `RULES`.

Always true
 1. The graph computes the same; only OpenVINO gets it so.
 2. A model that no rule changes is read as it lies there.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph import tidy

# Nodes in the place of one, and the constants that they read.
Spelled = tuple[Sequence[onnx.NodeProto], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Around:
    """What a rule may look at beside its node: shapes, constants, and the node that makes a value."""

    opset: int
    shapes: Mapping[str, Sequence[int]]
    constants: Mapping[str, onnx.TensorProto]
    makers: Mapping[str, onnx.NodeProto]

    def ints(self, name: str) -> list[int] | None:
        """A constant's entries; None for what is computed."""
        found = self.constants.get(name)
        return None if found is None else [int(entry) for entry in numpy_helper.to_array(found).reshape(-1)]


# From here on these had their axes as an input in the reader, which they have from 18 on in ONNX.
_AXES_TAKEN, _AXES_GIVEN = 13, 18
# From here on DFT's is an input in ONNX.
_AXIS_IS_INPUT = 20


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
    around = Around(
        opset,
        tidy.closed_shapes(model),
        {tensor.name: tensor for tensor in model.graph.initializer},
        {name: node for node in model.graph.node for name in node.output},
    )
    spelled = {index: _spelled(node, around) for index, node in enumerate(model.graph.node)}
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


def _spelled(node: onnx.NodeProto, around: Around) -> Spelled | None:
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return None if rule is None else rule(node, around)


def _gather_elements(node: onnx.NodeProto, around: Around) -> Spelled | None:
    """Data cut to where the places reach by `Split`: off the axis OpenVINO wants both of one size, and a pass of its own
    takes away a `Slice` that sees to that, and then fails.
    """
    data, places = (around.shapes.get(name) for name in node.input)
    if data is None or places is None:
        return None
    axis, name = _attributes(node).get("axis", 0) % len(data), node.output[0]
    origin, begins = _before_slice(node.input[0], around)
    whole = around.shapes.get(origin, data)
    if any(whole[index] < begins[index] + places[index] for index in range(len(data)) if index != axis):
        return None
    nodes, sizes, last = [], {}, origin
    for index, (have, begin) in enumerate(zip(whole, begins, strict=True)):
        length = data[index] if index == axis else places[index]
        parts = [size for size in (begin, length, have - begin - length) if size]
        if len(parts) < 2:
            continue
        told, made = f"{name}.sizes{index}", [f"{name}.part{index}.{at}" for at in range(len(parts))]
        nodes.append(helper.make_node("Split", [last, told], made, f"{node.name}.part{index}", axis=index))
        sizes[told], last = parts, made[1 if begin else 0]
    nodes.append(helper.make_node("GatherElements", [last, node.input[1]], [name], node.name, axis=axis))
    return (nodes, sizes) if sizes else None


def _before_slice(name: str, around: Around) -> tuple[str, list[int]]:
    """What a value is a part of, and where it begins there; the value itself where it is no plain part of anything."""
    own = name, [0] * len(around.shapes[name])
    maker = around.makers.get(name)
    if maker is None or maker.op_type != "Slice":
        return own
    origin, *told = maker.input
    starts, axes, steps = (around.ints(told[at]) if at < len(told) else None for at in (0, 2, 3))
    if starts is None or origin not in around.shapes or (len(told) > 2 and axes is None):
        return own
    if len(told) > 3 and set(steps or [0]) != {1}:
        return own
    begins = [0] * len(own[1])
    shape = around.shapes[origin]
    for axis, start in zip(axes or range(len(starts)), starts, strict=True):
        begins[axis] = min(start, shape[axis]) if start >= 0 else max(0, start + shape[axis])
    return origin, begins


def _reduction(node: onnx.NodeProto, around: Around) -> Spelled | None:
    """Axes that are an attribute are not seen, and everything is reduced: a sum's, which are an input, are."""
    given = _attributes(node)
    if not _AXES_TAKEN <= around.opset < _AXES_GIVEN or "axes" not in given:
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


def _dft(node: onnx.NodeProto, around: Around) -> Spelled | None:
    """Along axis 1 and with both sides, of which one is cut: one side alone comes with an axis too many, and from opset 20
    on, where the axis is an input, axis 1 is taken whatever it says.
    """
    given, (value, length, told) = _attributes(node), [*node.input, "", ""][:3]
    shape, name = around.shapes.get(value), node.output[0]
    if shape is None or (given.get("onesided", 0) and given.get("inverse", 0)):
        return None
    wanted = around.ints(told) if told else [given.get("axis", -2 if around.opset >= _AXIS_IS_INPUT else 1)]
    lengths = around.ints(length) if length else None
    if wanted is None or (length and lengths is None):
        return None
    axis = wanted[0] % len(shape)
    count = lengths[0] if lengths else shape[axis]
    order = list(range(len(shape)))
    order[1], order[axis] = axis, 1
    sizes: dict[str, Sequence[int]] = {}
    attributes: dict[str, Any] = {"inverse": given.get("inverse", 0), "onesided": 0}
    inputs = [f"{name}.turned", length]
    if around.opset >= _AXIS_IS_INPUT:
        inputs, sizes[f"{name}.axis"] = [*inputs, f"{name}.axis"], [1]
    else:
        attributes["axis"] = 1
    both, last = f"{name}.both", f"{name}.cut"
    nodes = [
        helper.make_node("Transpose", [value], inputs[:1], f"{node.name}.turned", perm=order),
        helper.make_node("DFT", inputs, [both], f"{node.name}.both", **attributes),
    ]
    if given.get("onesided", 0):
        ends = {f"{name}.starts": [0], f"{name}.ends": [count // 2 + 1], f"{name}.along": [1]}
        nodes.append(helper.make_node("Slice", [both, *ends], [last], f"{node.name}.cut"))
        sizes |= ends
    else:
        last = both
    nodes.append(helper.make_node("Transpose", [last], [name], node.name, perm=order))
    return nodes, sizes


# What is done to each entry before the sum, and to the sum.
_PARTS = {"ReduceL1": ("Abs", ""), "ReduceLogSum": ("", "Log"), "ReduceLogSumExp": ("Exp", "Log")}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


RULES: Mapping[str, Callable[[onnx.NodeProto, Around], Spelled | None]] = {
    "DFT": _dft,
    "GatherElements": _gather_elements,
    **dict.fromkeys(_PARTS, _reduction),
}
