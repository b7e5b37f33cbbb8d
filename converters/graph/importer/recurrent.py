"""RNN, GRU and LSTM: directions, activations, clip, lengths, layouts, peepholes.

All are unrolled over their steps here, but for an LSTM that has nothing beside its gates: that one stays a single operator
(`lstm`), of which a converter makes what it likes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer import lstm as whole
from converters.graph.importer.registry import Call, operator
from converters.graph.importer.unrolled import MAX_STEPS, Cell, unrolled

# The number of a direction, its input, lengths and first states → every step's output, and the last states.
_Layer = Callable[[int, Tensor, Tensor | None, Sequence[Tensor | None]], tuple[Tensor, ...]]


@operator("RNN", since=7)
def rnn(call: Call, value: Tensor, weights: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Any:
    bias, lengths, hidden = (*rest, None, None, None)[:3]

    def cell(direction: int) -> Cell:
        (f,) = _activations(call, direction, ["Tanh"])
        clip, matrix = _clip(call), recurrence[direction].t()

        def step(state: tuple[Tensor, ...], projected: Tensor) -> tuple[Tensor, ...]:
            return (f(clip(projected + state[0] @ matrix)),)

        return step

    return _run(call, value, weights, bias, recurrence, lengths, starts=[hidden], cell=cell)


@operator("GRU", since=7)
def gru(call: Call, value: Tensor, weights: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Any:
    """Gates in ONNX's order: update, reset, hidden."""
    bias, lengths, hidden = (*rest, None, None, None)[:3]
    size = recurrence.shape[2]

    def cell(direction: int) -> Cell:
        f, g = _activations(call, direction, ["Sigmoid", "Tanh"])
        clip = _clip(call)
        widths = [2 * size, size]
        matrix, offset = recurrence[direction], None if bias is None else bias[direction][3 * size :]
        gates, last = (part.t() for part in torch.split(matrix, widths))
        of_gates, of_last = (None, None) if offset is None else offset.split(widths)
        whole, resets_after = matrix.t(), bool(call.get("linear_before_reset", 0))

        def step(state: tuple[Tensor, ...], for_gates: Tensor, for_last: Tensor) -> tuple[Tensor, ...]:
            before = state[0]
            if resets_after:
                # One product for all three: where ranges are taken at run time, the state is quantized once a step.
                share, inner = torch.split(_product(before, whole, offset), widths, 1)
            else:
                share = _product(before, gates, of_gates)
            update, reset = torch.split(f(clip(for_gates + share)), size, 1)
            inner = reset * inner if resets_after else _product(reset * before, last, of_last)
            fresh = g(clip(for_last + inner))
            return (fresh + update * (before - fresh),)

        return step

    return _run(
        call, value, weights, bias, recurrence, lengths, starts=[hidden], cell=cell, parts=[2 * size, size]
    )


@operator("LSTM", since=7)
def lstm(call: Call, value: Tensor, weights: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Any:
    """Gates in ONNX's order: input, output, forget, cell."""
    bias, lengths, hidden, memory, peepholes = (*rest, *[None] * 5)[:5]
    call.require("input_forget", 0)
    size = recurrence.shape[2]
    starts = [hidden, memory]
    if _is_plain(call, peepholes):
        return _as_layers(call, value, weights, bias, recurrence, lengths, starts=starts)

    def cell(direction: int) -> Cell:
        f, g, h = _activations(call, direction, ["Sigmoid", "Tanh", "Tanh"])
        clip = _clip(call)
        peeps = None if peepholes is None else torch.split(peepholes[direction], size)
        matrix = recurrence[direction].t()

        def step(state: tuple[Tensor, ...], projected: Tensor) -> tuple[Tensor, ...]:
            before, kept = state
            gates = projected + before @ matrix
            entry, leave, forget, fresh = torch.split(gates, size, 1)
            if peeps is not None:
                entry, forget = entry + peeps[0] * kept, forget + peeps[2] * kept
            following = f(clip(forget)) * kept + f(clip(entry)) * g(clip(fresh))
            if peeps is not None:
                leave = leave + peeps[1] * following
            return f(clip(leave)) * h(following), following

        return step

    return _run(call, value, weights, bias, recurrence, lengths, starts=starts, cell=cell)


def _is_plain(call: Call, peepholes: Tensor | None) -> bool:
    """Whether an LSTM is what torch knows by that name."""
    usual = ["sigmoid", "tanh", "tanh"]
    names = [name.lower() for name in call.get("activations") or usual]
    return peepholes is None and call.get("clip") is None and names == usual * (len(names) // 3)


def _as_layers(  # noqa: PLR0917  # the operator's own inputs, in their order
    call: Call,
    value: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    recurrence: Tensor,
    lengths: Tensor | None,
    *,
    starts: Sequence[Tensor | None],
) -> Any:
    """A plain LSTM, each direction one operator."""
    # As torch and LiteRT have the gates, in rows of the matrices.
    size = recurrence.shape[2]
    places = torch.cat([torch.arange(gate * size, (gate + 1) * size) for gate in (0, 2, 3, 1)])

    def layer(
        direction: int, value: Tensor, lengths: Tensor | None, state: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        offset = None
        if bias is not None:
            ahead, inside = torch.split(bias[direction], 4 * size)
            offset = (ahead + inside)[places]
        found: tuple[Tensor, ...] = whole.LSTM(
            value,
            weights[direction][places],
            recurrence[direction][places],
            offset,
            lengths,
            *state,
            _is_backwards(call, direction),
        )
        return found

    return _of_directions(call, value, weights.shape[0], lengths, starts, layer)


def _run(  # noqa: PLR0917  # the operators' own inputs, in their order
    call: Call,
    value: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    recurrence: Tensor,
    lengths: Tensor | None,
    *,
    starts: Sequence[Tensor | None],
    cell: Callable[[int], Cell],
    parts: Sequence[int] = (),
) -> Any:
    """All directions, unrolled.

    `parts` are the widths in which the cell takes the projected input, if it has a bias of its own for the state's product
    (a GRU's reset falls on one); else it takes the whole, both biases within. Raises: UnsupportedOperatorsError for more steps
    than are unrolled.
    """
    steps = value.shape[1 if call.get("layout", 0) else 0]
    if steps > MAX_STEPS:
        raise call.unsupported(f"{steps} steps (at most {MAX_STEPS} are unrolled)")
    size, half = recurrence.shape[2], weights.shape[1]

    def layer(
        direction: int, value: Tensor, lengths: Tensor | None, state: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        offset = None
        if bias is not None:
            offset = bias[direction][:half] + (0 if parts else bias[direction][half:])
        batch = value.shape[1]
        projected = functional.linear(value.reshape(steps * batch, -1), weights[direction], offset)
        return unrolled(
            torch.split(projected, list(parts), 1) if parts else (projected,),
            lengths,
            tuple(torch.zeros(batch, size, dtype=value.dtype) if one is None else one for one in state),
            cell(direction),
            is_backwards=_is_backwards(call, direction),
        )

    return _of_directions(call, value, weights.shape[0], lengths, starts, layer)


def _of_directions(  # noqa: PLR0917  # what the operators have in common
    call: Call,
    value: Tensor,
    directions: int,
    lengths: Tensor | None,
    starts: Sequence[Tensor | None],
    layer: _Layer,
) -> Any:
    """The results of all directions as the operator gives them."""
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        value = value.transpose(0, 1)
        starts = [None if start is None else start.transpose(0, 1) for start in starts]
    found = [
        layer(direction, value, lengths, [None if start is None else start[direction] for start in starts])
        for direction in range(directions)
    ]
    outputs, *finals = zip(*found, strict=True)
    every = torch.stack(list(outputs), 2 if batch_first else 1)
    every = every.transpose(0, 1) if batch_first else every
    results = (every, *(torch.stack(list(states), 1 if batch_first else 0) for states in finals))
    return results[0] if call.outputs == 1 else results[: call.outputs]


def _is_backwards(call: Call, direction: int) -> bool:
    return call.get("direction") == "reverse" or direction == 1


def _product(value: Tensor, matrix: Tensor, offset: Tensor | None) -> Tensor:
    return value @ matrix if offset is None else torch.addmm(offset, value, matrix)


def _clip(call: Call) -> Callable[[Tensor], Tensor]:
    limit = call.get("clip")
    return (lambda value: value) if limit is None else partial(torch.clamp, min=-limit, max=limit)


def _activations(call: Call, direction: int, usual: list[str]) -> list[Callable[[Tensor], Tensor]]:
    """The direction's activations. Raises: UnsupportedOperatorsError."""
    names = call.get("activations") or usual * (direction + 1)
    alphas, betas = call.get("activation_alpha") or [], call.get("activation_beta") or []
    count = len(usual)
    found = []
    for index in range(direction * count, (direction + 1) * count):
        alpha = alphas[index] if index < len(alphas) else None
        beta = betas[index] if index < len(betas) else None
        function = _activation(names[index], alpha, beta)
        if function is None:
            raise call.unsupported(f"activation {names[index]!r}")
        found.append(function)
    return found


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor] | None:
    """Case does not matter. Defaults of the parameters are those of the operators of the same name."""
    first = {"leakyrelu": 0.01, "thresholdedrelu": 1.0, "hardsigmoid": 0.2, "elu": 1.0, "affine": 1.0}
    a = first.get(name.lower(), 1.0) if alpha is None else alpha
    b = {"hardsigmoid": 0.5, "affine": 0.0}.get(name.lower(), 1.0) if beta is None else beta
    table: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": functional.softsign,
        "softplus": functional.softplus,
        "affine": lambda value: a * value + b,
        "leakyrelu": lambda value: functional.leaky_relu(value, a),
        "thresholdedrelu": lambda value: torch.where(value > a, value, torch.zeros_like(value)),
        "scaledtanh": lambda value: a * torch.tanh(b * value),
        "hardsigmoid": lambda value: torch.clamp(a * value + b, 0.0, 1.0),
        "elu": lambda value: functional.elu(value, a),
    }
    return table.get(name.lower())
