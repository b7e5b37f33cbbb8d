"""Activations that are spelled out, recognised by what they compute.

A chain of elementwise nodes with number constants is a function of one variable. It is evaluated on a grid and
compared with the functions that engines have kernels for, so that a row of the table stands for every spelling:
order of operands, a division for a multiplication, a power for a product.

Always true
 1. What is replaced differs from what replaces it by less than `TOLERANCE` on the whole grid.
 2. A chain whose inner results are read elsewhere too stays: replacing it would compute them twice.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from converters.graph.patterns.graph import Graph, attribute

Values = NDArray[np.float64]
# Dense around zero, where activations bend, and far enough out to tell what saturates from what does not.
GRID: Values = np.concatenate([np.linspace(-12, 12, 385), np.linspace(-1, 1, 64) * 0.1])
# erf- and tanh-GELU differ by 5e-4; constants that were written in float32 by 1e-7.
TOLERANCE = 2e-5
# Longest chain tried; the longest known spelling (tanh-GELU with a product for the cube) has ten nodes.
LONGEST = 14

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Values) -> Values:
    return 1 / (1 + np.exp(-x))


def _clip(node: onnx.NodeProto, x: Values, *bounds: Any) -> Values:
    low = bounds[0] if bounds and bounds[0] is not None else attribute(node, "min", -np.inf)
    high = bounds[1] if len(bounds) > 1 and bounds[1] is not None else attribute(node, "max", np.inf)
    return np.clip(x, low, high)


_EVALUATED: Mapping[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Div": lambda _, a, b: a / b,
    "Pow": lambda _, a, b: np.power(a, b),
    "Neg": lambda _, a: -a,
    "Reciprocal": lambda _, a: 1 / a,
    "Sqrt": lambda _, a: np.sqrt(a),
    "Exp": lambda _, a: np.exp(a),
    "Log": lambda _, a: np.log(a),
    "Erf": lambda _, a: _erf(a),
    "Tanh": lambda _, a: np.tanh(a),
    "Sigmoid": lambda _, a: _sigmoid(a),
    "Relu": lambda _, a: np.maximum(a, 0),
    "Min": lambda _, a, b: np.minimum(a, b),
    "Max": lambda _, a, b: np.maximum(a, b),
    "Clip": _clip,
    "HardSigmoid": lambda node, a: np.clip(
        attribute(node, "alpha", 0.2) * a + attribute(node, "beta", 0.5), 0, 1
    ),
}


@dataclass(frozen=True)
class Known:
    """A function with a kernel. `spelled` makes the nodes for (input, output, a fresh name); `fewest` is how many
    nodes a chain needs to be worth replacing.
    """

    name: str
    function: Callable[[Values], Values]
    spelled: Callable[[str, str, str], list[onnx.NodeProto]]
    fewest: int = 2


def _one(op_type: str, **attributes: Any) -> Callable[[str, str, str], list[onnx.NodeProto]]:
    return lambda x, y, _fresh: [helper.make_node(op_type, [x], [y], **attributes)]


def _silu(x: str, y: str, fresh: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Sigmoid", [x], [fresh]), helper.make_node("Mul", [x, fresh], [y])]


KNOWN = (
    Known("erf-GELU", lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), _one("Gelu", approximate="none")),
    Known(
        "tanh-GELU",
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        _one("Gelu", approximate="tanh"),
    ),
    Known("hard-swish", lambda x: x * np.clip(x + 3, 0, 6) / 6, _one("HardSwish")),
    Known("SiLU", lambda x: x * _sigmoid(x), _silu, fewest=3),
    Known("sigmoid", _sigmoid, _one("Sigmoid")),
    Known("hard-sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), _one("HardSigmoid", alpha=1 / 6, beta=0.5)),
)


def recognise(graph: Graph) -> dict[str, int]:
    """Replace every chain that computes a known function; gives how many of each.

    Outermost first, so that a hard-swish is not taken for the hard-sigmoid inside it.
    """
    found: dict[str, int] = {}
    done: set[str] = set()
    while True:
        candidates = [
            node.output[0] for node in reversed(graph.model.graph.node) if node.op_type in _EVALUATED
        ]
        match = next(
            (hit for name in candidates if name not in done and (hit := _match(graph, name, done))), None
        )
        if match is None:
            return found
        known, x, y = match
        graph.replace(y, known.spelled(x, y, graph.fresh()))
        done.add(y)
        found[known.name] = found.get(known.name, 0) + 1


def _match(graph: Graph, y: str, done: set[str]) -> tuple[Known, str, str] | None:
    for x, chain in _chains(graph, y):
        with np.errstate(all="ignore"):
            values = _evaluate(graph, chain, x, y)
        for known in KNOWN:
            if len(chain) >= known.fewest and np.allclose(
                values, known.function(GRID), rtol=TOLERANCE, atol=TOLERANCE
            ):
                return known, x, y
    done.add(y)
    return None


def _chains(graph: Graph, y: str) -> list[tuple[str, list[onnx.NodeProto]]]:
    """Tensors of which `y` is an elementwise function of one variable, with the nodes in between; nearest first.

    The chain grows backwards from `y`, always by the node that comes last in the graph, and each time that a single
    tensor is left unexplained, that is an answer.
    """
    order = {node.output[0]: index for index, node in enumerate(graph.model.graph.node)}
    chain: list[onnx.NodeProto] = []
    open_names = {y}
    answers: list[tuple[str, list[onnx.NodeProto]]] = []
    while open_names and len(chain) < LONGEST:
        name = max(open_names, key=lambda entry: order.get(entry, -1))
        node = graph.made.get(name)
        if node is None or node.op_type not in _EVALUATED or node.domain or len(node.output) != 1:
            break
        inside = sum(list(part.input).count(name) for part in chain)
        if chain and graph.uses[name] != inside:
            break
        inputs = [entry for entry in node.input if entry]
        if any(entry in graph.constants and graph.scalar(entry) is None for entry in inputs):
            break
        chain = [node, *chain]
        open_names.remove(name)
        open_names |= {entry for entry in inputs if entry not in graph.constants}
        if len(open_names) == 1:
            answers.append((next(iter(open_names)), chain))
    return answers


def _evaluate(graph: Graph, chain: list[onnx.NodeProto], x: str, y: str) -> Values:
    values: dict[str, Values] = {x: GRID}
    for node in chain:
        arguments = [None if not name else values.get(name, graph.scalar(name)) for name in node.input]
        values[node.output[0]] = np.broadcast_to(_EVALUATED[node.op_type](node, *arguments), GRID.shape)
    return values[y]
