"""The two halves of the evaluation data: one to search on, one to judge on. Pure.

Always true
 1. The halves share no sample, and a sequence lies whole in one of them.
 2. The same count, sequences and seed give the same halves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.samples import Samples

# Samples of the judged half that are enough to show about what a candidate loses that cannot be picked anyway: at most, at
# least, and of how many one is taken.
FEW, FEWEST, OF_EACH = 128, 16, 4


@dataclass(frozen=True)
class Half:
    """Raw samples, and what makes shifted ones where there can be any: corruptions of the first `pairs` samples, or the
    user's own.
    """

    samples: Samples
    shift: Callable[[], Samples | None] | None = None
    pairs: int = 0

    @cached_property
    def shifted(self) -> Samples | None:
        """Made when somebody looks at them, which not every process does."""
        return None if self.shift is None else self.shift()


def split(
    count: int,
    sequence: NDArray[np.int64] | None,
    seed: int,
    slices: NDArray[np.str_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to search on and indices to judge on, halves by seed; sequences stay whole. With `slices` (N,), each of
    them is halved: chance would leave some halves without the rare ones.

    Raises: DataError where every group is a single sample, so that nothing is left to search on.
    """
    groups = groups_of(count, sequence)
    order = np.random.default_rng(seed).permutation(len(groups))
    named = np.zeros(len(groups)) if slices is None else slices[[group[0] for group in groups]]
    parts: tuple[list[Any], list[Any]] = ([], [])
    for name in np.unique(named):
        own = order[named[order] == name]
        parts[0].extend(groups[index] for index in own[: len(own) // 2])
        parts[1].extend(groups[index] for index in own[len(own) // 2 :])
    if slices is not None and not parts[0]:
        raise DataError(
            f"slices name {len(parts[1])} groups, none of more than one sample (or sequence); each group is halved between"
            " what is searched on and what is judged on: give each sample the name of a group, no id"
        )
    search, judged = (np.sort(np.concatenate([np.empty(0, np.int64), *part])) for part in parts)
    return search.astype(np.int64), judged.astype(np.int64)


def few(samples: Samples, golden: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices, ascending, of a quarter of the samples, of `FEWEST` to `FEW`: golden ones first, evenly spread, or the first
    whole sequences.
    """
    count = len(samples)
    wanted = min(max(FEWEST, min(FEW, count // OF_EACH)), count)
    if samples.sequence is not None:
        return np.arange(next((at for at in range(wanted, count) if samples.starts(at)), count))
    others = np.setdiff1d(np.arange(count), golden)
    return np.union1d(_evenly(golden, wanted), _evenly(others, wanted - len(golden)))


def _evenly(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of them, all if there are no more, none if it is no number of samples."""
    return indices[np.linspace(0, len(indices) - 1, max(0, min(count, len(indices)))).astype(np.int64)]


def groups_of(count: int, sequence: NDArray[np.int64] | None) -> Sequence[NDArray[np.int64]]:
    """The indices of each sequence; without sequences, of each sample."""
    if sequence is None:
        return np.arange(count, dtype=np.int64).reshape(-1, 1)  # type: ignore[return-value]  # rows are the groups
    starts = np.flatnonzero(np.concatenate([[True], sequence[1:] != sequence[:-1]]))
    return np.split(np.arange(count, dtype=np.int64), starts[1:])
