"""What all devices saw and gave, beside what their model was judged on: counts over the bins of the bundle's reference.

Pure.

Always true
 1. Counts add up in any order, by minutes, hours and days; those over other bins than the first ones are left out.
 2. What devices say is bounded: so many things with so many bins, and no more counts than fit a database.
 3. Nothing is compared that the reference does not have with as many bins.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from edgekit.manifest import Histogram, Reference
from edgekit.wire.messages import DeploymentWindow

# Of a bundle: things that are watched, and bins of each.
MOST, MOST_BINS = 64, 64
_MOST_COUNTS = 2**53
# Parts of a window, which have the names of the reference's.
SECTIONS = ("inputs", "outputs", "confidence")
# Section and label, as `inputs/image`, to the counts of each bin.
Seen = dict[str, list[int]]
# Values below which shares say little.
ENOUGH = 50


class Compared(msgspec.Struct, frozen=True):
    """One thing that devices see or give. `expected` and `found` are shares of each bin, between `edges`.

    `elsewhere` is the share of values that would have to lie in other bins for both to be alike (the total variation
    distance, from 0 to 1); None below `ENOUGH` values. `expected_mean` and `found_mean` are from the middles of the bins.
    """

    section: str
    label: str
    edges: tuple[float, ...]
    expected: tuple[float, ...]
    found: tuple[float, ...]
    values: int
    elsewhere: float | None
    expected_mean: float
    found_mean: float


def add(seen: Seen, window: DeploymentWindow) -> None:
    """A window's counts go into what was seen so far."""
    for section in SECTIONS:
        named: Mapping[str, Histogram] = getattr(window, section)
        for label, one in named.items():
            put(seen, f"{section}/{label}", one.counts)


def put(seen: Seen, key: str, counts: list[int]) -> None:
    known = seen.get(key)
    if known is None:
        if len(seen) < MOST and 0 < len(counts) <= MOST_BINS:
            seen[key] = list(counts)
    elif len(known) == len(counts):
        seen[key] = [min(a + b, _MOST_COUNTS) for a, b in zip(known, counts, strict=True)]


def together(one: Seen, other: Seen) -> Seen:
    if not one or not other:
        return one or other
    drawn = dict(one)
    for key, counts in other.items():
        put(drawn, key, counts)
    return drawn


def compare(reference: Reference, seen: Seen) -> list[Compared]:
    """What was seen beside the reference; what moved most first, then by name."""
    found = []
    for section in SECTIONS:
        named: Mapping[str, Histogram] = getattr(reference, section) or {}
        for label, one in named.items():
            counts = seen.get(f"{section}/{label}")
            if counts is not None and len(counts) == len(one.counts) and any(counts) and any(one.counts):
                found.append(_compared(section, label, one, counts))
    return sorted(found, key=lambda one: (-(one.elsewhere or 0.0), one.section, one.label))


def _compared(section: str, label: str, reference: Histogram, counts: list[int]) -> Compared:
    want, have = sum(reference.counts), sum(counts)
    expected = tuple(count / want for count in reference.counts)
    found = tuple(count / have for count in counts)
    apart = sum(abs(p - q) for p, q in zip(expected, found, strict=True)) / 2
    return Compared(
        section, label, tuple(reference.edges), expected, found, have, apart if have >= ENOUGH else None,
        _mean(reference.edges, expected), _mean(reference.edges, found),
    )  # fmt: skip


def _mean(edges: Sequence[float], shares: Sequence[float]) -> float:
    middles = ((low + high) / 2 for low, high in pairwise(edges))
    return sum(middle * share for middle, share in zip(middles, shares, strict=True))
