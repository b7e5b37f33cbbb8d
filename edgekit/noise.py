"""Signal to noise of records, in decibels: how near outputs are to the float source's.

Pure. Always true
 1. It is a number from -`MOST_DB` to `MOST_DB`, whatever is compared.
 2. What is not finite has to be equal; where it is not, where something is missing or shaped otherwise, there is nothing
    but noise.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import UNSET, UnsetType, structs
from numpy.typing import NDArray

from edgekit.manifest import Floor, SelfTest, TensorSpec
from edgekit.tensors import Array

MOST_DB = 200.0


def spread(size: int, count: int) -> NDArray[np.int64]:
    """`count` different positions of `size`, in steps that have no divisor in common with it: whatever axes an output
    has, its rows, columns and channels are all met, about equally often. Steps near the golden ratio's share leave no
    large gap (Steinhaus' three-gap theorem).
    """
    step = next(step for step in range(int(size * 0.618) or 1, 2 * size) if math.gcd(step, size) == 1)
    return np.arange(count, dtype=np.int64) * step % size


def along(spec: TensorSpec, axis: int, kept: int | None) -> NDArray[np.int64] | None:
    """The row along `axis` that each recorded entry of a sample is of; None where the shape is open."""
    shape = [dim for dim in spec.shape if dim is not None]
    size = math.prod(shape)
    if len(shape) < len(spec.shape) or axis >= len(shape) or not size:
        return None
    positions = np.arange(size) if kept is None or size <= kept else spread(size, kept)
    return np.unravel_index(positions, shape)[axis].astype(np.int64)


def of_floors(
    floors: Sequence[Floor], spec: TensorSpec, kept: int | None, ours: Array | None, source: Array | None
) -> tuple[float, ...]:
    """The signal to noise that each floor is about, of records (N, *entries)."""
    if ours is None or source is None or ours.shape != source.shape:
        return (-MOST_DB,) * len(floors)
    return tuple(snr_db(*(part_of(floor, spec, kept, array) for array in (ours, source))) for floor in floors)


def part_of(floor: Floor, spec: TensorSpec, kept: int | None, array: Array) -> Array:
    """The entries of a record that a floor is about; none where it does not have those rows."""
    if not floor.rows:
        return array
    rows = along(spec, floor.axis, kept)
    entries = array.reshape(len(array), -1)
    if rows is None or entries.shape[1] != len(rows):
        return entries[:, :0]
    is_meant = np.any([(start <= rows) & (rows < stop) for start, stop in floor.rows], axis=0)
    return entries[:, is_meant]


def complaint(name: str, floor: Floor, found: float) -> str:
    """Empty where the floor is reached."""
    if found >= floor.least_db:
        return ""
    where = f" ({floor.describe()})" if floor.rows else ""
    return (
        f"output {name!r}{where} has {found:.1f} dB of signal to noise against the float source,"
        f" {floor.least_db:.1f} dB needed"
    )


def snr_db(ours: Array, source: Array) -> float:
    """Over all entries of two arrays."""
    if ours.shape != source.shape or not source.size:
        return -MOST_DB
    signal, finite = source.astype(np.float64), np.isfinite(source)
    if not np.array_equal(ours[~finite], source[~finite]):
        return -MOST_DB
    return decibels(energy(signal[finite]), energy(signal[finite] - ours[finite].astype(np.float64)))


def decibels(signal: float, noise: float) -> float:
    """Of two energies; noise that is not finite drowns everything."""
    if not noise:
        return MOST_DB
    if not signal or not math.isfinite(noise):
        return -MOST_DB
    return min(MOST_DB, max(-MOST_DB, 10 * math.log10(signal / noise)))


def energy(values: Array) -> float:
    """The sum of the squares; not finite where an entry is not."""
    row = values.ravel().astype(np.float64)
    return float(row @ row)


def finite_energy(source: Array) -> float:
    """Of a signal, in which what is not finite has no part."""
    return energy(source[np.isfinite(source)])


def of_first_samples(
    test: SelfTest, specs: Sequence[TensorSpec], source: Mapping[str, Array], part: Mapping[str, Array]
) -> dict[str, tuple[Floor, ...]] | UnsetType:
    """Floors of the first samples where as much noise may be in them as in all; records of the source of both."""
    if test.snr_db is UNSET:
        return UNSET
    kept = None if test.kept is UNSET else test.kept
    by_name = {spec.name: spec for spec in specs}

    def lowered(name: str, floor: Floor) -> Floor:
        energies = (finite_energy(part_of(floor, by_name[name], kept, of[name])) for of in (part, source))
        return structs.replace(floor, least_db=floor.least_db + min(0.0, decibels(*energies)))

    return {
        name: tuple(lowered(name, floor) for floor in floors)
        for name, floors in test.snr_db.items()
        if name in part
    }
