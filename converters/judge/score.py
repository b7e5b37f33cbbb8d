"""A candidate's figures on one half of the evaluation data, clean and shifted, beside its source's.

Both halves are scored in the same way: the search half as often as a search likes, the judged half once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from converters.judge import accuracy
from converters.judge.accuracy import Accuracy, Judgement, Shift
from converters.judge.metrics import Metric
from edgekit.samples import Samples
from edgekit.tensors import Array

Digest = Mapping[str, Array]


@dataclass(frozen=True)
class Mark:
    """The source's digest of some samples, and labels (or the source's answers), (N, ...): what candidates are compared
    with there. `is_searched`: of the search half.
    """

    metric: Metric
    samples: Samples
    digest: Digest
    labels: Array
    seed: int
    is_searched: bool

    @cached_property
    def _drawn(self) -> NDArray[np.float64]:
        """The source's figures over the bootstrap's draws, the same for every candidate."""
        return accuracy.resampled(
            self.metric,
            self.digest,
            self.labels,
            sequence=self.samples.sequence,
            seed=self.seed,
            is_searched=self.is_searched,
        )

    def compared(self, candidate: Digest) -> Accuracy:
        """Figures of a candidate's digest of these samples. Raises: DataError if the labels do not fit it."""
        return accuracy.compare(
            self.metric,
            self.digest,
            candidate,
            self.labels,
            sequence=self.samples.sequence,
            seed=self.seed,
            drawn=self._drawn,
            is_searched=self.is_searched,
        )

    def first(self, count: int) -> float:
        """The source's own figure on the first samples."""
        digest = {name: array[:count] for name, array in self.digest.items()}
        return self.metric.of_digest(digest, self.labels[:count])


@dataclass(frozen=True)
class Yardstick:
    """What a half is scored against; `pairs` shifted samples are corruptions of the first clean ones."""

    clean: Mark
    shifted: Mark | None
    pairs: int


@dataclass(frozen=True)
class Score:
    """`there` are the figures on shifted samples. `is_broken`: something must be mended. Few samples alone do not
    break a contract: more of them would decide, not a better candidate.
    """

    accuracy: Accuracy
    judgement: Judgement
    shift: Shift | None
    there: Accuracy | None
    is_broken: bool

    @property
    def is_kept(self) -> bool:
        """Whether the contract is kept, on shifted data too: what a repair aims at."""
        return not self.is_broken and (self.shift is None or self.shift.verdict == "fine")

    @property
    def badness(self) -> float:
        """The larger of the two losses."""
        return max(self.accuracy.drop, self.there.drop if self.there else -float("inf"))


def score(
    against: Yardstick, clean: Digest, shifted: Digest | None, limit: float | None, *, parity: float
) -> Score:
    """Figures and verdicts of a candidate's digests on this half."""
    metric = against.clean.metric
    figures = against.clean.compared(clean)
    judgement = accuracy.judge(figures, limit, parity=parity, is_bounded=metric.is_bounded)
    is_broken = judgement.verdict == "missed" or (
        judgement.verdict == "undecided"
        and limit is not None
        and figures.bound > limit
        and figures.samples >= accuracy.least_samples(limit, is_bounded=metric.is_bounded)
    )
    if against.shifted is None or shifted is None:
        return Score(figures, judgement, None, None, is_broken)
    there = against.shifted.compared(shifted)
    shift = accuracy.judge_shift(
        against.clean.first(against.pairs), there.source, there.candidate, metric, limit
    )
    # As far below the drop as its bound lies above: what is red beyond doubt.
    least = 2 * there.drop - there.bound
    is_broken |= shift.verdict == "refused" or (limit is not None and least > limit)
    return Score(figures, judgement, shift, there, is_broken)
