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
class Half:
    """Raw samples, and shifted ones: corruptions of the first `pairs` samples, or the user's own."""

    samples: Samples
    shifted: Samples | None
    pairs: int


@dataclass(frozen=True)
class Yardstick:
    """What a half is scored against: the source's own digests, and labels (or the source's answers)."""

    metric: Metric
    half: Half
    clean: Digest
    shifted: Digest | None
    labels: Array
    shifted_labels: Array | None
    seed: int

    @cached_property
    def clean_drawn(self) -> NDArray[np.float64]:
        """The source's figures over the bootstrap's draws, which every candidate is compared with."""
        return accuracy.resampled(
            self.metric, self.clean, self.labels, sequence=self.half.samples.sequence, seed=self.seed
        )

    @cached_property
    def shifted_drawn(self) -> NDArray[np.float64]:
        """The same on shifted samples, of which there are some."""
        assert self.shifted is not None
        assert self.shifted_labels is not None
        assert self.half.shifted is not None
        return accuracy.resampled(
            self.metric,
            self.shifted,
            self.shifted_labels,
            sequence=self.half.shifted.sequence,
            seed=self.seed,
        )


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
    metric, half = against.metric, against.half
    figures = accuracy.compare(
        metric,
        against.clean,
        clean,
        against.labels,
        sequence=half.samples.sequence,
        seed=against.seed,
        drawn=against.clean_drawn,
    )
    judgement = accuracy.judge(figures, limit, parity=parity, is_bounded=metric.is_bounded)
    is_broken = judgement.verdict == "missed" or (
        judgement.verdict == "undecided"
        and limit is not None
        and figures.bound > limit
        and figures.samples >= accuracy.least_samples(limit, is_bounded=metric.is_bounded)
    )
    if against.shifted is None or against.shifted_labels is None or half.shifted is None or shifted is None:
        return Score(figures, judgement, None, None, is_broken)
    there = accuracy.compare(
        metric,
        against.shifted,
        shifted,
        against.shifted_labels,
        sequence=half.shifted.sequence,
        seed=against.seed,
        drawn=against.shifted_drawn,
    )
    source_clean = {name: array[: half.pairs] for name, array in against.clean.items()}
    shift = accuracy.judge_shift(
        metric.of_digest(source_clean, against.labels[: half.pairs]),
        there.source,
        there.candidate,
        metric,
        limit,
    )
    # As far below the drop as its bound lies above: what is red beyond doubt.
    least = 2 * there.drop - there.bound
    is_broken |= shift.verdict == "refused" or (limit is not None and least > limit)
    return Score(figures, judgement, shift, there, is_broken)
