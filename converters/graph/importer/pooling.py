"""Pooling: by torch where its rule is the operator's, otherwise over the places of the kernel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.convolution import pads_of, per_axis, widths
from converters.graph.importer.registry import Call, operator
from converters.graph.importer.taps import max_along

_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("MaxPool")
def max_pool(call: Call, value: Tensor) -> Any:
    if call.outputs > 1 or not value.is_floating_point():
        return _max_by_windows(call, value)
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    before, after = pads_of(call, value.shape[2:], kernel, strides, dilations)
    if rank == 3 or any(dilation != 1 for dilation in dilations):
        counts = _counts(call, value.shape[2:], kernel)
        for axis in range(rank):
            starts = [index * strides[axis] - before[axis] for index in range(counts[axis])]
            value = max_along(value, 2 + axis, starts, kernel[axis], dilations[axis])
        return value
    padding: Any = before
    # torch pads by half a kernel at most, and alike on both sides.
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        value, padding = functional.pad(value, widths(before, after), value=float("-inf")), 0
    return _MAX_POOL[rank](
        value, kernel, strides, padding, dilations, ceil_mode=bool(call.get("ceil_mode", 0))
    )


@operator("AveragePool")
def average_pool(call: Call, value: Tensor) -> Tensor:
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides = per_axis(call, "strides", rank)
    if any(width != 1 for width in per_axis(call, "dilations", rank)) or call.get("ceil_mode", 0):
        return _average_by_windows(call, value)
    before, after = pads_of(call, value.shape[2:], kernel, strides, [1] * rank)
    ceil, counts_pad = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    pool = _AVERAGE_POOL[rank]
    if before == after and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True)):
        return pool(value, kernel, strides, before, ceil_mode=ceil, count_include_pad=counts_pad)
    padded = functional.pad(value, widths(before, after))
    averaged = pool(padded, kernel, strides, 0, ceil_mode=ceil)
    if counts_pad:
        return averaged
    # Divide by the share of each window that is not padding.
    inside = functional.pad(torch.ones_like(value), widths(before, after))
    return averaged / pool(inside, kernel, strides, 0, ceil_mode=ceil)


@operator("GlobalAveragePool")
def global_average_pool(_call: Call, value: Tensor) -> Tensor:
    return value.mean(list(range(2, value.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_call: Call, value: Tensor) -> Tensor:
    return value.amax(list(range(2, value.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, value: Tensor) -> Tensor:
    p = call.get("p", 2)
    return torch.pow(torch.pow(value.abs(), p).sum(list(range(2, value.dim())), keepdim=True), 1.0 / p)


@operator("LpPool")
def lp_pool(call: Call, value: Tensor) -> Tensor:
    """Powers of a flat tensor: LiteRT's have no more than four axes."""
    p = call.get("p", 2)
    raised = torch.pow(value.abs().reshape(-1), p).reshape(value.shape)
    total = torch.stack(_windows(call, raised, 0.0)).sum(0)
    return torch.pow(total.reshape(-1), 1.0 / p).reshape(total.shape)


@operator("MaxUnpool", since=9, fixed=(2,))
def max_unpool(call: Call, value: Tensor, places: Tensor, *_: Any) -> Tensor:
    """Places count through the whole output that the attributes give; a larger one asked for is filled up."""
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, pads = per_axis(call, "strides", rank), list(call.get("pads") or [0] * (2 * rank))
    shape = [
        *value.shape[:2],
        *(
            (value.shape[2 + axis] - 1) * strides[axis] - pads[axis] - pads[axis + rank] + kernel[axis]
            for axis in range(rank)
        ),
    ]
    flat = torch.zeros(int(np.prod(shape)), dtype=value.dtype)
    result = torch.scatter(flat, 0, places.reshape(-1), value.reshape(-1)).reshape(shape)
    wanted = call.ints(2)
    if wanted is None:
        return result
    return functional.pad(
        result, widths([0] * rank, [new - old for new, old in zip(wanted[2:], shape[2:], strict=True)])
    )


def _counts(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """How many windows there are along each axis."""
    rank = len(kernel)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    before, after = pads_of(call, sizes, kernel, strides, dilations)
    counts = []
    for axis, size in enumerate(sizes):
        room = size + before[axis] + after[axis] - ((kernel[axis] - 1) * dilations[axis] + 1)
        count = (-(-room // strides[axis]) if call.get("ceil_mode", 0) else room // strides[axis]) + 1
        # None starts behind the entries.
        counts.append(count - 1 if (count - 1) * strides[axis] >= size + before[axis] else count)
    return counts


def _windows(call: Call, value: Tensor, fill: float) -> list[Tensor]:
    """One tensor for each place in the kernel: what all windows see there; past the edges `fill`."""
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    before, after = pads_of(call, value.shape[2:], kernel, strides, dilations)
    counts = _counts(call, value.shape[2:], kernel)
    behind = [
        max(
            after[axis],
            (counts[axis] - 1) * strides[axis]
            + (kernel[axis] - 1) * dilations[axis]
            + 1
            - value.shape[2 + axis]
            - before[axis],
        )
        for axis in range(rank)
    ]
    padded = functional.pad(value, widths(before, behind), value=fill)
    found = []
    for offsets in np.ndindex(*kernel):
        part = padded
        for axis, offset in enumerate(offsets):
            start = offset * dilations[axis]
            index = [slice(None)] * (2 + axis)
            index.append(slice(start, start + (counts[axis] - 1) * strides[axis] + 1, strides[axis]))
            part = part[tuple(index)]
        found.append(part)
    return found


def _average_by_windows(call: Call, value: Tensor) -> Tensor:
    """Divided by how many entries of a window lie inside, or inside the padding where that counts."""
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    before, after = pads_of(call, value.shape[2:], kernel, strides, dilations)
    total = torch.stack(_windows(call, value, 0.0)).sum(0)
    counts = np.ones([1] * total.dim(), np.float32)
    for axis in range(rank):
        starts = np.arange(total.shape[2 + axis])[:, None] * strides[axis] - before[axis]
        places = starts + np.arange(kernel[axis]) * dilations[axis]
        counted = call.get("count_include_pad", 0)
        first, last = (-before[axis], after[axis]) if counted else (0, 0)
        inside = ((places >= first) & (places < value.shape[2 + axis] + last)).sum(1)
        counts = counts * inside.reshape([-1 if index == 2 + axis else 1 for index in range(total.dim())])
    return total / torch.from_numpy(counts.astype(np.float32)).to(value.dtype)


def _max_by_windows(call: Call, value: Tensor) -> Any:
    """The largest entries, and their places in the flattened input, by rows or by columns (`storage_order`)."""
    least = float("-inf") if value.is_floating_point() else torch.iinfo(value.dtype).min
    parts = torch.stack(_windows(call, value, least))
    if call.outputs == 1:
        return parts.amax(0)
    shape = list(value.shape)
    order = list(range(len(shape)))
    if call.get("storage_order", 0):
        order = [0, 1, *reversed(order[2:])]
    numbers = np.arange(value.numel()).reshape([shape[axis] for axis in order])
    places = torch.from_numpy(np.ascontiguousarray(numbers.transpose(np.argsort(order)))).to(torch.float64)
    table = torch.stack(_windows(call, places, 0.0)).to(torch.int64)
    best = parts.argmax(0, keepdim=True)
    return parts.amax(0), torch.gather(table, 0, best)[0]
