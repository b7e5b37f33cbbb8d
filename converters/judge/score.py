"""A candidate's figures on one half of the evaluation data, clean and shifted, beside its source's.

Both halves are scored in the same way: the search half as often as a search likes, the judged half once.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from converters.judge import accuracy, slices
from converters.judge.accuracy import ALONE, Accuracy, Judgement, Place, Shift
from converters.judge.against import Against, Digest
from converters.judge.bounds import Own
from converters.judge.metrics import Metric
from converters.judge.outputs import OutputScore
from converters.judge.slices import SliceScore
from edgekit.samples import Samples
from edgekit.tensors import Array

# A loss within this share of the limit would be shown to hold by more samples, however far its bound reaches now.
SMALL_SHARE = 0.25


@dataclass(frozen=True)
class Mark:
    """The source's digest of some samples, and labels (or the source's answers), (N, ...): what candidates are compared
    with there. `is_coarse`: by fewer draws, where each is a call of the metric.
    """

    metric: Metric
    samples: Samples
    digest: Digest
    labels: Array
    seed: int
    is_coarse: bool

    @cached_property
    def _against(self) -> Against:
        return Against(
            self.metric, self.digest, self.labels, self.samples.sequence, self.seed, self.is_coarse
        )

    def draw(self) -> None:
        """The source's side, now rather than with the first candidate. Raises: DataError."""
        self._against.draw()

    @cached_property
    def figure(self) -> float:
        """The source's own figure. Raises: DataError if the labels do not fit it."""
        return self.metric.of_digest(self.digest, self.labels)

    def compared(
        self,
        candidate: Digest,
        *,
        drawn: Own | None = None,
        place: Place = ALONE,
        is_same_function: bool = False,
    ) -> Accuracy:
        """Figures of a candidate's digest of these samples, of which the draws may be known. Raises: DataError if the labels
        do not fit it.
        """
        return self._against.compared(candidate, drawn=drawn, place=place, is_same_function=is_same_function)

    @cached_property
    def by_slice(self) -> tuple[slices.Mark, ...]:
        """The same for each group of the samples. Raises: DataError for groups that cannot be judged."""
        found = slices.groups(self.samples.slices, self.samples.sequence)
        return tuple(slices.Mark(group, self._against.of(group.rows)) for group in found)

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
    break a contract: more of them would decide, not a better candidate. `is_kept`: the contract is kept, on shifted data
    too, as far as the figures go: what a repair aims at.
    """

    accuracy: Accuracy
    judgement: Judgement
    shift: Shift | None
    there: Accuracy | None
    is_broken: bool
    is_kept: bool
    outputs: tuple[OutputScore, ...] = ()
    limit: float = 0.0
    slices: tuple[SliceScore, ...] = ()
    slice_limit: float | None = None

    @property
    def badness(self) -> float:
        """The largest of the two losses, of what outputs lose and of what the worst group does, in units of the limit; a
        figure that is not finite, or was not to be had, is the worst.
        """
        if self.accuracy.trouble or (self.there is not None and self.there.trouble):
            return math.inf
        worst = max((output.excess for output in self.outputs), default=0.0)
        group = slices.worst(self.slices) if self.slice_limit is not None else None
        losses = (
            self.accuracy.drop,
            self.there.drop if self.there else -math.inf,
            worst * self.limit,
            slices.in_units(group.drop, self.slice_limit, self.limit) if group else -math.inf,
        )
        return math.inf if any(math.isnan(loss) for loss in losses) else max(losses)


def score(
    against: Yardstick,
    clean: Digest,
    shifted: Digest | None,
    limit: float,
    *,
    drawn: tuple[Own | None, Own | None] = (None, None),
    outputs: tuple[OutputScore, ...] = (),
    place: Place = ALONE,
    is_same_function: bool = False,
    slice_limit: float | None = None,
) -> Score:
    """Figures and verdicts of a candidate's digests on this half; `drawn` are its draws, clean and shifted, where they are
    known. `place`: among the candidates that are
    judged on it for the target; `is_same_function`: what is known to compute as the source does; `slice_limit`: what each
    group of the samples may lose.
    """
    metric = against.clean.metric
    figures = against.clean.compared(clean, drawn=drawn[0], place=place, is_same_function=is_same_function)
    judgement = accuracy.judge(
        figures, limit, is_bounded=metric.is_bounded, is_same_function=is_same_function
    )
    least = accuracy.least_samples(limit, is_bounded=metric.is_bounded, alpha=place.alpha)
    is_broken = judgement.verdict == "missed" or (
        judgement.verdict == "undecided"
        and figures.bound > limit
        and figures.groups >= least
        and figures.drop > SMALL_SHARE * limit
    )
    is_broken |= not all(output.holds for output in outputs)
    groups = slices.scores(
        against.clean.by_slice, clean, slice_limit, place, is_same_function=is_same_function
    )
    # What so few samples show is no proof, and all that there is to mend by.
    is_broken |= slice_limit is not None and any(group.drop > slice_limit for group in groups)
    if against.shifted is None or shifted is None:
        return Score(
            figures, judgement, None, None, is_broken, not is_broken, outputs, limit, groups, slice_limit
        )
    # The shift is one coarse question, and each candidate's own: its interval is not widened by their number.
    there = against.shifted.compared(shifted, drawn=drawn[1], is_same_function=is_same_function)
    shift = accuracy.judge_shift(against.clean.first(against.pairs), there, metric, limit)
    # What is red beyond doubt.
    is_broken |= shift.verdict == "refused" or there.low > limit
    is_kept = not is_broken and shift.gap <= limit
    return Score(figures, judgement, shift, there, is_broken, is_kept, outputs, limit, groups, slice_limit)
