"""Ranges that LiteRT's integers can hold, and the operators whose tensors have none.

Always true
 1. A tensor, or a channel of weights, that is always zero has a scale like its neighbours': zero is exact whatever the
    scale is, and XNNPACK takes no product of scales below 2^-32 or above 256 of the result's (ai-edge-litert 2.3).
 2. What a quantizer has no finite range for stays in float, with the body of an operator that it does not look into.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.litert.graph import Layer
from converters.quantize.calibration import ENDLESS

# A range that reaches no further than this share of those around it holds nothing but zeros and rounding.
_DEAD = 1e-6
Ranges = dict[str, Any]


@dataclass(frozen=True)
class Unbounded:
    """What must stay in float: layers of the main graph by name, operators inside of others by their scope, and whether
    the model's edges are among it.
    """

    layers: frozenset[str]
    scopes: tuple[str, ...]
    is_edge: bool


def unbounded(path: Path, ranges: Mapping[str, Any]) -> Unbounded:
    """Operators of the float model that take or give a tensor without a finite range."""
    return _around(path, lambda tensor, buffers: not _is_bounded(tensor, buffers, ranges))


def empty(path: Path) -> Unbounded:
    """Operators that take or give a tensor of no entries, of which ai-edge-quantizer (0.10) sees no range and breaks."""
    return _around(path, lambda tensor, _: tensor.shape is not None and 0 in list(tensor.shape))


def _around(path: Path, is_one: Callable[[Any, Sequence[Any]], bool]) -> Unbounded:
    """Operators that take or give such a tensor."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    layers: set[str] = set()
    scopes: list[str] = []
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    for place, graph in enumerate(model.subgraphs):
        for number, entry in enumerate(graph.operators):
            used = [graph.tensors[index] for index in (*entry.inputs, *entry.outputs) if index >= 0]
            if not any(is_one(tensor, model.buffers) for tensor in used):
                continue
            if place:
                # The body's own edges are operators to ai-edge-quantizer, named by what goes in or comes out.
                scopes += [_scope(graph, indices) for indices in (entry.outputs, graph.inputs, graph.outputs)]
            else:
                layers.add(f"{names[codes[entry.opcodeIndex]].lower()}.{number}")
    main = model.subgraphs[0]
    edges = [main.tensors[index] for index in (*main.inputs, *main.outputs)]
    is_edge = any(is_one(tensor, model.buffers) for tensor in edges)
    return Unbounded(frozenset(layers), tuple(dict.fromkeys(scopes)), is_edge)


def _scope(graph: Any, indices: Any) -> str:
    """As `Layer.scope`."""
    return "".join(f"{graph.tensors[index].name.decode()};" for index in indices)


def _is_bounded(tensor: Any, buffers: Sequence[Any], ranges: Mapping[str, Any]) -> bool:
    if tensor.type != schema.TensorType.FLOAT32:
        return True
    data = buffers[tensor.buffer].data
    if data is not None and len(data):
        values = np.frombuffer(bytes(data), np.float32)
        return bool(np.all(np.abs(values) < ENDLESS))
    known = ranges.get(tensor.name.decode())
    return known is not None and bool(np.all(np.abs(_extremes(known)) < ENDLESS))


def widened(ranges: Ranges, graph: Sequence[Layer]) -> Ranges:
    """The ranges with those of what is always zero as wide as their neighbours'."""
    reach = {name: _reach(entry) for name, entry in ranges.items()}
    around: dict[str, float] = {}
    for layer in graph:
        tensors = (*layer.inputs, *layer.outputs)
        most = max((reach[name] for name in tensors if name in reach), default=0.0)
        for name in tensors:
            around[name] = max(around.get(name, 0.0), most)
    return {name: _revived(entry, around.get(name, 0.0)) for name, entry in ranges.items()}


def _revived(entry: Mapping[str, Any], around: float) -> dict[str, Any]:
    low, high = (np.asarray(entry[key], np.float32) for key in ("min", "max"))
    most = np.maximum(np.abs(low), np.abs(high))
    if not most.size or not np.all(np.isfinite(most)):
        return dict(entry)
    # Channels of one tensor of weights are neighbours of each other.
    least = float(most.max()) if most.size > 1 and most.max() > 0 else (around or 1.0)
    is_dead = most <= _DEAD * least
    if not is_dead.any():
        return dict(entry)
    return {**entry, "min": low, "max": np.where(is_dead, np.float32(least), high)}


def _reach(entry: Mapping[str, Any]) -> float:
    values = _extremes(entry)
    finite = values[np.isfinite(values)]
    return float(finite.max(initial=0.0))


def _extremes(entry: Mapping[str, Any]) -> Any:
    return np.abs(np.concatenate([np.ravel(entry["min"]), np.ravel(entry["max"])]).astype(np.float64))
