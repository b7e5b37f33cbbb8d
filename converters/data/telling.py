"""Which samples tell most of a model: those that differ most from each other in what goes in and what comes out.

Pure and deterministic. Always true
 1. The order is nested: the first n are what n samples should be.
 2. Each group (a bucket, then a class) comes as often as it is asked to before any other comes again.

Source: Gonzalez (1985), "Clustering to minimize the maximum intercluster distance", the farthest-point heuristic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.samples import is_ragged
from edgekit.tensors import Array

# Entries of an array that samples are compared by.
WIDTH = 128
# More classes than this in a row of scores are no classes, as far as can be told.
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Group:
    """`kinds` (N,) says which samples are of one kind, of which each should come `times` early on."""

    kinds: NDArray[np.int64]
    times: int = 1


def order(features: NDArray[np.float32], groups: Sequence[Group], count: int) -> NDArray[np.int64]:
    """Indices of up to `count` samples, those that tell most first.

    Of `features` (N, F) the first is the farthest from the mean, each other one the farthest from those chosen, among
    the kinds that are still rare; a group counts before those after it.
    """
    inside = [(np.unique(group.kinds, return_inverse=True)[1], group.times) for group in groups]
    distance = _distance(features, features.mean(axis=0))
    chosen: list[int] = []
    while len(chosen) < min(count, len(features)):
        open_ = np.ones(len(features), bool)
        open_[chosen] = False
        for kinds, times in inside:
            had = np.bincount(kinds[chosen], minlength=len(kinds))[kinds]
            rare = open_ & (had < times)
            open_ = rare & (had == had[rare].min()) if rare.any() else open_
        index = int(np.argmax(np.where(open_, distance, -1.0)))
        own = _distance(features, features[index])
        distance = own if not chosen else np.minimum(distance, own)
        chosen.append(index)
    return np.array(chosen, np.int64)


def _distance(features: NDArray[np.float32], point: NDArray[np.float32]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.sum((features - point) ** 2, axis=1, dtype=np.float64)
    return squares


def features(arrays: Mapping[str, Array]) -> NDArray[np.float32]:
    """(N, F): of each array up to `WIDTH` entries, by its own mean and spread; what is not finite counts as the mean."""
    return np.concatenate([_standardized(_sketch(array)) for array in arrays.values()], axis=1)


def classes(first: Array) -> NDArray[np.int64]:
    """The class of each sample (N,), as far as what is known of it (answers or scores) has one; otherwise all are 0."""
    if is_ragged(first):
        return np.zeros(len(first), np.int64)
    rows = first.reshape(len(first), -1)
    if rows.shape[1] == 1 and rows.dtype.kind in "iub":
        known: NDArray[np.int64] = rows[:, 0].astype(np.int64)
        return known
    if 1 < rows.shape[1] <= MOST_CLASSES and rows.dtype.kind == "f" and first.ndim <= 3:
        best: NDArray[np.int64] = rows.argmax(axis=1).astype(np.int64)
        return best
    return np.zeros(len(first), np.int64)


def _sketch(array: Array) -> NDArray[np.float32]:
    parts = [np.asarray(part).ravel() for part in array]
    width = min(WIDTH, max(part.size for part in parts))
    made = np.zeros((len(parts), width), np.float32)
    for row, part in zip(made, parts, strict=True):
        if part.size:
            with np.errstate(over="ignore"):
                row[:] = part[np.linspace(0, part.size - 1, width).astype(np.int64)].astype(np.float32)
    return made


def _standardized(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    known = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
    filled = known[~np.isnan(known)]
    if not filled.size:
        return np.zeros_like(rows)
    spread = float(filled.std()) or 1.0
    made: NDArray[np.float32] = np.nan_to_num(
        (known - filled.mean()) / spread / np.sqrt(rows.shape[1])
    ).astype(np.float32)
    return made
