"""Arrays in fewer bytes, told by the arrays beside them in an archive.

NAME@scale, two entries of the type that NAME has when it is read: value = stored * scale[0] + scale[1], worked out in
that type. Integers are widened only: their scale is 1 and their offset 0.

NAME@repeat, (1 + N, axes) int64: how often an entry stands along each axis, then the shape of each of the N samples. Of
a sample every so many entries are stored, and what lies over its shape at the end is cut off.

Always true
 1. The same stored bytes give the same values on every machine: one rounding for each multiplication and addition.
 2. What is stored is not trusted: types, shapes and the size that it unfolds to are checked before memory is taken.

Pure. The other direction is the converters' (`converters.data.compact`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.errors import DataError
from edgekit.tensors import Array

SCALE = "@scale"
REPEAT = "@repeat"
# Entries that repeated samples of one array may have altogether: a device holds them in memory during a self-test.
MOST_ENTRIES = 1 << 26


def widened(where: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays as their scales say, which are gone then. Raises: DataError."""
    scales = {name + SCALE for name in arrays} & set(arrays)
    return {
        name: _widened(f"{where}: array {name!r}", array, arrays[name + SCALE])
        if name + SCALE in scales
        else array
        for name, array in arrays.items()
        if name not in scales
    }


def _widened(what: str, stored: Array, scale: Array) -> Array:
    kind = scale.dtype.kind
    if scale.shape != (2,) or kind not in "iuf" or scale.dtype.itemsize < stored.dtype.itemsize:
        raise DataError(f"{what}: its {SCALE} is no scale and offset of a type that holds it")
    if kind == "f":
        if stored.dtype.kind not in "iuf" or stored.dtype.itemsize > 2 or not np.isfinite(scale).all():
            raise DataError(f"{what}: {stored.dtype} is not scaled by {scale.tolist()}")
        with np.errstate(over="ignore"):
            made: Array = stored.astype(scale.dtype) * scale[0] + scale[1]
        return made
    if (
        scale.tolist() != [1, 0]
        or stored.dtype.kind not in "iu"
        or not np.can_cast(stored.dtype, scale.dtype)
    ):
        raise DataError(f"{what}: {stored.dtype} is not widened to {scale.dtype} by {scale.tolist()}")
    return stored.astype(scale.dtype)


def repeated(what: str, parts: Sequence[Array], told: Array) -> list[Array]:
    """Samples at their whole shapes. Raises: DataError."""
    if told.ndim != 2 or told.dtype != np.int64 or len(told) != len(parts) + 1 or told.min(initial=1) < 0:
        raise DataError(f"{what}: its {REPEAT} does not say how often and the shape of each sample")
    times, *shapes = (tuple(row) for row in told.tolist())
    if 0 in times or any(
        part.shape != tuple(-(-size // every) for size, every in zip(shape, times, strict=True))
        for part, shape in zip(parts, shapes, strict=True)
    ):
        raise DataError(f"{what}: its samples do not have the shapes that its {REPEAT} needs")
    if sum(map(math.prod, shapes)) > MOST_ENTRIES:
        raise DataError(f"{what}: unfolds to more than {MOST_ENTRIES} entries")
    return [_repeated(part, times, shape) for part, shape in zip(parts, shapes, strict=True)]


def _repeated(part: Array, times: Sequence[int], shape: Sequence[int]) -> Array:
    for axis, (every, size) in enumerate(zip(times, shape, strict=True)):
        # By index, so that nothing larger than the shape is ever made.
        part = part.take(np.arange(size) // every, axis=axis)
    return part
