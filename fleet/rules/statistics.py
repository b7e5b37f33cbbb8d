"""Comparing canaries with control: did the release make devices worse than it may?

The unit is the device: windows of one device resemble each other, and counting them as independent stops good
releases. Each device is compared with its own past (its last windows on the old release), and the change of canaries
with the change of control over the same time, so that the hour, the weekday and the device's own speed cancel.

Stopping early must survive looking every few seconds. An e-value does: under a release exactly at the limit it
exceeds 1/a at any time with a chance of about a. The rollout's budget a = 5 % is spent over stages and gates.

Source: Robbins (1970), "Statistical Methods Related to the Law of the Iterated Logarithm" (normal mixture);
Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), "Time-uniform central limit theory and asymptotic confidence
sequences" (its use for means over devices); Wallace (1959), "Bounds on normal approximations to Student's and the
chi-square distributions" (small groups).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, pstdev

from fleet.rules.cohorts import Cohorts, DeviceData
from fleet.rules.gates import METRICS, Gate, Outcome, Verdict
from fleet.rules.text import show_percent

ALPHA = 0.05
STAGE_WEIGHTS = (0.4, 0.3, 0.2, 0.1)
SMALLEST_ARM = 5
# Latency: what a harm is expected to look like (10 % in log).
LATENCY_TAU = 0.10
# Errors: one point; requests by which a device's own past is drawn to the fleet's rate; extra spread between devices.
ERROR_TAU = 0.01
ERROR_PRIOR_REQUESTS = 400
ERROR_SPREAD = 0.3
# Error rates closer than a tenth of a point are not told apart.
ERROR_MARGIN = 0.001
_WINSOR_SDS = 4.0
_HALF_WEIGHT_REQUESTS = 60
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Comparison:
    """`excess` over what the gate allows, its standard error, and the scale of harm `tau`, all in one unit."""

    excess: float
    se: float
    tau: float
    freedom: int

    @property
    def e_value(self) -> float:
        """Evidence that the excess is above zero; one-sided normal mixture."""
        if self.se <= 0:
            return 1.0
        z = _normal_score(self.excess / self.se, self.freedom)
        v = (self.tau / self.se) ** 2
        exponent = z * z * v / (2 * (1 + v))
        return 2 / math.sqrt(1 + v) * math.exp(min(exponent, 500.0)) * _NORMAL.cdf(z * math.sqrt(v / (1 + v)))

    @property
    def is_within(self) -> bool:
        """Whether even the upper end (95 %, one-sided) of the excess is not above zero."""
        if self.se <= 0:
            return self.excess <= 0
        return _normal_score(self.excess / self.se, self.freedom) <= _NORMAL.inv_cdf(ALPHA)


def compare(gate: Gate, data: Cohorts, *, stage: int, gates: int) -> Verdict:
    """The verdict of a gate against control, in stage `stage` (from 0) of a rollout with `gates` such gates."""
    use = _latency if METRICS[gate.metric].unit == "ms" else _errors
    canary = [device for device in data.canary if _is_usable(gate, device)]
    control = [device for device in data.control if _is_usable(gate, device)]
    if min(len(canary), len(control)) < SMALLEST_ARM:
        words = (
            f"too little data: {len(canary)} canaries and {len(control)} control devices have a past and a present to "
            f"compare; {SMALLEST_ARM} of each are needed"
        )
        return Verdict(gate.text, Outcome.INCONCLUSIVE, words)
    comparison, words = use(gate, canary, control)
    words = f"{words} ({len(canary)} canaries, {len(control)} control devices)"
    weight = STAGE_WEIGHTS[min(stage, len(STAGE_WEIGHTS) - 1)]
    if comparison.e_value >= gates / (ALPHA * weight):
        return Verdict(gate.text, Outcome.VIOLATED, words)
    if comparison.is_within:
        return Verdict(gate.text, Outcome.SATISFIED, words)
    return Verdict(gate.text, Outcome.INCONCLUSIVE, f"{words}; not yet sure to be within the limit")


def _is_usable(gate: Gate, device: DeviceData) -> bool:
    """It has served since the stage opened and before; latency also waits for the cold start to be over."""
    is_cold = METRICS[gate.metric].unit == "ms" and device.warm_windows < 1
    return device.past is not None and device.past.requests > 0 and device.requests > 0 and not is_cold


def _latency(
    gate: Gate, canary: Sequence[DeviceData], control: Sequence[DeviceData]
) -> tuple[Comparison, str]:
    quantile = METRICS[gate.metric].quantile or 0.95
    usual = fmean(_log_change(device, quantile) for device in control)
    weights = [_weight(device) for device in canary]
    allowed = math.log(gate.limit)
    canary_scores = [
        weight * (_log_change(device, quantile) - usual - allowed)
        for device, weight in zip(canary, weights, strict=True)
    ]
    control_scores = [_weight(device) * (_log_change(device, quantile) - usual) for device in control]
    comparison = _difference(canary_scores, control_scores, LATENCY_TAU * fmean(weights))
    ratio = math.exp(comparison.excess / fmean(weights) + allowed)
    return comparison, f"{ratio:.3g} times control's change, limit {gate.limit:g}"


def _log_change(device: DeviceData, quantile: float) -> float:
    assert device.past is not None
    now, before = device.infer_ms.quantile(quantile), device.past.infer_ms.quantile(quantile)
    return math.log(now / before) if now and before else 0.0


def _weight(device: DeviceData) -> float:
    """A quantile of few requests says little."""
    assert device.past is not None
    after, before = device.infer_ms.count, device.past.infer_ms.count
    return (after / (after + _HALF_WEIGHT_REQUESTS)) * (before / (before + _HALF_WEIGHT_REQUESTS))


def _errors(
    gate: Gate, canary: Sequence[DeviceData], control: Sequence[DeviceData]
) -> tuple[Comparison, str]:
    pasts = [device.past for device in (*canary, *control) if device.past is not None]
    fleet_rate = sum(past.errors for past in pasts) / sum(past.requests for past in pasts)
    expected = sum(_expected(device, fleet_rate) for device in control)
    drift = sum(device.errors for device in control) / expected if expected > 0 else 1.0
    requests = sum(device.requests for device in canary)
    rate = sum(device.errors for device in control) / max(1, sum(device.requests for device in control))
    margin = max((gate.limit - 1) * rate, ERROR_MARGIN)

    def score(device: DeviceData, allowed: float) -> tuple[float, float]:
        usual = _expected(device, fleet_rate) * drift
        spread = 1 + ERROR_SPREAD * usual
        return (device.errors - usual - allowed * device.requests) / spread, device.requests / spread

    moved = [score(device, margin) for device in canary]
    stayed = [score(device, 0.0) for device in control]
    per_point = fmean(weight for _, weight in moved)
    comparison = _difference([s for s, _ in moved], [s for s, _ in stayed], ERROR_TAU * per_point)
    observed = sum(device.errors for device in canary) / requests
    words = f"{show_percent(observed)} errors, control {show_percent(rate)}, margin {show_percent(margin)}"
    if comparison.se <= 0 and requests < 3 / margin:
        # No error anywhere: the rule of three bounds what so few requests can show.
        return Comparison(0.0, 1.0, comparison.tau, comparison.freedom), words
    return comparison, words


def _expected(device: DeviceData, fleet_rate: float) -> float:
    """Errors this device would have made by its own past, drawn to the fleet's rate."""
    assert device.past is not None
    own = (device.past.errors + ERROR_PRIOR_REQUESTS * fleet_rate) / (
        device.past.requests + ERROR_PRIOR_REQUESTS
    )
    return device.requests * own


def _difference(canary: Sequence[float], control: Sequence[float], tau: float) -> Comparison:
    """Canary minus control, both pulled in to 4 standard deviations of control, so that one broken or hostile device
    cannot decide.
    """
    reach = _WINSOR_SDS * pstdev(control)
    tame_control = _winsorized(control, median(control), reach)
    # Around their own median: a real shift of all canaries must not be cut off.
    tame_canary = _winsorized(canary, median(canary), reach) if reach else list(canary)
    left, right = fmean(tame_canary), fmean(tame_control)
    squares = sum((s - left) ** 2 for s in tame_canary) + sum((s - right) ** 2 for s in tame_control)
    freedom = len(canary) + len(control) - 2
    variance = squares / freedom
    se = math.sqrt(variance * (1 / len(canary) + 1 / len(control)))
    return Comparison(left - right, se, tau, freedom)


def _winsorized(scores: Sequence[float], centre: float, reach: float) -> list[float]:
    return [min(max(score, centre - reach), centre + reach) for score in scores]


def _normal_score(t: float, freedom: int) -> float:
    """The standard normal z with about the tail of Student's t (Wallace's approximation)."""
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(shrink * math.sqrt(freedom * math.log1p(t * t / freedom)), t)
