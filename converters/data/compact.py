"""Arrays in the bytes that they need: the other direction of `edgekit.encoding`, and how much of a self-test fits.

Pure. Always true
 1. Integers, truths and small arrays lose nothing.
 2. A layout fits into the room it is given, unless even the coarsest does not: then it is that with the fewest samples.
 3. Everything is coarser by no more than it takes to have enough samples of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import DTypeLike

from edgekit.encoding import MOST_ENTRIES, REPEAT, SCALE
from edgekit.samples import dump_arrays, flat, is_ragged, load_arrays, stacked
from edgekit.selftest import KEPT
from edgekit.tensors import Array

# Self-test data of a bundle: bytes that are always granted, and the share of the model's.
FREE_BYTES = 256_000
SHARE = 0.15
# What an archive's member takes beside its values, at most: headers of zip and npy.
MEMBER_BYTES = 512
# Golden samples of a model without state, at most.
MOST = 64
# Entries of a sample below which fewer bits save nothing.
SMALL = 64
# Axes shorter than this are channels or classes, whose neighbours have nothing in common.
LONG_AXIS = 32
# Of a real number: all that it has.
WHOLE = 64


@dataclass(frozen=True)
class Coarseness:
    """`bits` of a real number: `WHOLE`, 16 or 8; and the step along long axes of which one entry stands for its
    neighbours too, 1 for none.
    """

    bits: int = WHOLE
    every: int = 1


@dataclass(frozen=True)
class Layout:
    """How many golden samples, how their inputs are stored, and how many entries of each output."""

    count: int
    kept: int
    how: Coarseness


# From the finest: inputs, entries of an output, and the samples that have to fit for it to be taken. Bits go first,
# since nothing is left out by them; then entries of outputs, of which many tell the same; then entries of inputs, as
# many pictures at half their size tell more than one.
_RUNGS: tuple[tuple[Coarseness, int, int], ...] = (
    (Coarseness(), KEPT, 32),
    (Coarseness(), 4096, 32),
    (Coarseness(16), 4096, 32),
    (Coarseness(8), 4096, 16),
    (Coarseness(8), 1024, 8),
    *((Coarseness(8, every), 1024, 4) for every in (2, 3, 4, 6, 8)),
    *((Coarseness(8, every), 256, 2) for every in (12, 16, 24, 32)),
    (Coarseness(8, 64), 64, 1),
)


def budget(model_bytes: int) -> int:
    """Bytes that the self-test of a model of that size may weigh."""
    return max(FREE_BYTES, int(SHARE * model_bytes))


def layout(
    room: int, inputs: Callable[[Coarseness], Sequence[int]], outputs: Callable[[int], int], least: int
) -> Layout:
    """The finest that fits into `room` bytes.

    `inputs` says how many bytes each sample takes, in the order in which they are taken; `outputs` how many the records
    of one sample take with so many entries of an output; `least` how many samples there have to be.
    """
    how, kept, count = _rung(room, inputs, outputs, least)
    taken = sum(inputs(how)[:count])
    while kept < KEPT and taken + count * outputs(kept * 2) <= room:
        kept *= 2
    return Layout(count, kept, how)


def _rung(
    room: int, inputs: Callable[[Coarseness], Sequence[int]], outputs: Callable[[int], int], least: int
) -> tuple[Coarseness, int, int]:
    how, kept, fitting, there = Coarseness(), KEPT, 0, 0
    for how, kept, enough in _RUNGS:
        each, record = inputs(how), outputs(kept)
        fitting = sum(total <= room for total in accumulate(size + record for size in each))
        there = len(each)
        if fitting >= min(max(enough, least), there):
            break
    return how, kept, max(1, fitting, min(least, there))


def stored(name: str, array: Array, how: Coarseness) -> dict[str, Array]:
    """What an archive holds of samples (N, *shape) or ragged: the array, and what it decodes by."""
    entries = max(part.size for part in array)
    if entries < SMALL:
        return _narrow(name, array, WHOLE)
    if how.every == 1 or entries > MOST_ENTRIES:
        return _narrow(name, array, how.bits)
    longest = np.max([part.shape for part in array], axis=0)
    times = [how.every if size >= LONG_AXIS else 1 for size in longest.tolist()]
    thinned = [part[tuple(slice(None, None, every) for every in times)] for part in array]
    told = np.array([times, *(part.shape for part in array)], np.int64)
    return {**_narrow(name, stacked(thinned), how.bits), name + REPEAT: told}


def recorded(name: str, array: Array, bits: int) -> dict[str, Array]:
    """An output's entries: integers in their smallest type, real numbers in 16 bits (within 0.05 % of each) or whole."""
    return _narrow(name, array, bits)


def taken(arrays: Mapping[str, Array], indices: Sequence[int]) -> dict[str, Array]:
    """Some samples of what `stored` gave."""
    at = np.asarray(indices, np.int64)
    return {
        name: array
        if name.endswith(SCALE)
        else array[np.concatenate([[0], at + 1])]
        if name.endswith(REPEAT)
        else array[at]
        for name, array in arrays.items()
    }


def decoded(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What a device reads of arrays that were stored."""
    return load_arrays(dump_arrays(arrays))


def _narrow(name: str, array: Array, bits: int) -> dict[str, Array]:
    values = flat(array)
    if values.dtype.kind in "iu":
        return _smallest(name, array, values)
    if values.dtype.kind != "f" or bits >= 8 * values.dtype.itemsize:
        return {name: array}
    is_finite = bool(np.isfinite(values).all())
    if bits == 8 and is_finite:
        return _in_bytes(name, array, float(values.min(initial=0.0)), float(values.max(initial=0.0)))
    # A power of two is exact, and brings what is very large or very small into the range of float16.
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    unit = 2.0 ** math.floor(math.log2(largest)) if largest else 1.0
    return {
        name: _each(array, lambda part: np.divide(part, unit), np.float16),
        name + SCALE: np.array([unit, 0], values.dtype),
    }


def _smallest(name: str, array: Array, values: Array) -> dict[str, Array]:
    ends = (int(values.min(initial=0)), int(values.max(initial=0)))
    least = np.result_type(*map(np.min_scalar_type, ends))
    if least.itemsize >= values.dtype.itemsize or not np.can_cast(least, values.dtype):
        return {name: array}
    return {
        name: _each(array, lambda part: part, least),
        name + SCALE: np.array([1, 0], values.dtype),
    }


def _in_bytes(name: str, array: Array, low: float, high: float) -> dict[str, Array]:
    """256 steps from the smallest value to the largest, `low` <= 0 <= `high`; 0 stays 0, for padding and masks."""
    # Both as a device reads them, whose product has to be the offset.
    scale = np.array([(high - low) / 255, 0], flat(array).dtype)
    if not scale[0]:
        scale[0] = 1
    step = float(scale[0])
    zero = round(-low / step)
    scale[1] = -np.multiply(scale[:1], np.array([zero], scale.dtype))[0]

    def nearest(part: Array) -> Array:
        rounded: Array = np.clip(np.rint(part.astype(np.float64) / step) + zero, 0, 255)
        return rounded

    return {
        name: _each(array, nearest, np.uint8),
        name + SCALE: scale,
    }


def _each(array: Array, make: Callable[[Array], Array], dtype: DTypeLike) -> Array:
    """Ragged arrays part by part."""
    if is_ragged(array):
        return stacked([make(part).astype(dtype) for part in array])
    return make(array).astype(dtype)
