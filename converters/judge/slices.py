"""What a candidate loses in each group of the samples: quantization does not hurt everyone alike.

Pure: figures in, figures out.

Always true
 1. The intervals hold for all groups of all judged candidates together: a group's share of the error that may be made is
    its candidate's, divided by the number of groups (Bonferroni), since it is the worst of them that one looks for.
 2. A group that has too few samples to show anything is never passed; it is said how many would do.
 3. Too few samples refuse nothing either: a group is missed where its loss is beyond the limit and more than chance, or
    beyond the limit with samples enough.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.judge import accuracy
from converters.judge.accuracy import Accuracy, Judgement, Place
from converters.judge.against import Against, taken
from converters.judge.metrics import Metric, MetricError
from edgekit.errors import DataError
from edgekit.tensors import Array

# A group is shown by its name: more of them are a mistake, such as an id of each sample.
MOST = 64


@dataclass(frozen=True)
class Group:
    """One group of a half's samples: `rows` of it, in order."""

    name: str
    rows: NDArray[np.int64]


class SliceScore(msgspec.Struct, frozen=True):
    """A candidate's figures in one group. `accuracy` is None where the metric says nothing of such a group, `judgement`
    where no limit was set.
    """

    name: str
    samples: int
    accuracy: Accuracy | None = None
    judgement: Judgement | None = None
    reason: str = ""

    @property
    def drop(self) -> float:
        """As far as was seen; NaN where nothing was."""
        return float("nan") if self.accuracy is None else self.accuracy.drop

    @property
    def is_missed(self) -> bool:
        return self.judgement is not None and self.judgement.verdict == "missed"

    @property
    def is_undecided(self) -> bool:
        return self.judgement is not None and self.judgement.verdict == "undecided"


def groups(names: NDArray[np.str_] | None, sequence: NDArray[np.int64] | None) -> tuple[Group, ...]:
    """The groups of some samples, by name; none without names.

    Raises: DataError for a sequence in several groups, and for more groups than anybody reads.
    """
    if names is None:
        return ()
    found = np.unique(names)
    if len(found) > MOST:
        raise DataError(
            f"slices name {len(found)} groups, at most {MOST} can be judged; give each sample the name of a group, no id"
        )
    if sequence is not None:
        changes = (names[1:] != names[:-1]) & (sequence[1:] == sequence[:-1])
        if changes.any():
            index = int(np.flatnonzero(changes)[0])
            raise DataError(
                f"slices: sequence {sequence[index]} lies in {str(names[index])!r} and in {str(names[index + 1])!r}; a sequence is"
                " drawn whole, so give all of its samples one group"
            )
    return tuple(Group(str(name), np.flatnonzero(names == name)) for name in found)


@dataclass(frozen=True)
class Mark:
    """One group, and what candidates are compared with there."""

    group: Group
    against: Against

    def score(
        self, candidate: Mapping[str, Array], limit: float | None, place: Place, *, is_same_function: bool
    ) -> SliceScore:
        """Of the candidate's digest of all samples of the half; `place` is that of the group."""
        name, count = self.group.name, len(self.group.rows)
        own = taken(candidate, self.group.rows)
        try:
            found = self.against.compared(own, place=place, is_same_function=is_same_function)
        except MetricError as error:
            # Of all samples it gave a number: it is this group that it says nothing of.
            told = None if limit is None else Judgement("undecided", f"{name}: {error}")
            return SliceScore(name, count, None, told, str(error))
        if limit is None:
            return SliceScore(name, count, found)
        verdict = _judged(found, limit, self.against.metric, is_same_function=is_same_function)
        return SliceScore(name, count, found, verdict, verdict.reason)


def _judged(found: Accuracy, limit: float, metric: Metric, *, is_same_function: bool) -> Judgement:
    plain = accuracy.judge(found, limit, is_bounded=metric.is_bounded, is_same_function=is_same_function)
    least = (
        0
        if is_same_function
        else accuracy.least_samples(limit, is_bounded=metric.is_bounded, alpha=found.alpha)
    )
    if plain.verdict != "missed" or found.trouble or found.groups >= least or found.low > limit:
        return plain
    return Judgement(
        "undecided",
        f"drop {found.drop:+.4f} of only {found.groups} judged {found.unit}, limit {limit:g}; {least} would show it"
        f" (evaluation data of {2 * least} {found.unit} of this group)",
    )


def scores(
    marks: Sequence[Mark],
    candidate: Mapping[str, Array],
    limit: float | None,
    place: Place,
    *,
    is_same_function: bool,
) -> tuple[SliceScore, ...]:
    """A candidate's figures in every group; `place` is its own among the candidates."""
    shared = Share(place.index, place.of, len(marks))
    return tuple(mark.score(candidate, limit, shared, is_same_function=is_same_function) for mark in marks)


class Share(Place, frozen=True):
    """A candidate's place, its error shared by its groups."""

    groups: int = 1

    @property
    def alpha(self) -> float:
        return super().alpha / max(self.groups, 1)


def worst(found: Sequence[SliceScore]) -> SliceScore | None:
    """The group that loses most, as far as was seen."""
    known = [item for item in found if item.accuracy is not None]
    return max(known, key=lambda item: item.drop, default=None)


def verdict(found: Sequence[SliceScore]) -> Judgement | None:
    """Of all groups together: the worst of theirs, with the groups that it is by; None where no limit was set."""
    judged = [(item.name, item.judgement) for item in found if item.judgement is not None]
    if not judged:
        return None
    for word in ("missed", "undecided"):
        told = [f"group {name}: {each.reason}" for name, each in judged if each.verdict == word]
        if told:
            return Judgement(word, "; ".join(told))
    return Judgement("met", "every group keeps its limit")


def in_units(drop: float, slice_limit: float | None, limit: float) -> float:
    """A group's loss beside the whole's, each over its own limit; of a limit of nothing, every loss is beyond all."""
    if not slice_limit:
        return math.inf if drop > 0 else drop
    return drop / slice_limit * limit
