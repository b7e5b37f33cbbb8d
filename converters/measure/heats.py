"""Which candidates are worth another heat of timing, and when the order is known well enough.

Pure: ratios to the leader in, names out.

Always true
 1. The leader goes on as long as anybody does; who goes on is never slower beyond doubt.
 2. Another way to load a model (fewer threads, another layout in memory) replaces its own only where it is faster beyond doubt.
 3. The first rounds drop who is far behind, the first heats clear losers only. Then a heat is run only while the interval
    of a near rival still includes the leader although their medians differ by more than `SAME`: such a pair would be
    decided by noise.
"""

from collections.abc import Collection, Mapping

from converters.judge.select import Ratio

# Who takes this much longer than the leader, beyond doubt, is not timed again; and so much longer, not after the first rounds.
BEHIND, FAR_BEHIND = 1.15, 1.5
# A model is tried in other ways only if it is among so many of the fastest, and takes no longer than so many times the
# fastest; and a way is raced only if its first calls take no longer than so many times the model's own.
MOST_TRIED, FAR, HOPELESS = 6, 2.0, 1.3
# Medians closer than this are equal for anybody's purpose.
SAME = 1.03


def contenders(ratios: Mapping[str, Ratio]) -> set[str]:
    """Those not clearly behind; `ratios` are each one's time over the leader's."""
    return {name for name, ratio in ratios.items() if ratio.low <= BEHIND}


def near(ratios: Mapping[str, Ratio]) -> set[str]:
    """Those that a few rounds have not shown to be far behind; `ratios` are each one's time over the leader's."""
    return {name for name, ratio in ratios.items() if ratio.low <= FAR_BEHIND}


def worth_other_ways(once: Mapping[str, float], rivals: Collection[str]) -> set[str]:
    """Those that may win if they are run in another way; `once` is how long a call of each takes."""
    racing = sorted((name for name in once if name in rivals), key=lambda name: once[name])
    return {name for name in racing[:MOST_TRIED] if once[name] <= FAR * once[racing[0]]}


def better_way(own: Mapping[str, Ratio], leader: Mapping[str, Ratio]) -> str | None:
    """Which of a model's other ways to take: the fastest of those that beat its own beyond doubt and are not behind the
    leader beyond doubt; None if its own stays. Ratios are of each way, to the model's own and to the leader.
    """
    better = [name for name, ratio in own.items() if ratio.high < 1 and leader[name].low <= 1]
    return min(better, key=lambda name: own[name].median, default=None)


def undecided(ratios: Mapping[str, Ratio]) -> set[str]:
    """Those that might be the leader, though their median says otherwise."""
    return {name for name, ratio in ratios.items() if ratio.is_tie and not 1 / SAME <= ratio.median <= SAME}
