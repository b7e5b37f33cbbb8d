"""What a candidate loses against its source, with its uncertainty, and what that means for the contract.

Pure: figures in, figures out.

Always true
 1. A drop is met only if its upper bound is within the limit, by the rules of `converters.judge.bounds`: the same groups
    for source and candidate, whole sequences where there are any, and what was not seen counts.
 2. Candidates judged on the same samples share the error that a bound may make: 5 % for all of them together, since the
    fastest of those that pass is shipped, lucky or not. The first in a line that was drawn up before anybody looked gets
    half of it, the others share the rest (a weighted Bonferroni correction).
 3. What the caller knows to compute the source's own function (a float32 candidate that passed the gate on its outputs)
    needs no least number of samples; its drop is judged all the same.
 4. A figure that is not finite is a miss, and so is a candidate that the user's metric fails on.
"""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.data.halves import groups_of
from converters.judge import bounds
from converters.judge.bounds import Own
from converters.judge.metrics import Metric, MetricError, Outputs, of_source
from edgekit.samples import is_ragged
from edgekit.tensors import Array

# The chance that anything judged on a half is worse than its bound says.
ALPHA = 0.05
# Relative difference below which a float candidate counts as the same function as its source.
SAME = 1e-3
MIN_SAMPLES = 30
# Limits that hold where the contract names none: of figures between 0 and 1, and as shares of the source's own figure.
DEFAULT_DROP = 0.01
DEFAULT_SHARE = 0.02
DEFAULT_SHARES = {"sqnr": 0.05}
# Of what the best constant guess scores.
SHARE_OF_GUESS = 0.01
# Of the spread of the source's outputs, where there are no labels: 20 dB.
SHARE_OF_SPREAD = 0.1
# Metrics of which a hundredth is a point although a sample may move them by more than 1/N.
POINTS = ("cer", "wer", "map", "cosine")

Verdict = Literal["met", "missed", "undecided"]


class Place(msgspec.Struct, frozen=True):
    """A candidate's place in the line of those judged on the same samples, from 0; the first are the most wanted."""

    index: int = 0
    of: int = 1

    @property
    def alpha(self) -> float:
        """Its share of `ALPHA`; all shares sum to that."""
        if self.of < 2:
            return ALPHA
        return ALPHA / 2 if self.index == 0 else ALPHA / 2 / (self.of - 1)


ALONE = Place()


class Accuracy(msgspec.Struct, frozen=True):
    """On the half that the contract is judged on; `bound` is the drop's upper 95 % bound and `low` its lower one, each
    for all `judged` candidates together. `groups` are sequences where there are any, otherwise samples. `trouble` says
    what is not finite, empty if all is.
    """

    source: float
    candidate: float
    drop: float
    bound: float
    samples: int
    low: float = -math.inf
    groups: int = 0
    unit: Literal["samples", "sequences"] = "samples"
    judged: int = 1
    alpha: float = ALPHA
    trouble: str = ""


class Judgement(msgspec.Struct, frozen=True):
    verdict: Verdict
    reason: str


class Shift(msgspec.Struct, frozen=True):
    """On corrupted inputs: what the source itself loses, and how far the candidate falls behind it there, with the 95 %
    bounds of that gap on either side.
    """

    source_loss: float
    gap: float
    verdict: Literal["fine", "red", "refused"]
    reason: str
    low: float = -math.inf
    high: float = math.inf


def resampled(
    metric: Metric,
    outputs: Mapping[str, Array],
    labels: Array,
    *,
    sequence: NDArray[np.int64] | None,
    seed: int,
    is_coarse: bool = False,
) -> Own:
    """One model's side of a comparison: of the source it serves every candidate. `is_coarse`: by fewer draws, where each is a
    call of the metric.
    """
    groups = groups_of(len(labels), sequence)
    return bounds.own(metric, outputs, labels, groups, seed=seed, is_coarse=is_coarse)


def compare(
    metric: Metric,
    source: Mapping[str, Array],
    candidate: Mapping[str, Array],
    labels: Array,
    *,
    sequence: NDArray[np.int64] | None,
    seed: int,
    drawn: Own | None = None,
    others: Own | None = None,
    is_coarse: bool = False,
    place: Place = ALONE,
    is_same_function: bool = False,
) -> Accuracy:
    """Figures and bounds of two digests of the same samples; `drawn` is `resampled` of the source, where it is known,
    and `others` of the candidate. `place`: among the candidates that are judged on these samples.

    Raises: DataError if the labels do not fit them; MetricError where a user's metric gives no number for the source.
    """
    groups = len(groups_of(len(labels), sequence))
    unit: Literal["samples", "sequences"] = "samples" if sequence is None else "sequences"

    def missed(figure: float, drop: float, trouble: str) -> Accuracy:
        return Accuracy(
            ours,
            figure,
            drop,
            math.inf,
            len(labels),
            groups=groups,
            unit=unit,
            judged=place.of,
            trouble=trouble,
        )

    with of_source():
        ours = metric.of_digest(source, labels)
    try:
        theirs = metric.of_digest(candidate, labels)
    except MetricError as error:
        return missed(math.nan, math.nan, f"on this candidate, {error}")
    drop = metric.drop(ours, theirs)
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        whose = ("this candidate", theirs, candidate) if math.isfinite(ours) else ("the source", ours, source)
        return missed(theirs, drop, _strange_figure(metric, *whose, labels))
    if drawn is None:
        with of_source():
            drawn = resampled(metric, source, labels, sequence=sequence, seed=seed, is_coarse=is_coarse)
    try:
        others = others or resampled(
            metric, candidate, labels, sequence=sequence, seed=seed, is_coarse=is_coarse
        )
    except MetricError as error:
        return missed(theirs, drop, f"on a resampled set of {unit} of this candidate, {error}")
    found = bounds.bounds(
        metric,
        drawn,
        others,
        drop,
        groups=groups,
        seed=seed,
        alpha=place.alpha,
        is_unseen_counted=not is_same_function,
    )
    trouble = ""
    if found.strange:
        trouble = f"{metric.name} is not a finite number on {found.strange} of {found.draws} resampled sets of {unit}"
    return Accuracy(
        ours, theirs, drop, found.high, len(labels), found.low, groups, unit, place.of, place.alpha, trouble
    )


def judge(accuracy: Accuracy, limit: float, *, is_bounded: bool, is_same_function: bool = False) -> Judgement:
    """Whether the contract's drop is met, missed, or cannot be told from so few samples."""
    if accuracy.trouble:
        return Judgement("missed", accuracy.trouble)
    among = f" for all {accuracy.judged} judged" if accuracy.judged > 1 else ""
    told = f"drop {accuracy.drop:+.4f}, at most {accuracy.bound:.4f} at 95 %{among}, limit {limit:g}"
    if not accuracy.drop <= limit:
        return Judgement("missed", told)
    needed = samples_needed(accuracy, limit, is_bounded=is_bounded, is_same_function=is_same_function)
    if accuracy.groups < needed or not accuracy.bound <= limit:
        count, more = accuracy.groups, max(needed, accuracy.groups + 1)
        return Judgement(
            "undecided",
            f"{told}; {count} judged {accuracy.unit} cannot show it, about {more} would (evaluation data of"
            f" {2 * more} {accuracy.unit})",
        )
    return Judgement("met", told)


def samples_needed(
    accuracy: Accuracy, limit: float, *, is_bounded: bool, is_same_function: bool = False
) -> int:
    """Judged samples (or sequences) after which this drop could be shown to lie within the limit.

    Of the bound's distance from the drop, what stands for the unseen shrinks with their number, the rest with its square
    root.
    """
    floor = 0 if is_same_function else least_samples(limit, is_bounded=is_bounded, alpha=accuracy.alpha)
    room = limit - accuracy.drop
    spread = accuracy.bound - accuracy.drop
    if accuracy.bound <= limit or room <= 0 or not math.isfinite(spread):
        return floor
    count = accuracy.groups
    unseen = 0.0
    if is_bounded and not is_same_function:
        unseen = min(spread, -math.log(accuracy.alpha) / max(count, 1))
    rest = spread - unseen
    # unseen x^2 + rest x = room, where x^2 is by how much fewer they are now.
    root = rest + math.sqrt(rest * rest + 4 * unseen * room)
    return max(floor, math.ceil(count * (root / (2 * room)) ** 2))


def least_samples(limit: float, *, is_bounded: bool, alpha: float = ALPHA) -> int:
    """Judged samples (or sequences) without which nothing is shown, however small the drop: with none of n worse, a share
    p of all escapes with a chance of (1 - p) to the power of n.
    """
    if not is_bounded or not 0 < limit < 1:
        return MIN_SAMPLES
    return max(MIN_SAMPLES, math.ceil(math.log(alpha) / math.log1p(-limit)))


def default_drop(metric: Metric, source_figure: float, scale: float = 0.0) -> tuple[float, str]:
    """The limit where the contract names none, and a sentence that says so. `scale` is what the best constant guess
    scores (`sense.best_guess`), 0 where none is known: a source without any error would leave no room.
    """
    name = metric.name
    if name == "rmse" and not metric.by_labels:
        limit, why = scale * SHARE_OF_SPREAD, f"{SHARE_OF_SPREAD:.0%} of the spread of the source's outputs"
    elif is_share(metric, source_figure):
        limit, why = DEFAULT_DROP, "one point"
    else:
        share = DEFAULT_SHARES.get(name, DEFAULT_SHARE)
        limit = abs(source_figure) * share
        why = f"{share:.0%} of the source's {source_figure:.4g}"
        if math.isfinite(scale) and SHARE_OF_GUESS * abs(scale) > limit and not metric.higher_is_better:
            limit = SHARE_OF_GUESS * abs(scale)
            why = f"{SHARE_OF_GUESS:.0%} of what the best constant guess scores, {scale:.4g}"
    return limit, f"no max_accuracy_drop given: {limit:.3g} {name} holds ({why})"


def judge_shift(source_clean: float, there: Accuracy, metric: Metric, limit: float) -> Shift:
    """Refused where the candidate falls behind the source on corrupted inputs by more than three times the limit plus
    half of what the source itself loses there; red where that cannot be ruled out, or where it certainly falls behind by
    more than the limit. `there` are the figures on corrupted inputs, `source_clean` the source's on the same, clean.
    """
    loss = metric.drop(source_clean, there.source)
    if there.trouble or not math.isfinite(loss):
        reason = (
            there.trouble or f"{metric.name} of the source is {source_clean:g}, and {there.source:g} there"
        )
        return Shift(loss, there.drop, "refused", f"on corrupted inputs {reason}", there.low, there.bound)
    allowed = 3 * limit + 0.5 * max(loss, 0.0)
    told = (
        f"on corrupted inputs {there.drop:+.4f} behind the source (95 % interval {there.low:+.4f} to"
        f" {there.bound:+.4f}, {there.groups} {there.unit}), which itself loses {loss:+.4f}"
    )
    verdict: Literal["fine", "red", "refused"] = "fine"
    if there.low > allowed or there.drop > allowed:
        verdict = "refused"
        told = f"{told}; more than {allowed:.4f} (3 x limit + half the source's loss)"
    elif there.bound > allowed:
        verdict = "red"
        told = f"{told}; more than {allowed:.4f} (3 x limit + half the source's loss) is not ruled out"
    elif there.low > limit:
        verdict = "red"
        told = f"{told}; more than the limit of {limit:g}"
    return Shift(loss, there.drop, verdict, told, there.low, there.bound)


def is_share(metric: Metric, figure: float) -> bool:
    """Whether a figure is a share of 1, so that a hundredth of it is a point."""
    if metric.is_bounded or metric.name in POINTS or (metric.name == "sqnr" and not metric.by_labels):
        return True
    return metric.higher_is_better and 0 <= figure <= 1 and metric.name not in ("rmse", "sqnr")


def _strange_figure(metric: Metric, whose: str, value: float, digest: Outputs, labels: Array) -> str:
    """Whose figure is not finite, and at which sample where that can be told."""
    found = [index for index in range(len(labels)) if not _is_finite(metric, digest, labels, index)]
    where = f" (first at judged sample {found[0]}, {len(found)} of {len(labels)} in all)" if found else ""
    return f"{metric.name} of {whose} is {value:g}, not a finite number{where}"


def _is_finite(metric: Metric, digest: Outputs, labels: Array, index: int) -> bool:
    """Whether one sample's share is, or what a metric that sees whole outputs gets of it."""
    if metric.parts is not None:
        own = {name: array[index : index + 1] for name, array in digest.items()}
        return bool(np.isfinite(metric.shares(own, labels[index : index + 1])).all())
    parts = (array[index] for array in digest.values())
    return all(
        bool(np.isfinite(part).all()) for part in parts if not is_ragged(part) and part.dtype.kind == "f"
    )
