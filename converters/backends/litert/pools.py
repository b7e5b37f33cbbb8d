"""Rules that rewrite pooling into what LiteRT has int8 kernels for (as `litert.rewrites`; litert-torch 0.10).

Of a pool that its table of kernels does not hold, LiteRT's converter makes a STABLEHLO_REDUCE_WINDOW, which runs in
reference code, on no accelerator, and not in integers.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from converters.backends.litert.entering import entered
from converters.graph.importer.taps import max_along

_ATEN = torch.ops.aten
_MAX_POOLS = {
    _ATEN.max_pool2d.default: 2,
    _ATEN.max_pool2d_with_indices.default: 2,
    _ATEN.max_pool3d.default: 3,
    _ATEN.max_pool3d_with_indices.default: 3,
}


def spread_maximum(made: GraphModule, node: Node) -> None:
    """A maximum pool with dilations, or over three axes, by slices."""
    rank = _MAX_POOLS.get(node.target)
    if rank is None:
        return
    kernel, strides, pads, dilations = _settings(node, rank)
    if rank == 2 and all(dilation == 1 for dilation in dilations):
        return
    result = node.meta["val"]
    users = [node]
    if isinstance(result, (tuple, list)):
        # Of the places of the maxima no slice tells.
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
            return
        result, users = result[0], list(node.users)
    value = node.args[0]
    first = value.meta["val"].dim() - rank

    def pooled(tensor: torch.Tensor) -> torch.Tensor:
        for axis in range(rank):
            starts = [index * strides[axis] - pads[axis] for index in range(result.shape[first + axis])]
            tensor = max_along(tensor, first + axis, starts, kernel[axis], dilations[axis])
        return tensor

    (last,) = entered(made, node, pooled, [value])
    for user in users:
        user.replace_all_uses_with(last)


def counted_average(made: GraphModule, node: Node) -> None:
    """An average that does not count its pads, by one that does, times how much of each window lies inside."""
    if node.target is not _ATEN.avg_pool2d.default:
        return
    value, rest = node.args[0], list(node.args[2:])
    kernel, strides, pads, _ = _settings(node, 2)
    tail = [*rest[2:], *(False, True, None)[len(rest[2:]) :]]
    ceil, counts_pads, divisor = tail[0], tail[1], tail[2]
    if not any(pads) or ceil or counts_pads or divisor is not None:
        return
    shape = value.meta["val"].shape
    inside = torch.nn.functional.avg_pool2d(torch.ones(1, 1, *shape[-2:]), kernel, strides, pads)
    factor = 1 / inside

    def pooled(tensor: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.pad(tensor, [pads[1], pads[1], pads[0], pads[0]])
        return torch.nn.functional.avg_pool2d(wide, kernel, strides) * factor

    (last,) = entered(made, node, pooled, [value])
    node.replace_all_uses_with(last)


def _settings(node: Node, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, pads and dilations, one an axis."""
    given: list[Any] = [*node.args[1:5], *([],) * 4]
    if node.target is _ATEN.avg_pool2d.default:
        given[3] = []
    kernel = _per_axis(given[0], rank, 1)
    strides = _per_axis(given[1], rank, 1) if given[1] else kernel
    return kernel, strides, _per_axis(given[2], rank, 0), _per_axis(given[3], rank, 1)


def _per_axis(values: Any, rank: int, default: int) -> list[int]:
    numbers = [values] if isinstance(values, int) else list(values) or [default]
    return numbers * rank if len(numbers) == 1 else numbers


RULES: tuple[Callable[[GraphModule, Node], None], ...] = (spread_maximum, counted_average)
