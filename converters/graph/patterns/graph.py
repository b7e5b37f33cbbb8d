"""An ONNX graph as pattern rules see it: who makes a tensor, who reads it, what is constant.

Always true
 1. The caller's model is never changed; `Graph` works on its own copy.
 2. A replaced tensor keeps its name, so graph outputs and readers need no change.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from converters.graph import tidy


class Graph:
    """`made` maps a tensor to the node that computes it, `constants` to its value, `uses` to how often it is read
    (a graph output counts as read).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.shapes = tidy.closed_shapes(model)
        self._fresh = 0
        self.index()

    def index(self) -> None:
        """Read the graph again after a change."""
        graph = self.model.graph
        self.made: dict[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output}
        self.uses: Counter[str] = Counter(name for node in graph.node for name in _read(node))
        self.uses.update(value.name for value in graph.output)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            # Large weights that are kept apart: no rule looks into them.
            if not uses_external_data(tensor)
        }
        for node in graph.node:
            value = next((entry for entry in node.attribute if entry.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value.t)

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element."""
        value = self.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def maker(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that computes a tensor, if it is of one of these operators."""
        node = self.made.get(name)
        return node if node is not None and node.op_type in op_types and node.domain == "" else None

    def reader(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The only reader of a tensor, if it is of one of these operators."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or self.uses[name] != 1 or readers[0].op_type not in op_types:
            return None
        return readers[0]

    def other(self, node: onnx.NodeProto, name: str) -> str:
        """The operand of a two-operand node that is not `name`."""
        return str(node.input[1] if node.input[0] == name else node.input[0])

    def constant(self, value: NDArray[Any]) -> str:
        """Enter a constant; gives its name."""
        name = self.fresh()
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        self.constants[name] = value
        return name

    def fresh(self) -> str:
        self._fresh += 1
        return f"pattern.{self._fresh}"

    def replace(self, output: str, nodes: Sequence[onnx.NodeProto]) -> None:
        """Let `nodes`, the last of which computes `output`, stand where its maker stood; what nothing reads goes."""
        old = self.made[output]
        kept = list(self.model.graph.node)
        position = next(index for index, node in enumerate(kept) if node is old)
        kept[position : position + 1] = nodes
        self._keep(kept)

    def _keep(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """These nodes, without those that nothing reads."""
        wanted = {value.name for value in self.model.graph.output}
        alive: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if any(name in wanted for name in node.output):
                alive.append(node)
                wanted.update(_read(node))
        copies = []
        for node in reversed(alive):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        self.index()


Rule = Callable[[Graph, onnx.NodeProto], bool]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value; lists as lists."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    if found is None:
        return default
    value = helper.get_attribute_value(found)
    return list(value) if isinstance(value, tuple) else value


def axes(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Axes of a reduction, from the attribute or the constant input that replaced it; None where they are not known."""
    given = attribute(node, "axes")
    if given is None and len(node.input) > 1 and node.input[1] in graph.constants:
        given = graph.constants[node.input[1]].reshape(-1).tolist()
    return None if given is None else [int(axis) for axis in given]


def _read(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, those of its branches too."""
    names = [name for name in node.input if name]
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            inner = {name for part in entry.g.node for name in part.output}
            names.extend(name for part in entry.g.node for name in _read(part) if name not in inner)
            names.extend(value.name for value in entry.g.output if value.name not in inner)
    return names


def is_close(value: float | None, wanted: float) -> bool:
    return value is not None and bool(np.isclose(value, wanted, rtol=1e-5, atol=1e-9))
