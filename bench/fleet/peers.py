"""What the usual judges would have decided on the same devices: each looks at every tick of a stage.

- `fixed`: canaries' pooled errors more than half a point, or pooled p95 more than ten percent, above control's.
- `mann-whitney`: p < 0.01 (one-sided) that canaries' rates of errors or p95 are larger, whatever the earlier looks said.
- `argo`: the checks of `fixed`; three failed ones in all stop it (failureLimit 2).
"""

import math
from collections.abc import Sequence

import numpy as np

from edgekit.sketch import merge
from fleet.rules.evalues import NORMAL
from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence

_FAILURES = 3


class Peers:
    """Fed with every look; `stopped` holds the names of those that would have stopped the rollout."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self._failures = 0

    def look(self, data: StageEvidence) -> None:
        canary, control = (
            [d for d in data.devices.values() if d.arm is arm and d.warm_windows and d.requests]
            for arm in (Arm.CANARY, Arm.CONTROL)
        )
        if not (canary and control):
            return
        if _is_above(canary, control):
            self.stopped.add("fixed")
            self._failures += 1
            if self._failures >= _FAILURES:
                self.stopped.add("argo")
        if any(_p_larger(values(canary), values(control)) < 0.01 for values in (_rates, _quantiles)):
            self.stopped.add("mann-whitney")


def _is_above(canary: Sequence[DeviceEvidence], control: Sequence[DeviceEvidence]) -> bool:
    rates = [sum(d.errors for d in arm) / sum(d.requests for d in arm) for arm in (canary, control)]
    p95 = [merge(d.sketch for d in arm).quantile(0.95) or 0.0 for arm in (canary, control)]
    return rates[0] > rates[1] + 0.005 or p95[0] > 1.1 * p95[1]


def _rates(arm: Sequence[DeviceEvidence]) -> list[float]:
    return [d.errors / d.requests for d in arm]


def _quantiles(arm: Sequence[DeviceEvidence]) -> list[float]:
    return [d.sketch.quantile(0.95) or 0.0 for d in arm]


def _p_larger(left: Sequence[float], right: Sequence[float]) -> float:
    """The normal approximation with ties. Source: Mann, Whitney (1947)."""
    pool = np.concatenate([left, right])
    _, where, counts = np.unique(pool, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    n, m = len(left), len(right)
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    ties = float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    return 1 - NORMAL.cdf((u - n * m / 2) / math.sqrt(variance)) if variance > 0 else 1.0
