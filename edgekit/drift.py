"""How far values are from a reference over the same bins, less what chance alone would make of it.

Pure, and without numpy: the agent's supervisor uses it, and the build for what its own sample is worth.

The population stability index of shares p against q is Σ(p-q)·ln(p/q). Between two samples of one distribution it is not
zero: about Σ(Var p + Var q)/q, which for n and m independent values is (B-1)(1/n + 1/m). Values are seldom independent:
those of one picture are alike, and so are pictures of one minute. So n is counted from how much *blocks* of values differ
from each other (a ratio estimate over clusters), and less again where a block is like the one before it. Where blocks cover a
whole day, what comes each day is no chance: only what differs between neighbours is (successive differences).

Always true
 1. Values that come in bunches are worth no more than their bunches differ, and never more than there are of them.
 2. Empty bins make no infinite index: half a value is added to each, in units of what the values are worth.

Sources: Yurdakul (2018), "Statistical Properties of Population Stability Index", eq. 1 and theorem 3; Rao, Scott (1984), "On
Chi-Squared Tests for Multiway Contingency Tables with Cell Proportions Estimated from Survey Data"; Kish (1965), "Survey
Sampling", 6.4 and 8.2; Bayley, Hammersley (1946), "The 'Effective' Number of Independent Observations in an Autocorrelated
Time Series"; Kendall (1954), "Note on Bias in the Estimation of Autocorrelation"; Wolter (2007), "Introduction to Variance
Estimation", 8.2 (systematic samples: v2).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from edgekit.manifest import Histogram, Reference

# Histograms that are watched of a bundle, and bins of one: a stranger's may have more, and messages are bounded.
MOST, MOST_BINS = 64, 32
# By convention an index above 0.2 is a shift.
LIMIT = 0.2
# What values are to be worth, for each bin, before anything is said.
LEAST_PER_BIN = 50
# Or with fewer: an index so many times what chance makes is no chance.
FAR = 16.0
# A correlation estimated from few blocks is never believed beyond this.
_MOST_ALIKE = 0.95
Counts = Sequence[int]
# How blocks follow each other: in no order, one after the other, or over a whole day.
Order = Literal["none", "serial", "day"]


class Measured(msgspec.Struct, frozen=True):
    """`index` is the population stability index less `noise`, its expectation where nothing moved; clipped at 0.

    `worth` is how many independent values were seen, `each` what one value is worth by these blocks alone. Without
    `is_known` there are too few to say anything.
    """

    index: float
    noise: float
    worth: float
    each: float
    is_known: bool


def measured(
    reference: Histogram, blocks: Sequence[Counts], order: Order = "serial", usual: Sequence[float] = ()
) -> Measured | None:
    """The index of blocks of counts, the newest last, over the reference's bins; None where there is nothing to compare.

    `usual` is what a value was worth in earlier blocks like these (`Measured.each`): it is worth no more than their median
    with these, or else the few that happen to be of one scene would be taken for many.
    """
    bins, known = len(reference.counts), sum(reference.counts)
    n = sum(map(sum, blocks))
    if bins < 2 or not known or not n:
        return None
    m = min(float(known), reference.worth) if reference.worth else float(known)
    q = _smoothed([count / known for count in reference.counts], m)
    p = [sum(block[at] for block in blocks) / n for at in range(bins)]
    own = worth(blocks, q, order)
    if own <= 0:
        return None
    # Of an even number the lesser of the two in the middle.
    found = min(own, n * sorted((*usual, own / n))[len(usual) // 2])
    noise = (bins - 1) * (1 / found + 1 / m)
    raw = index(_smoothed(p, found), q)
    enough = LEAST_PER_BIN * bins
    is_known = (found >= enough and m >= enough) or raw >= FAR * noise
    return Measured(max(0.0, raw - noise), noise, found, own / n, is_known)


def index(p: Sequence[float], q: Sequence[float]) -> float:
    """The population stability index of two lists of shares, none of them 0. Dimensionless, at least 0."""
    return math.fsum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def worth(blocks: Sequence[Counts], q: Sequence[float], order: Order = "serial") -> float:
    """How many independent values of shares `q` differ as much as these blocks do; 0 where one block says nothing.

    In "serial" order a block that is like the one before it counts for less.
    """
    sizes = list(map(sum, blocks))
    n, bins = sum(sizes), len(q)
    if len(blocks) < 2 or not n:
        return 0.0
    # Bin by bin, by how much each block is off what is expected of one of its size.
    off = []
    for column, share in zip(zip(*blocks, strict=True), q, strict=True):
        p, root = sum(column) / n, math.sqrt(share)
        off.append([(count - size * p) / root for count, size in zip(column, sizes, strict=True)])
    if order == "day":
        squares = math.fsum((a - b) ** 2 for row in off for a, b in pairwise(row)) / 2
    else:
        squares = math.fsum(value * value for row in off for value in row)
    variance = len(blocks) / (len(blocks) - 1) * squares / (n * n)
    if order == "serial" and squares > 0:
        variance *= _alike(off, squares)
    return min(float(n), (bins - 1) / variance) if variance > 0 else float(n)


def _alike(off: Sequence[Sequence[float]], squares: float) -> float:
    """How much less such blocks are worth: (1+r)/(1-r), r being the correlation with the one before.

    The estimate from few is too small by about (1 + 4r)/n, which is put back.
    """
    r = math.fsum(a * b for row in off for a, b in pairwise(row)) / squares
    r += (1 + 4 * r) / len(off[0])
    r = min(max(r, 0.0), _MOST_ALIKE)
    return (1 + r) / (1 - r)


def bounded(reference: Reference) -> Reference:
    """What of it is watched: the first histograms of inputs, confidence and outputs that are small enough."""
    room = MOST
    kept: dict[str, dict[str, Histogram]] = {}
    for section in ("inputs", "confidence", "outputs"):
        fitting = [
            (label, one)
            for label, one in (getattr(reference, section) or {}).items()
            if 0 < len(one.counts) <= MOST_BINS and len(one.edges) == len(one.counts) + 1
        ]
        kept[section] = dict(fitting[:room])
        room -= len(kept[section])
    return msgspec.structs.replace(reference, **kept)


def _smoothed(shares: Sequence[float], size: float) -> list[float]:
    """With half a value more in each bin."""
    return [(share * size + 0.5) / (size + 0.5 * len(shares)) for share in shares]
