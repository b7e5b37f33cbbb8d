"""RNN, GRU and LSTM, unrolled over their steps: directions, activations, clip, lengths, layouts, peepholes.

What a step does is written once for each step, into the program and into what is shipped: so whatever does not depend on
the state (parts of weights, transposed ones, the input's share of each gate, masks) is made ahead of the steps.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.registry import Call, operator

# Longest sequence that a recurrent layer is unrolled for: litert-torch takes a second or more for each step, and the model
# grows with them (128 steps of an LSTM of 32 units: seven minutes on a busy machine, 371 kB against 23 kB as ONNX).
MAX_STEPS = 256
# State (hidden, or hidden and cell) and the step's projected input, in the cell's parts → state.
_Cell = Callable[..., tuple[Tensor, ...]]


@operator("RNN", since=7)
def rnn(call: Call, value: Tensor, weights: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Any:
    bias, lengths, hidden = (*rest, None, None, None)[:3]

    def cell(direction: int) -> _Cell:
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

    def cell(direction: int) -> _Cell:
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

    def cell(direction: int) -> _Cell:
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

    return _run(call, value, weights, bias, recurrence, lengths, starts=[hidden, memory], cell=cell)


def _run(  # noqa: PLR0917  # the operators' own inputs, in their order
    call: Call,
    value: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    recurrence: Tensor,
    lengths: Tensor | None,
    *,
    starts: Sequence[Tensor | None],
    cell: Callable[[int], _Cell],
    parts: Sequence[int] = (),
) -> Any:
    """All directions. A step past a sequence's end keeps the state and puts out zeros.

    `parts` are the widths in which the cell takes the projected input, if it has a bias of its own for the state's product
    (a GRU's reset falls on one); else it takes the whole, both biases within.
    """
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        value = value.transpose(0, 1)
        starts = [None if start is None else start.transpose(0, 1) for start in starts]
    steps, batch = value.shape[:2]
    if steps > MAX_STEPS:
        raise call.unsupported(f"{steps} steps (at most {MAX_STEPS} are unrolled)")
    size, half = recurrence.shape[2], weights.shape[1]
    # Rows by step, then by sequence: a step's are cut out with one operator.
    flat, inside = value.reshape(steps * batch, -1), None
    if lengths is not None:
        places = torch.arange(steps, dtype=lengths.dtype).reshape(-1, 1)
        inside = (places < lengths.reshape(1, -1)).reshape(steps * batch, 1)
    outputs, finals = [], []
    for direction in range(weights.shape[0]):
        backwards = call.get("direction") == "reverse" or direction == 1
        offset = None
        if bias is not None:
            offset = bias[direction][:half] + (0 if parts else bias[direction][half:])
        state = tuple(
            torch.zeros(batch, size, dtype=value.dtype) if start is None else start[direction]
            for start in starts
        )
        projected = functional.linear(flat, weights[direction], offset)
        pieces = torch.split(projected, list(parts), 1) if parts else (projected,)
        advance = cell(direction)
        rows: list[Tensor] = []
        for step in reversed(range(steps)) if backwards else range(steps):
            own = slice(step * batch, (step + 1) * batch)
            following = advance(state, *(piece[own] for piece in pieces))
            rows.append(following[0])
            if inside is not None:
                reached = inside[own]
                following = tuple(
                    torch.where(reached, new, old) for new, old in zip(following, state, strict=True)
                )
            state = following
        whole = torch.cat(rows[::-1] if backwards else rows)
        if inside is not None:
            whole = torch.where(inside, whole, torch.zeros_like(whole))
        outputs.append(whole.reshape(steps, batch, size))
        finals.append(state)
    whole = torch.stack(outputs, 2 if batch_first else 1)
    whole = whole.transpose(0, 1) if batch_first else whole
    lasts = [torch.stack(list(states), 1 if batch_first else 0) for states in zip(*finals, strict=True)]
    results = (whole, *lasts)
    return results[0] if call.outputs == 1 else results[: call.outputs]


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
