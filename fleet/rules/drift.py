"""Whose inputs have drifted from what the model was trained on, with false discoveries controlled over the fleet.

Pure. A device says with each window how far its inputs are from the reference (`drift_psi`, the population stability
index of the input that moved most). What is tested is not whether that is above nothing, which with enough data it always
is, but whether its usual level is above `LIMIT`.

 - Windows near each other are alike, so what counts are blocks of about an hour (means of 60 windows or more: batch
   means), and of those only as many as they are worth: n·(1-r)/(1+r), r being their correlation with the one before.
 - The test is Student's, one-sided, of the mean of the blocks' logarithms: an index is skewed, its logarithm hardly. It is
   made of two days of blocks and of the newest day of them.
 - Over all devices and models, Benjamini and Hochberg's procedure keeps the expected share of false names among those
   that are named at or below `FALSE_SHARE` at each look. It holds for tests that depend on each other positively, as
   devices under one sky do.

Always true
 1. Fewer than `MIN_BLOCKS` blocks find nothing.

Sources: Benjamini, Hochberg (1995), "Controlling the False Discovery Rate"; Benjamini, Yekutieli (2001), theorem 1.2;
Bayley, Hammersley (1946), "The 'Effective' Number of Independent Observations in an Autocorrelated Time Series".
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import msgspec

from fleet.rules.evalues import normal_score
from fleet.rules.evidence import Sums

METRIC = "drift_psi"
# By convention an index above 0.2 is a shift (Yurdakul 2018, "Statistical Properties of Population Stability Index").
LIMIT = 0.2
FALSE_SHARE = 0.05
# A whole day of blocks of an hour: what differs by night only is not taken for what differs. With fewer, correlation is
# estimated so badly that too many are named (simulated: tests/fleet/test_drift.py).
MIN_BLOCKS = 24
# Two days of blocks of an hour.
MAX_BLOCKS = 48
_NEWEST_PART = 0.25
# Blocks of one level to the last digit are still no proof of certainty.
_LEAST_SPREAD = 0.05
# Below this nothing moved, and how far below says nothing: an index of a device that is well is often exactly 0.
_SMALLEST = 0.01
Name = TypeVar("Name")


class Track(msgspec.Struct, frozen=True, gc=False):
    """What is kept of one device and bundle: the newest blocks' means, the newest last, and which block was the last."""

    blocks: tuple[float, ...] = ()
    last: str = ""

    def grown(self, older: Sums) -> "Track":
        """With a block of windows that is whole (`sums.Recent.older`); the very same if that was counted already."""
        found = older.metrics.get(METRIC)
        if found is None or not found.count:
            return self
        name = f"{older.windows}:{found.count}:{found.total!r}"
        if name == self.last:
            return self
        return Track((*self.blocks, found.mean)[-MAX_BLOCKS:], name)

    @property
    def level(self) -> float | None:
        """Its usual index: the geometric mean."""
        return math.exp(math.fsum(_logs(self.blocks)) / len(self.blocks)) if self.blocks else None


def _logs(blocks: Sequence[float]) -> list[float]:
    return [math.log(max(value, _SMALLEST)) for value in blocks]


def chance(blocks: Sequence[float], limit: float = LIMIT) -> float | None:
    """How likely blocks this high are where the usual level is at most `limit`; None with too few of them.

    Looked at are all blocks, and the newest of them alone: what began a day ago is seen, however well the day before was.
    The lesser chance is what counts, each made as much larger as its part of the two looks is small (weighted Bonferroni).
    """
    count = len(blocks)
    if count < MIN_BLOCKS:
        return None
    if count == MIN_BLOCKS:
        return _chance(_logs(blocks), limit)
    of_all, of_newest = (_chance(_logs(some), limit) for some in (blocks, blocks[-MIN_BLOCKS:]))
    return min(1.0, of_all / (1 - _NEWEST_PART), of_newest / _NEWEST_PART)


def _chance(logs: Sequence[float], limit: float) -> float:
    count = len(logs)
    mean = math.fsum(logs) / count
    off = [value - mean for value in logs]
    squares = math.fsum(value * value for value in off)
    spread = max(math.sqrt(squares / (count - 1)), _LEAST_SPREAD)
    worth = count * _worth(off, squares)
    if worth < 2:
        return 1.0
    score = normal_score((mean - math.log(limit)) / (spread / math.sqrt(worth)), max(1, round(worth) - 1))
    return math.erfc(score / math.sqrt(2)) / 2


def _worth(off: Sequence[float], squares: float) -> float:
    """What one of so many alike observations is worth, by the correlation with the one before.

    The estimate from few blocks is too small by about (1 + 4r)/n (Kendall 1954), which is put back.
    """
    if squares <= 0:
        return 1.0
    r = math.fsum(a * b for a, b in pairwise(off)) / squares
    r += (1 + 4 * r) / len(off)
    r = min(max(r, 0.0), 0.95)
    return (1 - r) / (1 + r)


def discoveries(chances: Mapping[Name, float], share: float = FALSE_SHARE) -> set[Name]:
    """Those that are named drifted (Benjamini and Hochberg's step-up procedure)."""
    ordered = sorted(chances.items(), key=lambda item: item[1])
    last = 0
    for rank, (_, found) in enumerate(ordered, 1):
        if found <= share * rank / len(ordered):
            last = rank
    return {name for name, _ in ordered[:last]}
