"""Reductions and selections along axes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from converters.graph.importer.registry import Call, operator


def _axes(call: Call, value: Tensor) -> list[int] | None:
    """Axes to reduce, all of them where none are named; None where nothing is to be done."""
    named = call.ints(1, "axes")
    if not named:
        return None if call.get("noop_with_empty_axes", 0) else list(range(value.dim()))
    return [axis % value.dim() for axis in named]


def _product(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        value = value.prod(axis, keepdim=keep, dtype=value.dtype)
    return value


def _extreme(
    value: Tensor, axes: list[int], keep: bool, function: Callable[..., Tensor], limit: str
) -> Tensor:
    """Of nothing: the limit of the type, infinite where it has infinity."""
    if value.numel() and value.dtype == torch.bool:
        # LiteRT has no extremes of booleans.
        return function(value.to(torch.int32), axes, keepdim=keep).to(torch.bool)
    if value.numel():
        return function(value, axes, keepdim=keep)
    shape = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
    if not keep:
        shape = [size for axis, size in enumerate(value.shape) if axis not in axes]
    number = float("-inf" if limit == "min" else "inf")
    if value.dtype == torch.bool:
        number = limit == "max"
    elif not value.is_floating_point():
        number = getattr(torch.iinfo(value.dtype), limit)
    return torch.full(shape, number, dtype=value.dtype)


_REDUCTIONS: Mapping[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda value, axes, keep: value.mean(axes, keepdim=keep),
    "ReduceSum": lambda value, axes, keep: value.sum(axes, keepdim=keep, dtype=value.dtype),
    "ReduceMax": lambda value, axes, keep: _extreme(value, axes, keep, torch.amax, "min"),
    "ReduceMin": lambda value, axes, keep: _extreme(value, axes, keep, torch.amin, "max"),
    "ReduceL1": lambda value, axes, keep: value.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda value, axes, keep: (value * value).sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda value, axes, keep: (value * value).sum(axes, keepdim=keep),
    "ReduceLogSum": lambda value, axes, keep: value.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda value, axes, keep: torch.logsumexp(value, axes, keepdim=keep),
    "ReduceProd": _product,
}


@operator(*_REDUCTIONS, fixed=(1,))
def reduce(call: Call, value: Tensor, *_: Any) -> Tensor:
    axes = _axes(call, value)
    return value if axes is None else _REDUCTIONS[call.op_type](value, axes, bool(call.get("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call, value: Tensor) -> Tensor:
    function = torch.argmax if call.op_type == "ArgMax" else torch.argmin
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    if call.get("select_last_index", 0):
        return value.shape[axis] - 1 - function(value.flip(axis), axis, keepdim=keep)
    return function(value, axis, keepdim=keep)


@operator("CumSum", "CumProd", since=11, fixed=(1,))
def cumulative(call: Call, value: Tensor, *_: Any) -> Tensor:
    """Exclusive: shifted by one, so that each entry sees only those before it."""
    axis = call.needed_ints(1)[0] % value.dim()
    is_sum = call.op_type == "CumSum"
    value = value.flip(axis) if call.get("reverse", 0) else value
    result = torch.cumsum(value, axis, dtype=value.dtype) if is_sum else _cumulative_product(value, axis)
    if call.get("exclusive", 0):
        first = torch.full_like(value.narrow(axis, 0, 1), 0 if is_sum else 1)
        result = torch.cat([first, result.narrow(axis, 0, value.shape[axis] - 1)], axis)
    return result.flip(axis) if call.get("reverse", 0) else result


def _cumulative_product(value: Tensor, axis: int) -> Tensor:
    """By doubling, for which litert-torch 0.10 has the operators: each entry times the one `step` before it."""
    size, step = value.shape[axis], 1
    while step < size:
        ones = torch.ones_like(value.narrow(axis, 0, step))
        value = value * torch.cat([ones, value.narrow(axis, 0, size - step)], axis)
        step *= 2
    return value


@operator("TopK", since=10, fixed=(1,))
def top_k(call: Call, value: Tensor, *_: Any) -> Any:
    """Of rows, and the smallest as the largest of what counts down: anything else becomes a sort, which LiteRT does not have.

    litert-torch 0.10 takes an axis of a tensor of four for another one, where it moves the channels.
    """
    count, axis = call.needed_ints(1)[0], call.get("axis", -1)
    rows = value.movedim(axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    is_largest = call.get("largest", 1)
    found, places = torch.topk(flat if is_largest else _turned(flat), count, -1, sorted=True)
    shape = [*rows.shape[:-1], count]
    found = found if is_largest else _turned(found)
    return found.reshape(shape).movedim(-1, axis), places.reshape(shape).movedim(-1, axis)


def _turned(value: Tensor) -> Tensor:
    """Of integers -1 - x: the lowest has no negative."""
    return -value if value.is_floating_point() else -1 - value
