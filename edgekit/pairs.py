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
    both = min(len(ours), len(theirs))
    if not both:
        raise ValueError("no round was run by both")
    logs = np.log(np.asarray(ours[:both])) - np.log(np.asarray(theirs[:both]))
    return Interval(*(float(np.exp(value)) for value in _of(logs, seed)))


def median(rounds: Sequence[float], seed: int = 0) -> Interval:
    """The median of the rounds, in their unit. Raises: ValueError without a round."""
    if not rounds:
        raise ValueError("no rounds")
    return _of(np.asarray(rounds, np.float64), seed)


def _of(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", seed: int) -> Interval:
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return Interval(float(low), float(np.median(values)), float(high))
