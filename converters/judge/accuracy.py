"""What a candidate loses against its source, with its uncertainty, and what that means for the contract.

Pure: figures in, figures out.

 1. The 95 % bound of a drop is the paired bootstrap's: the same samples are drawn for source and candidate, whole
    sequences where there are any.
 2. A bootstrap of samples without a single difference sees no uncertainty, however few they are. So a bounded metric
    also needs 3 / max_drop samples (the rule of three: with none of n differing, up to 3/n may, at 95 %).
 3. A candidate that computes what the source computes (parity within `SAME`) needs no statistics.

Source: Efron, Tibshirani (1993), "An Introduction to the Bootstrap", ch. 13; Hanley, Lippman-Hand (1983), JAMA 249(13).
"""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.data.halves import groups_of
from converters.judge.metrics import Metric
from edgekit.tensors import Array

ROUNDS = 500
# For a metric that must see whole outputs again for every draw, and outputs of which a draw copies more than this.
FEWER_ROUNDS = 200
LARGE_BYTES = 4_000_000
# For the same on the search half, which every try and trial looks at and which decides nothing for good: there the draws
# were most of a trial (PP-OCRv6's detector, 65 masks of 320 x 320: 200 draws take 8 s, clean and shifted 16).
SEARCH_ROUNDS = 50
CONFIDENCE = 0.95
# Relative difference below which a float candidate counts as the same function as its source.
SAME = 1e-3
MIN_SAMPLES = 30
# The limit that a shift is judged against where the contract names none.
DEFAULT_DROP = 0.01

Verdict = Literal["met", "missed", "undecided", "no-limit"]


class Accuracy(msgspec.Struct, frozen=True):
    """On the half that the contract is judged on; `bound` is the drop's upper 95 % bound."""

    source: float
    candidate: float
    drop: float
    bound: float
    samples: int


class Judgement(msgspec.Struct, frozen=True):
    verdict: Verdict
    reason: str


class Shift(msgspec.Struct, frozen=True):
    """On corrupted inputs: what the source itself loses, and how far the candidate falls behind it there."""

    source_loss: float
    gap: float
    verdict: Literal["fine", "red", "refused"]
    reason: str


def compare(
    metric: Metric,
    source: Mapping[str, Array],
    candidate: Mapping[str, Array],
    labels: Array,
    *,
    sequence: NDArray[np.int64] | None,
    seed: int,
    drawn: NDArray[np.float64] | None = None,
    is_searched: bool = False,
) -> Accuracy:
    """Figures and bound of two digests of the same samples; `drawn` is `resampled` of the source, where it is known.
    `is_searched`: on the search half.

    Raises: DataError if the labels do not fit them.
    """
    count = len(labels)
    ours, theirs = metric.of_digest(source, labels), metric.of_digest(candidate, labels)
    if drawn is None:
        drawn = resampled(metric, source, labels, sequence=sequence, seed=seed, is_searched=is_searched)
    others = resampled(metric, candidate, labels, sequence=sequence, seed=seed, is_searched=is_searched)
    drops = [metric.drop(left, right) for left, right in zip(drawn, others, strict=True)]
    return Accuracy(
        source=ours,
        candidate=theirs,
        drop=metric.drop(ours, theirs),
        bound=float(np.quantile(drops, CONFIDENCE)),
        samples=count,
    )


def judge(accuracy: Accuracy, max_drop: float | None, *, parity: float, is_bounded: bool) -> Judgement:
    """Whether the contract's drop is met, missed, or cannot be told from so few samples."""
    if max_drop is None:
        return Judgement("no-limit", "no accuracy limit")
    if parity <= SAME:
        return Judgement("met", f"computes what the source computes (differs by {parity:.1g} at most)")
    told = f"drop {accuracy.drop:+.4f}, at most {accuracy.bound:.4f} at 95 %, limit {max_drop:g}"
    if accuracy.drop > max_drop:
        return Judgement("missed", told)
    needed = samples_needed(accuracy, max_drop, is_bounded=is_bounded)
    if accuracy.samples < needed or accuracy.bound > max_drop:
        return Judgement(
            "undecided",
            f"{told}; {accuracy.samples} judged samples cannot show it, about {max(needed, accuracy.samples + 1)}"
            f" would (evaluation data of {2 * max(needed, accuracy.samples + 1)})",
        )
    return Judgement("met", told)


def samples_needed(accuracy: Accuracy, max_drop: float, *, is_bounded: bool) -> int:
    """Judged samples after which this drop could be shown to lie within the limit.

    The bootstrap's bound shrinks with the square root of their number.
    """
    floor = least_samples(max_drop, is_bounded=is_bounded)
    room = max_drop - accuracy.drop
    spread = accuracy.bound - accuracy.drop
    if accuracy.bound <= max_drop or room <= 0:
        return floor
    return max(floor, math.ceil(accuracy.samples * (spread / room) ** 2))


def least_samples(max_drop: float, *, is_bounded: bool) -> int:
    """Judged samples without which nothing is shown, however small the drop."""
    return max(MIN_SAMPLES, math.ceil(3 / max_drop)) if is_bounded and max_drop > 0 else MIN_SAMPLES


def judge_shift(
    source_clean: float,
    source_shifted: float,
    candidate_shifted: float,
    metric: Metric,
    max_drop: float | None,
) -> Shift:
    """Refused where the candidate falls behind the source on corrupted inputs by more than three times the limit
    plus half of what the source itself loses there; red where by more than the limit.
    """
    limit = DEFAULT_DROP if max_drop is None else max_drop
    loss = metric.drop(source_clean, source_shifted)
    gap = metric.drop(source_shifted, candidate_shifted)
    allowed = 3 * limit + 0.5 * max(loss, 0.0)
    told = f"on corrupted inputs {gap:+.4f} behind the source, which itself loses {loss:+.4f}"
    if gap > allowed:
        return Shift(
            loss, gap, "refused", f"{told}; more than {allowed:.4f} (3 x limit + half the source's loss)"
        )
    return Shift(loss, gap, "red" if gap > limit else "fine", told)


def resampled(
    metric: Metric,
    outputs: Mapping[str, Array],
    labels: Array,
    *,
    sequence: NDArray[np.int64] | None,
    seed: int,
    is_searched: bool = False,
) -> NDArray[np.float64]:
    """The figures of one model over draws of whole groups, with replacement, (rounds,); the same draws for every model."""
    groups = groups_of(len(labels), sequence)
    is_large = metric.parts is None and sum(array.nbytes for array in outputs.values()) > LARGE_BYTES
    rounds = (SEARCH_ROUNDS if is_searched else FEWER_ROUNDS) if is_large else ROUNDS
    draws = np.random.default_rng(seed).integers(0, len(groups), (rounds, len(groups)))
    if metric.parts is not None:
        parts = metric.shares(outputs, labels)
        sums = np.stack([parts[group].sum(axis=0) for group in groups])[draws].sum(axis=1)
        return np.array([metric.of_sums(each) for each in sums])
    chosen = (np.concatenate([groups[group] for group in drawn]) for drawn in draws)
    return np.array([metric.of_digest(_taken(outputs, rows), labels[rows]) for rows in chosen])


def _taken(outputs: Mapping[str, Array], chosen: NDArray[np.int64]) -> dict[str, Array]:
    return {name: array[chosen] for name, array in outputs.items()}
