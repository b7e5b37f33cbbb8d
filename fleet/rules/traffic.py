"""What a device's own traffic explains of its latency, taken off before arms are compared.

A device that is busier than it was is slower, on whatever release: control shows by how much. Without it the arms are
told apart sooner (the analysis of covariance; CUPED in experiments on the web).

Always true
 1. A release is not excused by the traffic that it causes: where arms surely differ in traffic nothing is taken off,
    and a slowness that comes with *less* traffic (callers that wait for answers) is never explained by it.
 2. One device's claim of traffic has no say: changes are pulled in to four usual deviations.

Sources: Lin (2013), "Agnostic notes on regression adjustments to experimental data"; Deng, Xu, Kohavi, Walker (2013),
"Improving the sensitivity of online controlled experiments by utilizing pre-experiment data".
"""

from dataclasses import replace

import numpy as np

from fleet.rules import scores
from fleet.rules.evalues import Floats
from fleet.rules.scores import Scores
from fleet.rules.table import Rows

# Arms whose traffic changed apart by so many standard errors are not made equal.
_APART = 2.5
_REACH_SDS = 4.0
_TRIMMED = 1.15
# Fewer devices than this do not show a slope.
_LEAST = 12


def changes(canary: Rows, control: Rows) -> tuple[Floats, Floats]:
    """Each device's change of traffic beyond that of the middle device of control, outliers pulled in."""
    centre = middle_change(control)
    both = scores.traffic_change(canary, centre), scores.traffic_change(control, centre)
    reach = _REACH_SDS * _usual_sd(np.concatenate(both))
    return np.clip(both[0], -reach, reach), np.clip(both[1], -reach, reach)


def middle_change(rows: Rows) -> float:
    now = (rows["requests"] + 0.5) / np.maximum(rows["windows"], 1)
    past = (rows["past_requests"] + 0.5) / np.maximum(rows["past_windows"], 1)
    return float(np.median(np.log(now / past)))


def taken_off(moved: Scores, stayed: Scores, traffic: tuple[Floats, Floats]) -> tuple[Scores, Scores]:
    """The scores of both arms without what their traffic explains."""
    if len(moved) + len(stayed) < _LEAST or _is_apart(*traffic):
        return moved, stayed
    slope = _slope((moved, stayed), traffic)
    return _less(moved, slope, traffic[0]), _less(stayed, slope, traffic[1])


def _less(own: Scores, slope: float, traffic: Floats) -> Scores:
    return replace(own, score=own.score - own.slope * slope * traffic)


def _is_apart(canary: Floats, control: Floats) -> bool:
    se = np.sqrt(canary.var(ddof=1) / len(canary) + control.var(ddof=1) / len(control))
    return bool(abs(canary.mean() - control.mean()) > _APART * se) if se > 0 else True


def _slope(arms: tuple[Scores, Scores], traffic: tuple[Floats, Floats]) -> float:
    """Within arms, never below zero, and drawn to zero by as much as it is unsure."""
    level, change, weight = [], [], []
    for own, x in zip(arms, traffic, strict=True):
        y = own.score / np.maximum(own.slope, 1e-12)
        level.append(y - np.median(y))
        change.append(x - x.mean())
        weight.append(own.slope)
    y, x, w = np.concatenate(level), np.concatenate(change), np.concatenate(weight)
    reach = _REACH_SDS * _usual_sd(y)
    y = np.clip(y, -reach, reach)
    spread = float((w * x * x).sum())
    if spread <= 0:
        return 0.0
    slope = float((w * x * y).sum()) / spread
    residual = y - slope * x
    variance = float((w * w * x * x * residual * residual).sum()) / spread**2
    return slope * max(0.0, 1 - 2 * variance / slope**2) if slope > 0 else 0.0


def _usual_sd(values: Floats) -> float:
    """Without the outermost two percent of each side, at least one device."""
    cut = max(1, len(values) // 50)
    return float(np.sort(values)[cut : len(values) - cut].std()) * _TRIMMED
