"""Sampling at places that need not lie on the grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.convolution import per_axis
from converters.graph.importer.registry import Call, operator


@operator("GridSample", since=16)
def grid_sample(call: Call, value: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.get("mode", "linear"), call.get("mode", "linear")
    )
    padding = call.get("padding_mode", "zeros")
    if value.dim() == 5 and mode == "bicubic":
        raise call.unsupported("cubic volumes")
    # litert-torch 0.10 has no samples of volumes, and no reflection for want of bitwise operators.
    if value.dim() == 5 or (padding == "reflection" and mode != "bicubic"):
        places = [_on_grid(call, grid[..., -1 - axis], size) for axis, size in enumerate(value.shape[2:])]
        function = _nearest if mode == "nearest" else _linear
        return function(value, [place.flatten(1) for place in places]).reshape(
            *value.shape[:2], *grid.shape[1:-1]
        )
    return functional.grid_sample(value, grid, mode, padding, bool(call.get("align_corners", 0)))


@operator("AffineGrid", since=20, fixed=(1,))
def affine_grid(call: Call, theta: Tensor, *_: Any) -> Tensor:
    return functional.affine_grid(
        theta, call.needed_ints(1), align_corners=bool(call.get("align_corners", 0))
    )


@operator("RoiAlign", since=10)
def roi_align(call: Call, value: Tensor, regions: Tensor, batches: Tensor) -> Tensor:
    """Bilinear samples of each bin, averaged, or the largest share of a corner in one.

    Raises: UnsupportedOperatorsError.
    """
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    count = call.get("sampling_ratio", 0)
    if count <= 0:
        raise call.unsupported("sampling_ratio = 0, whose number of samples depends on data")
    half = call.opset >= 16 and call.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    corners = regions * call.get("spatial_scale", 1.0) - (0.5 if half else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    extent = extent if half else torch.clamp(extent, min=1.0)
    steps_y = torch.from_numpy(((np.arange(height * count) + 0.5) / (height * count)).astype(np.float32))
    steps_x = torch.from_numpy(((np.arange(width * count) + 0.5) / (width * count)).astype(np.float32))
    rows = corners[:, 1:2] + extent[:, 1:2] * steps_y
    columns = corners[:, 0:1] + extent[:, 0:1] * steps_x
    weights_y, weights_x = _shares(rows, value.shape[2]), _shares(columns, value.shape[3])
    taken = torch.index_select(value, 0, batches.to(torch.int64))
    bins = (*taken.shape[:2], height, count, width, count)
    if call.get("mode", "avg") == "avg":
        samples = torch.matmul(
            torch.matmul(weights_y.unsqueeze(1), taken), weights_x.unsqueeze(1).transpose(2, 3)
        )
        return samples.reshape(bins).mean([3, 5])
    largest = _largest_shares(taken, rows, columns)
    return largest.reshape(bins).amax([3, 5])


def _largest_shares(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """For each row and column of places the largest of its four corners, each times its share (N, C, rows, columns)."""
    batch, channels, height, width = value.shape
    flat = value.reshape(batch, channels, -1)
    corners = []
    for row, down in _ends(rows, height):
        for column, across in _ends(columns, width):
            share = down.unsqueeze(2) * across.unsqueeze(1)
            corners.append(
                _taken(flat, (row.unsqueeze(2) * width + column.unsqueeze(1)).flatten(1))
                * share.flatten(1).unsqueeze(1)
            )
    return torch.stack(corners).amax(0).reshape(batch, channels, rows.shape[1], columns.shape[1])


def _ends(places: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The entries on both sides of each place with their shares, none where it is more than one entry outside."""
    inside = ((places >= -1) & (places <= size)).to(places.dtype)
    clamped = torch.clamp(places, 0, size - 1)
    low = torch.floor(clamped)
    high = torch.clamp(low + 1, max=size - 1)
    part = clamped - low
    return [(low.to(torch.int64), (1 - part) * inside), (high.to(torch.int64), part * inside)]


def _shares(places: Tensor, size: int) -> Tensor:
    """Bilinear shares of `size` entries at each place, (…, places, size); none more than one entry outside."""
    inside = ((places >= -1) & (places <= size)).to(places.dtype).unsqueeze(-1)
    clamped = torch.clamp(places, 0, size - 1).unsqueeze(-1)
    return torch.clamp(1 - (clamped - torch.arange(size, dtype=places.dtype)).abs(), min=0) * inside


@operator("DeformConv", since=19)
def deform_conv(  # noqa: PLR0917  # the operator's own inputs, in their order
    call: Call,
    value: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """A convolution whose kernel takes each entry from a place of its own: samples, then one product of matrices."""
    if value.dim() != 4:
        raise call.unsupported(f"{value.dim() - 2} spatial axes")
    batch, channels = value.shape[:2]
    kernel, out = list(weight.shape[2:]), list(offset.shape[2:])
    strides, dilations = per_axis(call, "strides", 2), per_axis(call, "dilations", 2)
    pads, shared = call.get("pads") or [0] * 4, call.get("offset_group", 1)
    moved = offset.reshape(batch * shared, *kernel, 2, *out)
    places = []
    for axis in range(2):
        tap = np.arange(kernel[axis]) * dilations[axis] - pads[axis]
        start = np.arange(out[axis]) * strides[axis]
        fixed = tap.reshape([-1 if index == axis else 1 for index in range(4)]) + start.reshape(
            [-1 if index == 2 + axis else 1 for index in range(4)]
        )
        places.append((moved[:, :, :, axis] + torch.from_numpy(fixed).to(value.dtype)).flatten(1))
    samples = _linear(value.reshape(batch * shared, channels // shared, *value.shape[2:]), places)
    if mask is not None:
        samples = samples * mask.reshape(batch * shared, 1, -1)
    groups = call.get("group", 1)
    columns = samples.reshape(batch, groups, channels // groups * kernel[0] * kernel[1], -1)
    result = torch.matmul(weight.reshape(1, groups, weight.shape[0] // groups, -1), columns)
    result = result.reshape(batch, weight.shape[0], *out)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _linear(value: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Linear samples (N, C, P) of a value (N, C, …) at places, (N, P) for each of its axes; zeros outside."""
    flat = value.flatten(2)
    total: Any = 0.0
    lows = [torch.floor(place) for place in places]
    for corner in np.ndindex(*[2] * len(places)):
        share: Any = 1.0
        index: Any = 0
        for step, place, low, size in zip(corner, places, lows, value.shape[2:], strict=True):
            at = low + step
            inside = ((at >= 0) & (at <= size - 1)).to(value.dtype)
            share = share * (1 - (place - at).abs()) * inside
            index = index * size + torch.clamp(at, 0, size - 1)
        total = total + _taken(flat, index.to(torch.int64)) * share.unsqueeze(1)
    return total


def _nearest(value: Tensor, places: Sequence[Tensor]) -> Tensor:
    """As `_linear`, of the nearest entry, an even one where two are as near."""
    share: Any = 1.0
    index: Any = 0
    for place, size in zip(places, value.shape[2:], strict=True):
        at = torch.round(place)
        share = share * ((at >= 0) & (at <= size - 1)).to(value.dtype)
        index = index * size + torch.clamp(at, 0, size - 1)
    return _taken(value.flatten(2), index.to(torch.int64)) * share.unsqueeze(1)


def _taken(flat: Tensor, index: Tensor) -> Tensor:
    """Entries (N, C, P) of rows (N, C, S) at places (N, P)."""
    return torch.gather(flat, 2, index.unsqueeze(1).expand(-1, flat.shape[1], -1))


def _on_grid(call: Call, place: Tensor, size: int) -> Tensor:
    """From -1..1 to entries, moved inside by the padding mode."""
    aligned, padding = bool(call.get("align_corners", 0)), call.get("padding_mode", "zeros")
    place = (place + 1) / 2 * (size - 1) if aligned else ((place + 1) * size - 1) / 2
    if padding == "reflection":
        low, span = (0.0, size - 1.0) if aligned else (-0.5, float(size))
        if span == 0:
            return torch.zeros_like(place)
        beyond = torch.remainder((place - low).abs(), 2 * span)
        place = torch.minimum(beyond, 2 * span - beyond) + low
    return place if padding == "zeros" else torch.clamp(place, 0, size - 1)
