"""The two halves of the evaluation data: one to search on, one to judge on. Pure.

Always true
 1. The halves share no sample, and a sequence lies whole in one of them.
 2. The same count, sequences and seed give the same halves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.samples import Samples


@dataclass(frozen=True)
class Half:
    """Raw samples, and shifted ones: corruptions of the first `pairs` samples, or the user's own."""

    samples: Samples
    shifted: Samples | None
    pairs: int


def split(
    count: int, sequence: NDArray[np.int64] | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to search on and indices to judge on, halves by seed; sequences stay whole."""
    groups = groups_of(count, sequence)
    order = np.random.default_rng(seed).permutation(len(groups))
    half = len(groups) // 2
    search = np.sort(np.concatenate([groups[index] for index in order[:half]] or [np.empty(0, np.int64)]))
    judged = np.sort(np.concatenate([groups[index] for index in order[half:]]))
    return search.astype(np.int64), judged.astype(np.int64)


def groups_of(count: int, sequence: NDArray[np.int64] | None) -> Sequence[NDArray[np.int64]]:
    """The indices of each sequence; without sequences, of each sample."""
    if sequence is None:
        return np.arange(count, dtype=np.int64).reshape(-1, 1)  # type: ignore[return-value]  # rows are the groups
    starts = np.flatnonzero(np.concatenate([[True], sequence[1:] != sequence[:-1]]))
    return np.split(np.arange(count, dtype=np.int64), starts[1:])
