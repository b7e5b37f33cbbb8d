"""What devices tell of drift and of inputs that do not fit, of many devices together.

Pure.

Always true
 1. Counts of anomalies go together in any order, and hold a bounded number of kinds: the first ones by name.
"""

from collections.abc import Iterable, Mapping

import msgspec

from fleet.rules.drift import LIMIT

MOST_LABELS, MOST_KINDS = 64, 32
_MOST = 2**53
# By kind of anomaly, how many inputs.
Anomalies = dict[str, int]


def added(one: Anomalies, other: Mapping[str, int]) -> Anomalies:
    if not other:
        return one
    drawn = dict(one)
    for kind, count in other.items():
        drawn[kind] = min(drawn.get(kind, 0) + count, _MOST)
    return dict(sorted(drawn.items())[:MOST_KINDS])


class Said(msgspec.Struct, frozen=True):
    """What devices say of one thing now: how many know it, and of how many of them it is above `LIMIT`. `index` is the mean
    of these; of all where there are none.
    """

    devices: int
    moved: int
    index: float


def said(devices: Iterable[Mapping[str, float]]) -> dict[str, Said]:
    """Of each label, from what each device said last; what moved at most devices first.

    Never the mean of those that moved and those that did not: it says of both what is true of neither.
    """
    known: dict[str, list[float]] = {}
    for one in devices:
        for label, index in one.items():
            if label in known or len(known) < MOST_LABELS:
                known.setdefault(label, []).append(index)
    found = {}
    for label, indices in known.items():
        moved = [index for index in indices if index > LIMIT]
        some = moved or indices
        found[label] = Said(len(indices), len(moved), sum(some) / len(some))
    return dict(sorted(found.items(), key=lambda item: (-item[1].moved, -item[1].index, item[0])))


def moved(devices: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """What moved at devices that drifted, at most devices first. Of a device where nothing is far off now (it may be night),
    the input that is furthest.
    """
    counts: dict[str, int] = {}
    for one in devices:
        far = [label for label, index in one.items() if index > LIMIT]
        inputs = [label for label in one if label.startswith("inputs/")]
        for label in far or sorted(inputs, key=lambda label: -one[label])[:1]:
            counts[label] = counts.get(label, 0) + 1
    return tuple(sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS])
