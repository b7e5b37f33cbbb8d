"""Operators that move or select data and compute shapes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters.graph.importer.registry import Call, operator


@operator("Reshape", fixed=(1,))
def reshape(call: Call, value: Tensor, *_: Any) -> Tensor:
    wanted = call.needed_ints(1, "shape")
    if not call.get("allowzero", 0):
        wanted = [value.shape[index] if size == 0 else size for index, size in enumerate(wanted)]
    return value.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, value: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis += value.dim() if axis < 0 else 0
    rows = int(np.prod(value.shape[:axis]))
    return value.reshape(rows, -1) if value.numel() else value.reshape(rows, int(np.prod(value.shape[axis:])))


@operator("Transpose")
def transpose(call: Call, value: Tensor) -> Tensor:
    return value.permute(call.get("perm") or list(range(value.dim()))[::-1])


@operator("Concat")
def concat(call: Call, *values: Tensor) -> Tensor:
    return torch.cat(values, call.get("axis", 1))


@operator("Squeeze", fixed=(1,))
def squeeze(call: Call, value: Tensor, *_: Any) -> Tensor:
    axes = call.ints(1, "axes")
    if axes is None:
        axes = [index for index, size in enumerate(value.shape) if size == 1]
    dropped = {axis % value.dim() for axis in axes}
    return value.reshape([size for index, size in enumerate(value.shape) if index not in dropped])


@operator("Unsqueeze", fixed=(1,))
def unsqueeze(call: Call, value: Tensor, *_: Any) -> Tensor:
    axes = call.needed_ints(1, "axes")
    rank = value.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


@operator("Slice")
def slice_attributes(call: Call, value: Tensor) -> Tensor:
    starts, ends = list(call.get("starts")), list(call.get("ends"))
    return _sliced(value, starts, ends, list(call.get("axes") or range(len(starts))), [1] * len(starts))


@operator("Slice", since=10, fixed=(1, 2, 3, 4))
def slice_(call: Call, value: Tensor, *_: Any) -> Tensor:
    starts, ends = call.needed_ints(1), call.needed_ints(2)
    return _sliced(
        value, starts, ends, call.ints(3) or list(range(len(starts))), call.ints(4) or [1] * len(starts)
    )


def _sliced(value: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= value.dim()  # noqa: PLW2901  # counted from the end
        size = value.shape[axis]
        first, last, stride = slice(start, end, step).indices(size)
        if step > 0:
            index = [slice(None)] * axis + [slice(first, max(first, last), stride)]
            value = value[tuple(index)]
        else:
            chosen = torch.tensor(range(first, last, stride), dtype=torch.int64)
            value = torch.index_select(value, axis, chosen)
    return value


@operator("Split", fixed=(1,))
def split(call: Call, value: Tensor, *_: Any) -> Any:
    axis = call.get("axis", 0) % value.dim()
    sizes = call.ints(1, "split")
    if sizes is None:
        # Equal parts, the last one smaller where they do not come out even.
        part = -(-value.shape[axis] // call.outputs)
        sizes = [part] * (call.outputs - 1) + [value.shape[axis] - part * (call.outputs - 1)]
    parts = torch.split(value, sizes, axis)
    return parts[0] if call.outputs == 1 else parts


@operator("Gather")
def gather(call: Call, value: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % value.dim()
    size = value.shape[axis]
    fixed = call.constant(1)
    if fixed is not None and fixed.ndim == 0:
        return value.select(axis, int(fixed) % size)
    flat = indices.reshape(-1).to(torch.int64)
    flat = torch.where(flat < 0, flat + size, flat)
    shape = [*value.shape[:axis], *indices.shape, *value.shape[axis + 1 :]]
    if axis == 0 and call.constant(0) is not None and value.is_floating_point() and value.numel():
        # A table: engines have one kernel for it, and quantizers know its weights.
        return torch.nn.functional.embedding(flat, value.reshape(size, -1)).reshape(shape)
    return torch.index_select(value, axis, flat).reshape(shape)


@operator("GatherElements", since=11)
def gather_elements(call: Call, value: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % value.dim()
    positive = torch.where(indices < 0, indices + value.shape[axis], indices)
    return torch.gather(value, axis, positive)


@operator("Shape")
def shape(call: Call, value: Tensor) -> Tensor:
    end = call.get("end")
    return torch.tensor(list(value.shape)[call.get("start", 0) : end], dtype=torch.int64)


@operator("Size")
def size(_call: Call, value: Tensor) -> Tensor:
    return torch.tensor(value.numel(), dtype=torch.int64)


@operator("Constant")
def constant(call: Call) -> Tensor:
    for name in ("value", "sparse_value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in call.attributes:
            value = call.attributes[name]
            kind = np.float32 if "float" in name else np.int64
            return torch.from_numpy(
                np.array(value, dtype=None if name in ("value", "sparse_value") else kind)
            )
    raise call.unsupported(", ".join(call.attributes))


@operator("ConstantOfShape", fixed=(0,))
def constant_of_shape(call: Call, _shape: Tensor) -> Tensor:
    fill = call.get("value")
    array = np.zeros(1, np.float32) if fill is None else np.asarray(fill)
    return torch.from_numpy(np.full(call.needed_ints(0), array.reshape(-1)[0]))


@operator("Range", fixed=(0, 1, 2))
def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    bounds = [call.constant(index) for index in range(3)]
    if any(bound is None for bound in bounds):
        raise call.unsupported("bounds computed from data")
    first, last, step = (bound.reshape(-1)[0] for bound in bounds if bound is not None)
    del start, limit, delta
    return torch.from_numpy(np.arange(first, last, step).astype(first.dtype))


@operator("Expand", fixed=(1,))
def expand(call: Call, value: Tensor, *_: Any) -> Tensor:
    """Both shapes broadcast to one."""
    return value.expand(torch.broadcast_shapes(tuple(value.shape), tuple(call.needed_ints(1))))


@operator("Tile", since=6, fixed=(1,))
def tile(call: Call, value: Tensor, *_: Any) -> Tensor:
    return value.repeat(call.needed_ints(1))


@operator("Pad", fixed=(1, 3))
def pad(call: Call, value: Tensor, *rest: Any) -> Tensor:
    pads = call.needed_ints(1, "pads")
    axes = call.ints(3)
    axes = list(range(value.dim())) if axes is None else [axis % value.dim() for axis in axes]
    before, after = pads[: len(axes)], pads[len(axes) :]
    mode = call.get("mode", "constant")
    if mode == "constant":
        fill = call.constant(2)
        if fill is None and len(rest) > 1 and rest[1] is not None:
            return _padded_with(value, rest[1], axes, before, after)
        number = call.get("value", 0.0) if fill is None else fill.reshape(-1)[0].item()
        widths = [0] * (2 * value.dim())
        for axis, left, right in zip(axes, before, after, strict=True):
            widths[2 * (value.dim() - 1 - axis)] = left
            widths[2 * (value.dim() - 1 - axis) + 1] = right
        return torch.nn.functional.pad(value, widths, value=number)
    if mode not in ("reflect", "edge", "wrap"):
        raise call.unsupported(f"mode = {mode!r}")
    # Any rank, and no limit on the width: the indices are known, so each axis is a selection.
    for axis, left, right in zip(axes, before, after, strict=True):
        if left or right:
            kept = range(max(0, -left), value.shape[axis] - max(0, -right))
            mirrored = np.pad(np.asarray(kept), (max(0, left), max(0, right)), mode=mode)
            value = torch.index_select(value, axis, torch.from_numpy(mirrored))
    return value


def _padded_with(value: Tensor, fill: Tensor, axes: list[int], before: list[int], after: list[int]) -> Tensor:
    """With a number that is data."""
    for axis, left, right in zip(axes, before, after, strict=True):
        first, last = max(0, -left), value.shape[axis] - max(0, -right)
        parts = [value.narrow(axis, first, last - first)]
        for width, place in ((left, 0), (right, 2)):
            if width > 0:
                shape = [width if index == axis else size for index, size in enumerate(value.shape)]
                parts.insert(place, fill.reshape([1] * value.dim()).expand(shape))
        value = torch.cat(parts, axis)
    return value


@operator("CenterCropPad", since=18, fixed=(1,))
def center_crop_pad(call: Call, value: Tensor, *_: Any) -> Tensor:
    """Each axis cut or filled with zeros on both sides, the odd one behind when filling, before when cutting."""
    for axis, wanted in zip(call.get("axes") or range(value.dim()), call.needed_ints(1), strict=True):
        have = value.shape[axis]
        if wanted < have:
            value = value.narrow(axis, (have - wanted) // 2, wanted)
        elif wanted > have:
            widths = [0] * (2 * value.dim())
            place = 2 * (value.dim() - 1 - axis % value.dim())
            widths[place], widths[place + 1] = (wanted - have) // 2, wanted - have - (wanted - have) // 2
            value = torch.nn.functional.pad(value, widths)
    return value


@operator("DepthToSpace")
def depth_to_space(call: Call, value: Tensor) -> Tensor:
    block, (batch, channels, height, width) = call.get("blocksize"), value.shape
    inner = channels // block**2
    if call.get("mode", "DCR") == "CRD":
        parts = value.reshape(batch, inner, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = value.reshape(batch, block, block, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, inner, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, value: Tensor) -> Tensor:
    block, (batch, channels, height, width) = call.get("blocksize"), value.shape
    parts = value.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 1, 3, 5, 2, 4) if call.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return parts.permute(*order).reshape(batch, channels * block**2, height // block, width // block)
