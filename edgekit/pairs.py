"""What timings say that were taken in turn, round by round: intervals by resampling the rounds.

Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", ch. 13 (the percentile interval).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Interval(NamedTuple):
    """A median with its 95 % interval."""

    low: float
    median: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Our time over theirs, over the rounds that both ran: what a slow moment of the machine did to both does not count.

    Dimensionless, above 0. Raises: ValueError without a common round.
    """
    return Interval(*(float(np.exp(value)) for value in _of(_logs(ours, theirs), seed)))


def pooled(boards: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> Interval:
    """The geometric mean over boards of each one's `ratio`, ours and theirs; each board's rounds are drawn by themselves, and
    every board counts alike. It is about these boards, not about others of their kind.

    Raises: ValueError without a board, or for one without a common round.
    """
    if not boards:
        raise ValueError("no boards")
    chance = np.random.default_rng(seed)
    logs = [_logs(ours, theirs) for ours, theirs in boards]
    drawn = [np.median(one[chance.integers(0, len(one), (RESAMPLES, len(one)))], axis=1) for one in logs]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    middle = np.mean([np.median(one) for one in logs])
    return Interval(float(np.exp(low)), float(np.exp(middle)), float(np.exp(high)))


def median(rounds: Sequence[float], seed: int = 0) -> Interval:
    """The median of the rounds, in their unit. Raises: ValueError without a round."""
    if not rounds:
        raise ValueError("no rounds")
    return _of(np.asarray(rounds, np.float64), seed)


def _logs(ours: Sequence[float], theirs: Sequence[float]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    both = min(len(ours), len(theirs))
    if not both:
        raise ValueError("no round was run by both")
    return np.log(np.asarray(ours[:both], np.float64)) - np.log(np.asarray(theirs[:both], np.float64))


def _of(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", seed: int) -> Interval:
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return Interval(float(low), float(np.median(values)), float(high))
