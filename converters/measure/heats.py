"""Which candidates are worth another heat of timing, and when the order is known well enough.

Pure: ratios to the leader in, names out.

Always true
 1. The leader goes on as long as anybody does; who goes on is never slower beyond doubt.
 2. The first heats drop clear losers only. Then a heat is run only while the interval of a near rival still includes
    the leader although their medians differ by more than `SAME`: such a pair would be decided by noise.
"""

from collections.abc import Mapping

from converters.judge.select import Ratio

# Who takes this much longer than the leader, beyond doubt, is not timed again.
BEHIND = 1.15
# Medians closer than this are equal for anybody's purpose.
SAME = 1.03


def contenders(ratios: Mapping[str, Ratio]) -> set[str]:
    """Those not clearly behind; `ratios` are each one's time over the leader's."""
    return {name for name, ratio in ratios.items() if ratio.low <= BEHIND}


def undecided(ratios: Mapping[str, Ratio]) -> set[str]:
    """Those that might be the leader, though their median says otherwise."""
    return {name for name, ratio in ratios.items() if ratio.is_tie and not 1 / SAME <= ratio.median <= SAME}
