"""What keeps an ONNX file from being a model of tensors, taken out of it or refused.

scikit-learn's exporter ends classifiers in a ZipMap, which makes a sequence of dictionaries of a tensor, and gives
labels that are words; some files call two nodes the same, which ONNX Runtime refuses (1.32).

Always true
 1. What is left computes what it computed, under the same names; what was left out is told in a sentence.
 2. All inputs and outputs are tensors of numbers.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.errors import SourceError

_ZIPMAP = ("ai.onnx.ml", "ZipMap")
_NUMBERS = frozenset("biuf")


def mended(model: onnx.ModelProto, what: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model itself if nothing is wrong with it, or a copy; with notes on what is not in it.

    Raises: SourceError for an input or output that no bundle has: words, sequences, half precision beyond numpy's.
    """
    _check_inputs(model, what)
    zipped = {
        node.output[0]: node.input[0] for node in model.graph.node if (node.domain, node.op_type) == _ZIPMAP
    }
    zipped = {name: tensor for name, tensor in zipped.items() if name in _names(model.graph.output)}
    words = _outputs_of_words(model)
    if not zipped and not words and not _has_repeated_names(model.graph):
        _check_outputs(model, what)
        return model, ()
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _forget_repeated_names(made.graph)
    notes = [
        f"output {name!r} is given as the tensor of probabilities that the file makes a dictionary of (ZipMap)"
        for name in zipped
    ]
    _unzip(made.graph, zipped)
    if words and len(words) == len(made.graph.output):
        raise SourceError(
            f"{what}: output {words[0]!r} holds words; a bundle gives numbers: export the scores instead"
        )
    notes += [f"output {name!r} holds words and is left out; a bundle gives numbers" for name in words]
    _drop(made.graph, words)
    _check_outputs(made, what)
    return made, tuple(notes)


def _unzip(graph: onnx.GraphProto, zipped: dict[str, str]) -> None:
    for node in graph.node:
        if (node.domain, node.op_type) == _ZIPMAP and node.output[0] in zipped:
            node.CopyFrom(helper.make_node("Identity", [zipped[node.output[0]]], [node.output[0]]))
    for value in graph.output:
        if value.name in zipped:
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None))


def _drop(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Outputs, and the nodes that only they need."""
    gone = set(names)
    kept = [value for value in graph.output if value.name not in gone]
    del graph.output[:]
    graph.output.extend(kept)
    needed = {value.name for value in kept}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        # What a branch reads from outside stands in no list of inputs.
        if needed & set(node.output) or any(attribute.HasField("g") for attribute in node.attribute):
            needed |= set(node.input)
            nodes.append(node)
    nodes.reverse()
    del graph.node[:]
    graph.node.extend(nodes)


def _outputs_of_words(model: onnx.ModelProto) -> list[str]:
    return [
        value.name for value in model.graph.output if value.type.tensor_type.elem_type == TensorProto.STRING
    ]


def _check_inputs(model: onnx.ModelProto, what: str) -> None:
    constants = _names(model.graph.initializer)
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = _kind(value)
        if kind:
            raise SourceError(
                f"{what}: input {value.name!r} {kind}; a bundle takes tensors of numbers: do that step before the model, and"
                " export the rest"
            )
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value == 0:
                raise SourceError(
                    f"{what}: input {value.name!r} has no entry, since its axis {axis} is of size 0; export the model"
                    " without that input, or with the axis open (dynamic) and give --shape a size"
                )


def _check_outputs(model: onnx.ModelProto, what: str) -> None:
    seen: set[str] = set()
    for value in model.graph.output:
        kind = _kind(value)
        if kind:
            raise SourceError(
                f"{what}: output {value.name!r} {kind}; a bundle gives tensors of numbers: export that tensor instead, or"
                " take it off the outputs"
            )
        if value.name in seen:
            raise SourceError(f"{what}: output {value.name!r} is listed twice; list it once")
        seen.add(value.name)


def _kind(value: onnx.ValueInfoProto) -> str:
    """What is wrong with its type, as the end of a sentence; empty if it is a tensor of numbers."""
    held = value.type.WhichOneof("value")
    if held not in ("tensor_type", None):
        return f"is no tensor but a {held.removesuffix('_type').replace('_', ' ')}"
    elem_type = value.type.tensor_type.elem_type
    if not elem_type:
        return ""
    if elem_type == TensorProto.STRING:
        return "holds words"
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
    # numpy calls the types that it does not know itself, bfloat16 and the like, void.
    return "" if dtype.kind in _NUMBERS else f"is of type {TensorProto.DataType.Name(elem_type).lower()}"


def _has_repeated_names(graph: onnx.GraphProto) -> bool:
    names = [node.name for node in graph.node if node.name]
    return len(names) > len(set(names))


def _forget_repeated_names(graph: onnx.GraphProto) -> None:
    """Of nodes that are called the same, the first keeps the name."""
    taken: set[str] = set()
    for node in graph.node:
        if node.name in taken:
            node.name = ""
        taken.add(node.name)


def _names(values: Iterable[onnx.ValueInfoProto | onnx.TensorProto]) -> set[str]:
    return {value.name for value in values}
