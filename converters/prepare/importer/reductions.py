"""Reductions and selections along axes."""

from typing import Any

import torch
from torch import Tensor

from converters.prepare.importer.registry import Call, operator


def _axes(call: Call, value: Tensor) -> list[int] | None:
    """Axes to reduce, all of them where none are named; None where nothing is to be done."""
    named = call.ints(1, "axes")
    if not named:
        return None if call.get("noop_with_empty_axes", 0) else list(range(value.dim()))
    return [axis % value.dim() for axis in named]


def _reduce(call: Call, value: Tensor, axes: list[int], *, keep: bool) -> Tensor:
    match call.op_type:
        case "ReduceMean":
            return value.mean(axes, keepdim=keep)
        case "ReduceSum":
            return value.sum(axes, keepdim=keep, dtype=value.dtype)
        case "ReduceMax":
            return value.amax(axes, keepdim=keep)
        case "ReduceMin":
            return value.amin(axes, keepdim=keep)
        case "ReduceL1":
            return value.abs().sum(axes, keepdim=keep)
        case "ReduceL2":
            return (value * value).sum(axes, keepdim=keep).sqrt()
        case "ReduceSumSquare":
            return (value * value).sum(axes, keepdim=keep)
        case "ReduceLogSumExp":
            return torch.logsumexp(value, axes, keepdim=keep)
        case _:
            raise call.unsupported("this reduction")


@operator(
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)
def reduce(call: Call, value: Tensor, *_: Any) -> Tensor:
    axes = _axes(call, value)
    return value if axes is None else _reduce(call, value, axes, keep=bool(call.get("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call, value: Tensor) -> Tensor:
    call.require("select_last_index", 0)
    function = torch.argmax if call.op_type == "ArgMax" else torch.argmin
    return function(value, call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


@operator("CumSum", since=11)
def cumulative_sum(call: Call, value: Tensor, *_: Any) -> Tensor:
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise call.unsupported("exclusive or reverse")
    return torch.cumsum(value, call.needed_ints(1)[0])


@operator("TopK", since=10)
def top_k(call: Call, value: Tensor, *_: Any) -> Any:
    return torch.topk(
        value, call.needed_ints(1)[0], call.get("axis", -1), bool(call.get("largest", 1)), sorted=True
    )
