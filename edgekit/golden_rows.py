"""Sets of rows in golden data: so many of each sample's, how many there are, and what of them was found again.

Pure. Always true
 1. A set is compared whatever the order of its rows, sample by sample; errors are those of rows that found each other.
 2. What cannot be compared (another number of samples, nothing recorded) was not found again.

Needs numpy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit import rows
from edgekit.gaps import largest_gap
from edgekit.rowset import RowSet
from edgekit.tensors import Array

# How many rows each sample has, (N,), of the set of that number. No tensor name starts so.
_COUNT = "@rows"


@dataclass(frozen=True)
class Again:
    """The share of rows that found each other (F1, 0 to 1), and by output the largest |difference| between those."""

    share: float
    gaps: Mapping[str, float]


def names(sets: Sequence[RowSet]) -> frozenset[str]:
    return frozenset(name for one in sets for name in one.axes)


def record(sets: Sequence[RowSet], outputs: Mapping[str, Array], kept: int) -> dict[str, Array]:
    """Of padded outputs (N, *shape) as many rows of each sample as have at most `kept` entries, one at least, and how many of
    these are real.
    """
    found: dict[str, Array] = {}
    for at, one in enumerate(sets):
        samples = [
            {name: outputs[name][index] for name in one.axes}
            for index in range(len(outputs[next(iter(one.axes))]))
        ]
        counts = [rows.length(one, sample) for sample in samples]
        widest = max(math.prod(outputs[name].shape[1:]) // max(one.bound, 1) for name in one.axes)
        most = max(1, min(kept // max(widest, 1), max(counts), one.bound))
        for name, axis in one.axes.items():
            found[name] = np.take(outputs[name], np.arange(most), axis + 1)
        found[f"{_COUNT}{at}"] = np.minimum(counts, most).astype(np.int32)
    return found


def compared(one: RowSet, at: int, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Again:
    """Two records of the set of number `at`."""
    needed = (*one.axes, f"{_COUNT}{at}")
    if not all(name in side for side in (ours, theirs) for name in needed):
        return Again(0.0, dict.fromkeys(one.axes, math.inf))
    counts = [side[f"{_COUNT}{at}"].tolist() for side in (ours, theirs)]
    if len(counts[0]) != len(counts[1]):
        return Again(0.0, dict.fromkeys(one.axes, math.inf))
    found, total, gaps = 0, 0, dict.fromkeys(one.axes, 0.0)
    for index, (mine, other) in enumerate(zip(*counts, strict=True)):
        # A record that was cut has no more rows than the other was cut to.
        samples = [{name: side[name][index] for name in one.axes} for side in (ours, theirs)]
        tables = [
            rows.table(one, sample, count) for sample, count in zip(samples, (mine, other), strict=True)
        ]
        left, right = rows.matched(*tables)
        found, total = found + len(left), total + len(tables[0]) + len(tables[1])
        for name, axis in one.axes.items():
            pair = (
                np.take(sample[name], place, axis)
                for sample, place in zip(samples, (left, right), strict=True)
            )
            gaps[name] = max(gaps[name], largest_gap(*pair))
    return Again(rows.share(found, total), gaps)


def complaints(sets: Sequence[RowSet], found: Sequence[Again], least: Sequence[float]) -> list[str]:
    """Of each set of which less was found again than `least` says, a sentence."""
    told = [
        f"of the rows of {', '.join(one.axes)} {again.share:.1%} were found again, {wanted:.1%} needed"
        for one, again, wanted in zip(sets, found, least, strict=False)
        if not again.share >= wanted
    ]
    missing = len(sets) > len(least)
    return [*told, "the manifest does not say how many rows must be found again"] if missing else told
