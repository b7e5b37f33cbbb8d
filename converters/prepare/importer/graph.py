"""An ONNX graph as a torch module.

Loading runs the graph once on zeros, with the shapes that the canonical form fixed. Everything that depends on
constants and shapes only is computed there and kept; what is left are the nodes that see data, in order. So shape
arithmetic, constant conditions and generated tables never reach a converter.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from converters.prepare.importer.registry import Call, UnsupportedOperatorsError, lookup

# Their results depend on the shape of what they are given, never on its values.
_OF_SHAPE = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Step:
    """A node that sees data. `inputs` are names, empty where an optional one is left out."""

    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxModule(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Runs the steps; constants are buffers."""

    def __init__(
        self,
        steps: Sequence[Step],
        constants: Mapping[str, Any],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self._steps = tuple(steps)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        used = {name for step in steps for name in step.inputs} | set(outputs)
        self._buffer_of: dict[str, str] = {}
        for index, (name, tensor) in enumerate(item for item in constants.items() if item[0] in used):
            self.register_buffer(f"c{index}", tensor)
            self._buffer_of[name] = f"c{index}"

    def forward(self, *arguments: Any) -> Any:
        """Tensors in the order of the graph's inputs; one tensor or a tuple in the order of its outputs."""
        values: dict[str, Any] = dict(zip(self._inputs, arguments, strict=True))
        values.update({name: getattr(self, buffer) for name, buffer in self._buffer_of.items()})
        for step in self._steps:
            values.update(zip(step.outputs, _results(step, values), strict=False))
        found = tuple(values[name] for name in self._outputs)
        return found[0] if len(found) == 1 else found


def load(path: Path) -> OnnxModule:
    """Read a model in canonical form (fixed shapes).

    Raises: UnsupportedOperatorsError that lists every operator the importer lacks.
    """
    model = onnx.load(str(path))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    _check_operators(model.graph, opset)
    values: dict[str, Any] = {}
    fixed = {
        tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for tensor in model.graph.initializer
    }
    for value in model.graph.input:
        if value.name not in fixed:
            tensor_type = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
            values[value.name] = torch.from_numpy(
                np.zeros([dim.dim_value for dim in tensor_type.shape.dim], dtype)
            )
    inputs = list(values)
    values.update(fixed)
    steps: list[Step] = []
    with torch.no_grad():
        _walk(model.graph.node, opset, values, fixed, steps)
    return OnnxModule(steps, fixed, inputs, [value.name for value in model.graph.output])


def _check_operators(graph: onnx.GraphProto, opset: int) -> None:
    missing = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in _all_nodes(graph)
        if node.op_type != "If"
        and (node.domain not in ("", "ai.onnx") or lookup(node.op_type, opset) is None)
    )
    if missing:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(missing.items()))
        raise UnsupportedOperatorsError(f"operators that the importer does not know: {listed}")


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                nodes.extend(_all_nodes(attribute.g))
    return nodes


def _walk(
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    values: dict[str, Any],
    fixed: dict[str, Any],
    steps: list[Step],
) -> None:
    """Run the nodes on zeros; constant results go into `fixed`, the others become steps."""
    for node in nodes:
        if node.op_type == "If":
            _take_branch(node, opset, values, fixed, steps)
            continue
        constants = tuple(fixed[name].numpy() if name and name in fixed else None for name in node.input)
        call = Call(node.op_type, _attributes(node), constants, len(node.output), opset)
        step = Step(call, tuple(node.input), tuple(node.output))
        results = _results(step, values)
        is_fixed = node.op_type in _OF_SHAPE or all(not name or name in fixed for name in node.input)
        for name, result in zip(node.output, results, strict=False):
            values[name] = result
            if is_fixed and name:
                fixed[name] = result.contiguous()
        if not is_fixed:
            steps.append(step)


def _take_branch(
    node: onnx.NodeProto,
    opset: int,
    values: dict[str, Any],
    fixed: dict[str, Any],
    steps: list[Step],
) -> None:
    """Inline the branch that a constant condition chooses."""
    if node.input[0] not in fixed:
        raise UnsupportedOperatorsError("If whose condition is computed from data")
    wanted = "then_branch" if bool(fixed[node.input[0]].reshape(-1)[0]) else "else_branch"
    graph = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    for tensor in graph.initializer:
        fixed[tensor.name] = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        values[tensor.name] = fixed[tensor.name]
    _walk(graph.node, opset, values, fixed, steps)
    for outer, inner in zip(node.output, graph.output, strict=True):
        values[outer] = values[inner.name]
        if inner.name in fixed:
            fixed[outer] = fixed[inner.name]
        else:
            call = Call("Identity", {}, (None,), 1, opset)
            steps.append(Step(call, (inner.name,), (outer,)))


def _results(step: Step, values: Mapping[str, Any]) -> tuple[Any, ...]:
    function = lookup(step.call.op_type, step.call.opset)
    assert function is not None
    result = function(step.call, *(values[name] if name else None for name in step.inputs))
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {
        attribute.name: _plain(onnx.helper.get_attribute_value(attribute)) for attribute in node.attribute
    }


def _plain(value: Any) -> Any:
    """Texts as `str`, tensors as arrays."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
        return [entry.decode() for entry in value]
    return list(value) if isinstance(value, tuple) else value
