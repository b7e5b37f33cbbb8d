"""Operators that select and place entries by index."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.registry import Call, operator
from converters.graph.importer.types import torch_dtype


@operator("Trilu", since=14, fixed=(1,))
def triangle(call: Call, value: Tensor, *_: Any) -> Tensor:
    diagonal = (call.ints(1) or [0])[0]
    return torch.triu(value, diagonal) if call.get("upper", 1) else torch.tril(value, diagonal)


@operator("EyeLike", since=9)
def eye_like(call: Call, value: Tensor) -> Tensor:
    code = call.get("dtype")
    array = np.eye(value.shape[0], value.shape[1], call.get("k", 0))
    return torch.from_numpy(array).to(value.dtype if code is None else torch_dtype(call, code))


@operator("Hardmax")
def hardmax(call: Call, value: Tensor) -> Tensor:
    """Before opset 13 over all axes from `axis` on, taken as one."""
    axis = call.get("axis", -1 if call.opset >= 13 else 1) % value.dim()
    flat = value.movedim(axis, -1) if call.opset >= 13 else value.flatten(axis)
    places = torch.arange(flat.shape[-1])
    chosen = (places == flat.argmax(-1, keepdim=True)).to(value.dtype)
    return chosen.movedim(-1, axis) if call.opset >= 13 else chosen.reshape(value.shape)


@operator("OneHot", since=9, fixed=(1,))
def one_hot(call: Call, indices: Tensor, _depth: Tensor, values: Tensor) -> Tensor:
    depth = call.needed_ints(1)[0]
    axis = call.get("axis", -1) % (indices.dim() + 1)
    positive = torch.where(indices < 0, indices + depth, indices)
    hot = positive.unsqueeze(-1).to(torch.int64) == torch.arange(depth)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("Compress", since=9, fixed=(1,))
def compress(call: Call, value: Tensor, *_: Any) -> Tensor:
    condition = call.constant(1)
    assert condition is not None
    places = torch.from_numpy(np.flatnonzero(condition))
    axis = call.get("axis")
    return torch.index_select(value.flatten() if axis is None else value, axis or 0, places)


@operator("GatherND", since=11)
def gather_nd(call: Call, value: Tensor, indices: Tensor) -> Tensor:
    batch = call.get("batch_dims", 0)
    depth = indices.shape[-1]
    lead = value.shape[:batch]
    count = int(np.prod(lead))
    rows = value.reshape(count, *value.shape[batch:])
    flat = _linear(indices.reshape(count, -1, depth), rows.shape[1 : 1 + depth])
    rest = rows.shape[1 + depth :]
    table = rows.reshape(-1, *rest)
    offset = torch.arange(count).reshape(-1, 1) * int(np.prod(rows.shape[1 : 1 + depth]))
    found = torch.index_select(table, 0, (flat + offset).reshape(-1))
    return found.reshape(*indices.shape[:-1], *rest)


@operator("ScatterElements", "Scatter", since=9)
def scatter_elements(call: Call, value: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = call.get("axis", 0) % value.dim()
    places = torch.where(indices < 0, indices + value.shape[axis], indices).to(torch.int64)
    kind = call.get("reduction", "none")
    if kind == "none":
        return torch.scatter(value, axis, places, updates)
    if not call.carries:
        return torch.scatter_reduce(value, axis, places, updates, _REDUCE[kind], include_self=True)
    # Filled up to the value's other axes with places that nothing is at.
    widths = [0] * (2 * value.dim())
    for index, (size, have) in enumerate(zip(value.shape, updates.shape, strict=True)):
        widths[2 * (value.dim() - 1 - index) + 1] = 0 if index == axis else size - have
    lines = functional.pad(updates, widths).movedim(axis, 0).unsqueeze(0)
    where = functional.pad(places, widths, value=-1).movedim(axis, 0).unsqueeze(0)
    hit = where == torch.arange(value.shape[axis]).reshape([-1, *[1] * value.dim()])
    updated = _combined(kind, value.movedim(axis, 0), torch.where(hit, lines, _neutral(kind, value)), 1)
    return updated.movedim(0, axis)


@operator("ScatterND", since=11)
def scatter_nd(call: Call, value: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth = indices.shape[-1]
    rest = value.shape[depth:]
    table = value.reshape(-1, *rest)
    places = _linear(indices, value.shape[:depth]).reshape(-1)
    rows = updates.reshape(-1, *rest)
    kind = call.get("reduction", "none")
    if kind == "none":
        return torch.index_copy(table, 0, places, rows).reshape(value.shape)
    hit = (places == torch.arange(table.shape[0]).reshape(-1, 1)).reshape(
        [table.shape[0], -1, *[1] * len(rest)]
    )
    result = _combined(kind, table, torch.where(hit, rows.unsqueeze(0), _neutral(kind, value)), 1)
    return result.reshape(value.shape)


@operator("ReverseSequence", since=10)
def reverse_sequence(call: Call, value: Tensor, lengths: Tensor) -> Tensor:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    rows = value.movedim((batch, time), (0, 1))
    places = torch.arange(rows.shape[1]).reshape(1, -1)
    ends = lengths.reshape(-1, 1)
    places = torch.where(places < ends, ends - 1 - places, places)
    places = places.reshape(*rows.shape[:2], *[1] * (rows.dim() - 2)).expand(rows.shape)
    return torch.gather(rows, 1, places).movedim((0, 1), (batch, time))


@operator("TensorScatter", since=24)
def tensor_scatter(call: Call, past: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """A cache with new rows written from each batch entry's start on, past its end from the front (`circular`)."""
    axis = call.get("axis", -2) % past.dim()
    size, count = past.shape[axis], update.shape[axis]
    begin = torch.zeros(past.shape[0], dtype=torch.int64) if starts is None else starts
    offset = torch.arange(size).reshape(1, -1) - begin.reshape(-1, 1)
    if call.get("mode", "linear") == "circular":
        offset = torch.remainder(offset, size)
    shape = [size if index == axis else past.shape[0] if index == 0 else 1 for index in range(past.dim())]
    offset = offset.reshape(shape)
    full = [size if index == axis else length for index, length in enumerate(update.shape)]
    rows = torch.gather(update, axis, torch.clamp(offset, 0, count - 1).expand(full))
    return torch.where((offset >= 0) & (offset < count), rows, past)


def _combined(kind: str, value: Tensor, updates: Tensor, axis: int) -> Tensor:
    """A value with all updates along an axis. LiteRT 2.3's scatter kernel refuses what litert-torch makes of the rest."""
    if kind == "add":
        return value + updates.sum(axis, dtype=value.dtype)
    if kind == "mul":
        return value * updates.prod(axis, dtype=value.dtype)
    joined = torch.cat([value.unsqueeze(axis), updates], axis)
    return joined.amax(axis) if kind == "max" else joined.amin(axis)


def _neutral(kind: str, value: Tensor) -> Tensor:
    """What changes nothing when it is combined."""
    if kind in ("add", "mul"):
        return torch.tensor(0 if kind == "add" else 1, dtype=value.dtype)
    limits = torch.finfo(value.dtype) if value.is_floating_point() else torch.iinfo(torch.int32)
    return torch.tensor(limits.min if kind == "max" else limits.max, dtype=value.dtype)


def added(value: Tensor, axis: int, places: NDArray[np.int64], size: int) -> Tensor:
    """Entries along an axis summed into `size` places, which are known: each place selects its own and sums them."""
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=size)
    starts = np.cumsum(counts) - counts
    # Entry `len(places)` is zero.
    table = np.full((size, max(1, int(counts.max()))), len(places))
    rank = np.arange(len(places)) - starts[places[order]]
    table[places[order], rank] = order
    zero = torch.zeros_like(value.narrow(axis, 0, 1))
    chosen = torch.index_select(torch.cat([value, zero], axis), axis, torch.from_numpy(table.reshape(-1)))
    shape = [*value.shape[:axis], *table.shape, *value.shape[axis + 1 :]]
    return chosen.reshape(shape).sum(axis + 1, dtype=value.dtype)


_REDUCE = {"none": "", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _linear(indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of coordinates as positions in the flattened array; negative ones count from the end."""
    total = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis, size in enumerate(shape):
        part = indices[..., axis].to(torch.int64)
        total = total * size + torch.where(part < 0, part + size, part)
    return total
