"""A recurrent layer, one direction of it, step after step.

What a step does is written once for each step, into the program and into what is shipped: so whatever does not depend on
the state (parts of weights, transposed ones, the input's share of each gate, masks) is made ahead of the steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Longest sequence that a recurrent layer is unrolled for: litert-torch takes a second or more for each step, and the model
# grows with them (128 steps of an LSTM of 32 units: seven minutes on a busy machine, 371 kB against 23 kB as ONNX).
MAX_STEPS = 256
# State (hidden, or hidden and cell) and the step's projected input, in the cell's parts → state.
Cell = Callable[..., tuple[Tensor, ...]]


def unrolled(
    pieces: Sequence[Tensor],
    lengths: Tensor | None,
    state: tuple[Tensor, ...],
    advance: Cell,
    *,
    is_backwards: bool,
) -> tuple[Tensor, ...]:
    """Every step's output (steps, batch, units), and the last states (batch, units).

    `pieces` are the projected input, rows by step and then by sequence, so that a step's are cut out with one operator. A
    step past a sequence's end keeps the state and puts out zeros.
    """
    batch, size = state[0].shape
    steps, inside = pieces[0].shape[0] // batch, None
    if lengths is not None:
        places = torch.arange(steps, dtype=lengths.dtype).reshape(-1, 1)
        inside = (places < lengths.reshape(1, -1)).reshape(steps * batch, 1)
    rows: list[Tensor] = []
    for step in reversed(range(steps)) if is_backwards else range(steps):
        own = slice(step * batch, (step + 1) * batch)
        following = advance(state, *(piece[own] for piece in pieces))
        rows.append(following[0])
        if inside is not None:
            reached = inside[own]
            following = tuple(
                torch.where(reached, new, old) for new, old in zip(following, state, strict=True)
            )
        state = following
    every = torch.cat(rows[::-1] if is_backwards else rows)
    if inside is not None:
        every = torch.where(inside, every, torch.zeros_like(every))
    return every.reshape(steps, batch, size), *state
