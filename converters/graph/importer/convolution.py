"""Convolution with every kind of padding, and its relatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.indexing import added
from converters.graph.importer.registry import Call, operator

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operator("Conv")
def conv(call: Call, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return convolved(call, value, weight, bias)


def convolved(call: Call, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By the attributes of a `Conv`, whatever the operator that has them."""
    rank = value.dim() - 2
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    before, after = pads_of(call, value.shape[2:], weight.shape[2:], strides, dilations)
    padding: Any = before
    if before != after:
        value, padding = functional.pad(value, widths(before, after)), 0
    return _CONV[rank](value, weight, bias, strides, padding, dilations, call.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = value.dim() - 2
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    extra = list(call.get("output_padding") or [0] * rank)
    kernel = weight.shape[2:]
    full = [
        strides[axis] * (value.shape[2 + axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        for axis in range(rank)
    ]
    before, after = _transposed_pads(call, full, value.shape[2:], strides)
    if before == after:
        return _CONV_TRANSPOSE[rank](
            value, weight, bias, strides, before, extra, call.get("group", 1), dilations
        )
    whole = _CONV_TRANSPOSE[rank](value, weight, bias, strides, 0, extra, call.get("group", 1), dilations)
    return functional.pad(whole, widths([-pad for pad in before], [-pad for pad in after]))


@operator("Col2Im", since=18, fixed=(1, 2))
def col2im(call: Call, value: Tensor, *_: Any) -> Tensor:
    """Columns of blocks added into their places; the places are known at load time."""
    image, block = call.needed_ints(1), call.needed_ints(2)
    rank = len(image)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    pads = list(call.get("pads") or [0] * (2 * rank))
    whole = [size + pads[axis] + pads[axis + rank] for axis, size in enumerate(image)]
    places = np.zeros([1] * (2 * rank), np.int64)
    for axis in range(rank):
        reach = (block[axis] - 1) * dilations[axis] + 1
        starts = np.arange((whole[axis] - reach) // strides[axis] + 1) * strides[axis]
        offsets = np.arange(block[axis])[:, None] * dilations[axis] + starts
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = offsets.shape
        places = places * whole[axis] + offsets.reshape(shape)
    batch, count = value.shape[0], int(np.prod(block))
    columns = value.reshape(batch, value.shape[1] // count, -1)
    result = added(columns, 2, places.reshape(-1), int(np.prod(whole)))
    result = result.reshape(*columns.shape[:2], *whole)
    for axis, size in enumerate(image):
        result = result.narrow(2 + axis, pads[axis], size)
    return result


def per_axis(call: Call, name: str, rank: int) -> list[int]:
    return list(call.get(name) or [1] * rank)


def widths(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads in torch's order: last axis first."""
    return [width for pair in reversed(list(zip(before, after, strict=True))) for width in pair]


def pads_of(
    call: Call,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Pads before and after each spatial axis, explicit or by `auto_pad`."""
    rank, auto = len(kernel), call.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = list(call.get("pads") or [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


def _transposed_pads(
    call: Call, full: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, auto = len(full), call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = list(call.get("pads") or [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    target = list(wanted)[-rank:] if wanted else [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [have - want for have, want in zip(full, target, strict=True)]
    if any(total < 0 for total in totals):
        # More is asked for than there is: zeros behind.
        return [max(0, total) // 2 for total in totals], [min(total, total - total // 2) for total in totals]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)
