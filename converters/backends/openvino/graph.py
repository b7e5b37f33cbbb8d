"""Reading and mending an OpenVINO graph: its quantizers, what their layers are called, whether it attends.

Two kinds of names, both usable in `Tuning.float_layers`:

- `NAME` is an operator: with it, weights and activations of that operator stay in float;
- `act:NAME` is the quantizer of the activation that operator takes: bypassed, the operator computes in float with
  weights still stored in eight bits. `act:NAME:1` is that of its second input.

OpenVINO's ONNX reader splits an operator with a bias in two and calls the one that does the work
`NAME/WithoutBiases`; here both are called NAME (openvino 2026.4).
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager

from converters.backends.settling import Part
from edgekit.engines.openvino import core
from edgekit.errors import ToolFailedError

ACTIVATION = "act:"
BIASED = "/WithoutBiases"
QUANTIZER = "FakeQuantize"
# What stands between a constant and the operator that it is the weight of.
_ON_WEIGHTS = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose", "Constant", QUANTIZER})
# What stands between an attention's softmax and its product with the values.
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", QUANTIZER})
# The plugin computes these in int8 whole or not at all: beside float activations it takes no weights but plain float
# constants ("Check 'getParentEdgeAt(wIdx)->getParent()->getType() == Type::Input' failed", openvino 2026.4).
_RECURRENT = frozenset({"GRUCell", "GRUSequence", "LSTMCell", "LSTMSequence", "RNNCell", "RNNSequence"})
_FEW_STEPS = 5
# As OpenVINO itself calls a node: its type, and a number.
_NUMBERED = re.compile(r"[A-Z][A-Za-z0-9]*_\d+")


@dataclass(frozen=True)
class Quantizer:
    """An activation quantizer: its node, the names it answers to, the first being the one told, and the type of the
    first operator it feeds.
    """

    node: Any
    names: tuple[str, ...]
    op_type: str


def operators(model: Any) -> Iterator[Any]:
    """The nodes that compute, in the graph's order."""
    return (
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Parameter", "Result")
    )


def name_nodes(model: Any, *, is_tflite: bool = False) -> None:
    """Give each node without a name of its own one that depends on the graph alone.

    OpenVINO numbers such nodes through the whole process, so that a model's bytes, and the names of its layers, would
    depend on what the process did before. Its TFLite reader hands such a number on where it moves transposes
    (`is_tflite`): a pad is called `Transpose_21520` then.
    """
    taken = {node.get_friendly_name() for node in model.get_ops()}
    counts: Counter[str] = Counter()
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if name != node.get_name() and not (is_tflite and _NUMBERED.fullmatch(name)):
            continue
        kind = node.get_type_name()
        name = f"{kind}.{counts[kind]}"
        while name in taken:
            counts[kind] += 1
            name = f"{kind}.{counts[kind]}"
        counts[kind] += 1
        taken.add(name)
        node.set_friendly_name(name)


def plain(name: str) -> str:
    """An operator's name as the user's model has it."""
    return name.removesuffix(BIASED)


def parts(model: Any, are_float: Sequence[str]) -> dict[str, Part]:
    """The operators that a quantizer may break, by name, without those that only move values or are in float already."""
    return {
        plain(node.get_friendly_name()): Part(node.get_type_name(), tuple(_tensors(node)))
        for node in operators(model)
        if node.get_type_name() not in _ON_WEIGHTS | _MOVES
        and plain(node.get_friendly_name()) not in are_float
    }


def _tensors(node: Any) -> Iterator[str]:
    for output in node.outputs():
        yield from output.get_names()


def activation_quantizers(model: Any) -> list[Quantizer]:
    """Quantizers of activations, in the graph's order; those of constants are left out."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != QUANTIZER or _is_constant(node.input_value(0)):
            continue
        takers = sorted((_taker_name(port), port.get_node().get_type_name()) for port in _takers(node))
        names = tuple(dict.fromkeys(name for name, _ in takers))
        found.append(Quantizer(node, names, takers[0][1] if takers else ""))
    return found


def bypass(quantizer: Quantizer) -> None:
    """Take a quantizer out: what it fed is fed by what it took."""
    widen_recurrent(quantizer)
    origin = quantizer.node.input_value(0)
    for port in _takers(quantizer.node):
        port.replace_source_output(origin)


def widen_recurrent(quantizer: Quantizer) -> None:
    """Give the recurrent layers that a quantizer feeds their weights as float constants, of the values that they have."""
    for layer in _recurrent_behind(quantizer.node, _FEW_STEPS):
        for port in layer.inputs():
            origin = port.get_source_output()
            if origin.get_node().get_type_name() != "Constant" and _is_constant(origin):
                port.replace_source_output(ops.constant(_computed(origin)).output(0))


def settle_recurrent(model: Any) -> None:
    """Make constants of what needs no input, where a graph has recurrent layers.

    OpenVINO's ONNX reader splits such a layer's weights and joins them in its own order of gates. NNCF quantizes the
    recurrence in front of that, with a zero point, which the plugin then computes wrongly for layers with lengths (a trained
    LSTM both ways gave the label that its own graph means for 43 of 100; openvino 2026.4, nncf 3.4), and leaves the other
    weights in float. Constants it makes int8 where they are taken.
    """
    if _recurrent_layers(model):
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(model)


def float_first_states(model: Any) -> None:
    """Give recurrent layers first states that are constants in float: NNCF makes them int8, as if they were weights."""
    for layer in _recurrent_layers(model):
        for port in layer.inputs()[1:3]:
            origin = port.get_source_output()
            if origin.get_element_type().is_real() and _is_constant(origin):
                port.replace_source_output(ops.constant(_computed(origin)).output(0))


def _recurrent_layers(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in _RECURRENT]


def _recurrent_behind(node: Any, steps: int) -> Iterator[Any]:
    for port in _takers(node):
        taker = port.get_node()
        if taker.get_type_name() in _RECURRENT:
            yield taker
        elif taker.get_type_name() in _MOVES and steps:
            yield from _recurrent_behind(taker, steps - 1)


def _computed(origin: Any) -> Any:
    """The array that constants alone make."""
    alone = core().compile_model(ov.Model([origin], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(alone([])[0])


def split_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Operators, and activations (with their prefix)."""
    return (
        [name for name in names if not name.startswith(ACTIVATION)],
        [name for name in names if name.startswith(ACTIVATION)],
    )


def resolve_operators(model: Any, names: Sequence[str]) -> list[str]:
    """The graph's own names of operators. Raises: ToolFailedError for one that is not there."""
    have = {node.get_friendly_name() for node in operators(model)}
    for name in names:
        if name not in have and name + BIASED not in have:
            raise unknown("layer", name, sorted(map(plain, have)))
    return [name + BIASED if name + BIASED in have else name for name in names]


def resolve_activations(model: Any, names: Sequence[str], are_float: Sequence[str]) -> list[Quantizer]:
    """The quantizers so called; those of operators that are in float already are gone, and that is right.

    Raises: ToolFailedError for a name that no quantizer answers to.
    """
    known = {name: quantizer for quantizer in activation_quantizers(model) for name in quantizer.names}
    gone = {ACTIVATION + plain(name) for name in are_float}
    chosen: dict[str, Quantizer] = {}
    for name in names:
        if name in known:
            chosen[known[name].names[0]] = known[name]
        elif name.rpartition(":")[0] not in gone and name not in gone:
            raise unknown("activation quantizer", name, sorted(known))
    return list(chosen.values())


def unknown(what: str, name: str, known: Iterable[str]) -> ToolFailedError:
    """The error for a name that is not there, with those close to it."""
    options = list(known)
    near = difflib.get_close_matches(name, options, 3, cutoff=0.5)
    told = f"close to it: {', '.join(near)}" if near else f"there are {', '.join(options[:20]) or 'none'}"
    return ToolFailedError(f"{name}: no such {what}; {told}")


def attends(model: Any) -> bool:
    """Whether the graph looks like a transformer: attention, fused or spelled out, or a layer normalization."""
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("ScaledDotProductAttention", "MVN"):
            return True
        if kind == "Softmax" and _reaches_product(node, _FEW_STEPS):
            return True
    return False


def _reaches_product(node: Any, steps: int) -> bool:
    for port in _takers(node):
        taker = port.get_node()
        if taker.get_type_name() == "MatMul":
            return True
        if taker.get_type_name() in _MOVES and steps and _reaches_product(taker, steps - 1):
            return True
    return False


def _takers(node: Any) -> list[Any]:
    return list(node.output(0).get_target_inputs())


def _taker_name(port: Any) -> str:
    """What the quantizer of this input is called: the first input needs no number."""
    name = ACTIVATION + plain(port.get_node().get_friendly_name())
    return name if port.get_index() == 0 else f"{name}:{port.get_index()}"


def _is_constant(output: Any) -> bool:
    """Whether a value is computed from constants alone, as quantized weights are."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return True
    inputs: Mapping[int, Any] = dict(enumerate(node.input_values()))
    return node.get_type_name() in _ON_WEIGHTS and bool(inputs) and all(map(_is_constant, inputs.values()))
