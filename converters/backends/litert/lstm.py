"""LSTM layers of a torch program on their way into LiteRT: unrolled as far as that goes, beyond it as LiteRT's fused operator.

LiteRT's UNIDIRECTIONAL_SEQUENCE_LSTM goes forwards, from zeros, over whole sequences, and gives every step's output. So the
time axis is turned before and after one that goes backwards; what lies behind a sequence's end becomes zeros afterwards, and
its last state is looked up. litert-torch has no way to say it: the program calls an operator that becomes a STABLEHLO_CUSTOM_CALL,
in whose place the fused operator is put (`litert.recurrent`).

Fewer steps are unrolled, since that is faster: XNNPACK takes the steps, and not the fused operator. Its time over the unrolled
form's, nets of one layer, 32 to 128 units, 8 to 256 steps, AVX-512, one thread: 1.3 to 2.0 in float, 1.5 to 3.7 in dynamic-int8;
only where the weights that XNNPACK packs for every step outgrow the cache (128 units from 64 steps on) it is 0.3 to 0.8, and there the
steps may share them (`litert.layouts`), which makes it 1.7 to 1.9 again.

Always true
 1. A layer whose last cell state is read, that begins from a state, or whose weights are computed, is not fused.
 2. None is unrolled beyond `MAX_STEPS`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from converters.backends.litert.entering import constant, entered, value_of
from converters.backends.litert.recurrent import PLACEHOLDER
from converters.graph.importer import UnsupportedOperatorsError
from converters.graph.importer.lstm import LSTM, stepwise
from converters.graph.importer.unrolled import MAX_STEPS

_ATEN = torch.ops.aten
_LAYER = torch.ops.edgekit.lstm.default
_GATES = 4
Table = Mapping[Any, Callable[..., Any]]


def _sequence(value: Tensor, held: list[Tensor]) -> Tensor:
    """LiteRT's operator: `held` are the matrices of the input, those of the state, and the biases, each gate by gate."""
    weights, recurrence, bias = (
        torch.cat(held[start : start + _GATES]) for start in range(0, len(held), _GATES)
    )
    return stepwise(value, weights, recurrence, bias, None, None, None, False)[0]


SEQUENCE = torch.library.custom_op("edgekit::sequence_lstm", _sequence, mutates_args=())


@SEQUENCE.register_fake  # type: ignore[untyped-decorator]  # torch is untyped here
def _shape(value: Tensor, held: list[Tensor]) -> Tensor:
    return value.new_empty((*value.shape[:2], held[0].shape[0]))


# The operator that stands for LiteRT's in a program.
CALLED = torch.ops.edgekit.sequence_lstm.default


def register() -> None:
    """Tell litert-torch what becomes of the operator."""
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo
    from litert_torch.backend import lowerings

    def lowered(_context: Any, value: Any, held: Sequence[Any]) -> Any:
        kind = ir.RankedTensorType(value.type)
        units = ir.RankedTensorType(held[0].type).shape[0]
        given = ir.RankedTensorType.get([*kind.shape[:2], units], kind.element_type)
        return stablehlo.custom_call(
            [given],
            inputs=[value, *held],
            call_target_name=PLACEHOLDER,
            has_side_effect=False,
            backend_config=ir.StringAttr.get(""),
        )

    lowerings.lower(torch.ops.edgekit.sequence_lstm)(lowered)


def table(known: Table) -> dict[Any, Callable[..., Any]]:
    """How torch's own recurrent layers are taken apart: an LSTM into single ones, others as `known` has it, within bounds."""
    own = {
        name: partial(_bounded, name, known[name])
        for name in (
            _ATEN.gru.input,
            _ATEN.rnn_tanh.input,
            _ATEN.rnn_relu.input,
            _ATEN.lstm.input,
        )
    }
    return {**own, _ATEN.lstm.input: partial(_layers, own[_ATEN.lstm.input])}


def _bounded(name: Any, take_apart: Callable[..., Any], value: Tensor, *rest: Any) -> Any:
    """Raises: UnsupportedOperatorsError for more steps than are unrolled."""
    steps = value.shape[1 if rest[-1] else 0]
    if steps > MAX_STEPS:
        raise _too_long(str(name), steps)
    return take_apart(value, *rest)


def _too_long(what: str, steps: int, reason: str = "") -> UnsupportedOperatorsError:
    why = f"; {reason}" if reason else ""
    return UnsupportedOperatorsError(f"{what} with {steps} steps (at most {MAX_STEPS} are unrolled{why})")


def _layers(
    otherwise: Callable[..., Any],
    value: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM of torch's, layer by layer; one with projections as torch takes it apart."""
    has_biases, count, _, _, both_ways, batch_first = rest
    directions, own = 2 if both_ways else 1, 4 if has_biases else 2
    if len(weights) != own * count * directions:
        found: tuple[Tensor, Tensor, Tensor] = otherwise(value, state, weights, *rest)
        return found
    value = value.transpose(0, 1) if batch_first else value
    lasts = []
    for layer in range(count):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            entering, turning, *biases = weights[own * place : own * (place + 1)]
            bias = biases[0] + biases[1] if biases else None
            every, *last = LSTM(
                value, entering, turning, bias, None, state[0][place], state[1][place], direction == 1
            )
            outputs.append(every)
            lasts.append(last)
        value = torch.cat(outputs, -1) if both_ways else outputs[0]
    value = value.transpose(0, 1) if batch_first else value
    hidden, memory = (torch.stack(list(states)) for states in zip(*lasts, strict=True))
    return value, hidden, memory


def settle(made: GraphModule, decompositions: Table, *, may_fuse: bool) -> None:
    """Every layer of a program in the form in which LiteRT gets it. Raises: UnsupportedOperatorsError."""
    # What nothing reads does not count as read.
    made.graph.eliminate_dead_code()
    for node in list(made.graph.nodes):
        if node.target is _LAYER:
            _settle(made, node, decompositions, may_fuse=may_fuse)


def _settle(made: GraphModule, node: Node, decompositions: Table, *, may_fuse: bool) -> None:
    steps = node.args[0].meta["val"].shape[0]
    form: Callable[..., Any] = stepwise
    if steps > MAX_STEPS:
        obstacle = _obstacle(made, node) if may_fuse else "an accelerator has none"
        if obstacle:
            raise _too_long("LSTM", steps, f"LiteRT's own operator is not it, since {obstacle}")
        form, arguments = _fused, _of_gates(made, node)
    else:
        arguments = [_known(made, node, entry) for entry in node.args]
    nodes = [entry for entry in arguments if isinstance(entry, Node)]

    def called(*tensors: Tensor) -> Any:
        given = iter(tensors)
        return form(*(next(given) if isinstance(entry, Node) else entry for entry in arguments))

    results = entered(made, node, called, nodes, decompositions)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])


def _known(made: GraphModule, before: Node, entry: Any) -> Any:
    """What can be computed now, as a constant."""
    value = value_of(made, entry)
    if not isinstance(value, Tensor):
        return entry
    with made.graph.inserting_before(before):
        return constant(made, value.detach().contiguous())


def _obstacle(made: GraphModule, node: Node) -> str:
    """Why a layer cannot be the fused operator; empty if it can."""
    value, weights, recurrence, bias, _, *state, _ = node.args
    if any(user.args[1] == 2 and user.users for user in node.users):
        return "its last cell state is read"
    if not all(_is_zero(made, start) for start in state):
        return "it begins from a state that is given"
    held = [value_of(made, entry) for entry in (weights, recurrence, bias) if entry is not None]
    if any(tensor is None for tensor in held):
        return "its weights are computed"
    if any(kind is not torch.float32 for kind in (value.meta["val"].dtype, *(one.dtype for one in held))):
        return "it is not of float32"
    return ""


def _is_zero(made: GraphModule, start: Node | None) -> bool:
    value = value_of(made, start)
    return start is None or (value is not None and not value.any())


def _of_gates(made: GraphModule, node: Node) -> list[Any]:
    """The arguments of `_fused`: matrices and biases gate by gate, as constants of their own."""
    value, weights, recurrence, bias, lengths, *_, is_backwards = node.args
    matrices = [value_of(made, weights), value_of(made, recurrence)]
    size = matrices[1].shape[1]
    offset = torch.zeros(_GATES * size) if bias is None else value_of(made, bias)
    with made.graph.inserting_before(node):
        held = [
            constant(made, part.detach().clone())
            for whole in (*matrices, offset)
            for part in torch.split(whole, size)
        ]
    return [value, _known(made, node, lengths), is_backwards, *held]


def _fused(value: Tensor, lengths: Tensor | None, is_backwards: bool, *held: Tensor) -> tuple[Tensor, Tensor]:
    """The layer by LiteRT's operator: every step's output, and the last one."""
    steps, batch, _ = value.shape
    if lengths is None:
        every = SEQUENCE(value.flip(0) if is_backwards else value, list(held))
        return (every.flip(0) if is_backwards else every), every[-1]
    ends = lengths.reshape(1, -1).clamp(0, steps).to(torch.int32)
    places = torch.arange(steps, dtype=torch.int32).reshape(-1, 1)
    inside = (places < ends).reshape(steps, batch, 1)
    row = torch.arange(batch, dtype=torch.int32).reshape(1, -1)
    # Rows by step, then by sequence: each sequence turned within its own length.
    turned = (torch.where(places < ends, ends - 1 - places, places) * batch + row).reshape(-1)

    def turn(rows: Tensor) -> Tensor:
        flat = rows.reshape(steps * batch, rows.shape[2])
        return torch.index_select(flat, 0, turned).reshape(rows.shape)

    every = SEQUENCE(turn(value) if is_backwards else value, list(held))
    size = every.shape[2]
    final = ((ends - 1).clamp(min=0) * batch + row).reshape(-1)
    last = torch.index_select(every.reshape(steps * batch, size), 0, final)
    # A sequence of no step ends as it begins.
    last = torch.where(ends.reshape(-1, 1) > 0, last, torch.zeros_like(last))
    every = turn(every) if is_backwards else every
    return torch.where(inside, every, torch.zeros_like(every)), last
