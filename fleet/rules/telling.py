"""What devices tell of drift and of inputs that do not fit, added up over windows.

Pure.

Always true
 1. Sums go together in any order, and hold a bounded number of labels and kinds: the first ones by name.
"""

from collections.abc import Mapping

from edgekit.wire.messages import DeploymentWindow

MOST_LABELS, MOST_KINDS = 64, 32
_MOST = 2**53
# By label (`inputs/image`), how many windows said an index, and their sum.
Moved = dict[str, tuple[int, float]]
# By kind of anomaly, how many inputs.
Anomalies = dict[str, int]


def moved_of(window: DeploymentWindow) -> Moved:
    return {label: (1, index) for label, index in sorted(window.drift.items())[:MOST_LABELS]}


def moved_together(one: Moved, other: Moved) -> Moved:
    if not one or not other:
        return one or other
    drawn = dict(one)
    for label, (count, total) in other.items():
        known = drawn.get(label, (0, 0.0))
        drawn[label] = known[0] + count, known[1] + total
    return dict(sorted(drawn.items())[:MOST_LABELS])


def added(one: Anomalies, other: Mapping[str, int]) -> Anomalies:
    if not other:
        return one
    drawn = dict(one)
    for kind, count in other.items():
        drawn[kind] = min(drawn.get(kind, 0) + count, _MOST)
    return dict(sorted(drawn.items())[:MOST_KINDS])


def means(moved: Moved) -> dict[str, float]:
    """The mean index of each label, what moved most first."""
    found = {label: total / count for label, (count, total) in moved.items() if count}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
