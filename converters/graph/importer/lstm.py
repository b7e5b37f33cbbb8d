"""One direction of an LSTM as a single operator of torch, which stays one until somebody takes it apart.

Gates are in torch's order, which is LiteRT's too: input, forget, cell, output.
"""

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.unrolled import unrolled


def stepwise(  # noqa: PLR0917  # as torch's operators have them
    value: Tensor,
    weights: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    hidden: Tensor | None,
    memory: Tensor | None,
    is_backwards: bool,  # torch takes operators' arguments by place
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer step after step. `value` is (steps, batch, width), `lengths` (batch); a state that is left out is zero."""
    (steps, batch), size = value.shape[:2], recurrence.shape[1]
    matrix = recurrence.t()

    def cell(state: tuple[Tensor, ...], projected: Tensor) -> tuple[Tensor, ...]:
        before, kept = state
        entry, forget, fresh, leave = torch.split(projected + before @ matrix, size, 1)
        following = torch.sigmoid(forget) * kept + torch.sigmoid(entry) * torch.tanh(fresh)
        return torch.sigmoid(leave) * torch.tanh(following), following

    projected = functional.linear(value.reshape(steps * batch, -1), weights, bias)
    states = tuple(
        torch.zeros(batch, size, dtype=value.dtype) if one is None else one for one in (hidden, memory)
    )
    every, last, left = unrolled((projected,), lengths, states, cell, is_backwards=is_backwards)
    return every, last, left


LSTM = torch.library.custom_op("edgekit::lstm", stepwise, mutates_args=())


@LSTM.register_fake  # type: ignore[untyped-decorator]  # torch is untyped here
def _shapes(value: Tensor, weights: Tensor, recurrence: Tensor, *_: object) -> tuple[Tensor, ...]:
    del weights
    (steps, batch), size = value.shape[:2], recurrence.shape[1]
    return value.new_empty((steps, batch, size)), *(value.new_empty((batch, size)) for _ in range(2))
