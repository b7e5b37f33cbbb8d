"""What a gate says about the devices that moved.

Always true
 1. Missing data never satisfies a gate: too little is inconclusive.
 2. An absolute gate stops early only on strong evidence (a chance below one in a thousand under a release exactly at
    the limit); at the end of the soak the plain figure decides.
 3. Devices count by assignment: one that crashed, fell silent or left the release again is `lost`, it does not drop
    out of the mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from edgekit.sketch import Sketch, index_of, merge
from fleet.rules import statistics
from fleet.rules.cohorts import Cohorts
from fleet.rules.gates import METRICS, Gate, Outcome, Unit, Verdict, show
from fleet.rules.text import show_percent

EARLY = 1e-3
LOST_CHANCE = 0.05
DEFAULT_LOST = Gate("lost <= 5%", "lost", False, 0.05, False, 1, "devices")  # a struct's fields
FIRST_DEVICES = 5


class Tally(msgspec.Struct, frozen=True):
    """How the ordered devices fared: `heard` accepted the order, `failed` did not install, `moving` are reachable and
    not there yet; `reached` and `not_reached` count by profile. `untried` profiles have devices waiting, and nobody
    of theirs in the stage could be asked.
    """

    heard: int
    settled: int
    failed: int
    lost: frozenset[str]
    first_failures: int
    reached: Mapping[str, int]
    not_reached: Mapping[str, int]
    moving: int
    untried: frozenset[str]


def _error_rate(gate: Gate, data: Cohorts, _tally: Tally, is_final: bool) -> Verdict:
    requests = sum(device.requests for device in data.canary)
    errors = sum(device.errors for device in data.canary)
    share = _Share(errors, requests, gate.limit, errors / max(1, requests))
    return _share_of_requests(gate, data, share, is_final=is_final)


def _latency(gate: Gate, data: Cohorts, _tally: Tally, is_final: bool) -> Verdict:
    quantile = METRICS[gate.metric].quantile
    assert quantile is not None
    sketch = merge(device.infer_ms for device in data.canary)
    value = sketch.quantile(quantile) or 0.0
    # The p-quantile lies above the limit when more than 1-p of the requests do.
    above = _count_above(sketch, gate.limit)
    share = _Share(above, sketch.count, 1 - quantile, value)
    return _share_of_requests(gate, data, share, is_final=is_final)


class _Share(NamedTuple):
    """`bad` of `requests`, which may be a share of `allowed`; `value` is the gate's own figure."""

    bad: int
    requests: int
    allowed: float
    value: float


def _share_of_requests(gate: Gate, data: Cohorts, share: _Share, *, is_final: bool) -> Verdict:
    bad, requests, allowed, value = share
    metric = METRICS[gate.metric]
    amount = _amount(gate.minimum_unit, data, requests)
    windows = sum(device.windows for device in data.canary)
    on = f"on {requests} requests of {_devices(sum(1 for d in data.canary if d.requests))}"
    figure = f"{show(value, metric)} {on}, limit {show(gate.limit, metric)}"
    if requests and not gate.holds(value) and windows >= 3 and bad >= 3:
        chance = chance_at_least(bad, requests, allowed)
        if chance <= EARLY:
            return Verdict(gate.text, Outcome.VIOLATED, figure)
    if amount < gate.minimum or not requests:
        return Verdict(
            gate.text,
            Outcome.INCONCLUSIVE,
            f"too little data: {amount} of {gate.minimum} {gate.minimum_unit}",
        )
    if gate.holds(value):
        return Verdict(gate.text, Outcome.SATISFIED, figure)
    if is_final:
        return Verdict(gate.text, Outcome.VIOLATED, figure)
    return Verdict(gate.text, Outcome.INCONCLUSIVE, f"{figure}; decided when the soak ends")


def _amount(unit: Unit, data: Cohorts, requests: int) -> int:
    if unit == "requests":
        return requests
    if unit == "windows":
        return sum(device.windows for device in data.canary)
    return sum(1 for device in data.canary if device.requests)


def _install_failures(gate: Gate, _data: Cohorts, tally: Tally, is_final: bool) -> Verdict:
    figure = (
        f"{tally.failed} of {_devices(tally.settled)} failed to install, limit {show_percent(gate.limit)}"
    )
    if tally.settled < gate.minimum:
        return Verdict(
            gate.text, Outcome.INCONCLUSIVE, f"too little data: {tally.settled} of {_devices(gate.minimum)}"
        )
    if gate.holds(tally.failed / tally.settled):
        return Verdict(gate.text, Outcome.SATISFIED, figure)
    # Devices still on their way may yet bring the share down; those that failed stay failed.
    is_certain = is_final or not gate.holds(tally.failed / max(1, tally.heard))
    return Verdict(gate.text, Outcome.VIOLATED if is_certain else Outcome.INCONCLUSIVE, figure)


def _lost(gate: Gate, data: Cohorts, tally: Tally, _is_final: bool) -> Verdict:
    lost = len(tally.lost)
    if tally.heard < gate.minimum:
        return Verdict(gate.text, Outcome.INCONCLUSIVE, "no device has accepted the order yet")
    usual = data.control_silent / data.control_total if data.control_total else 0.0
    allowed = min(1.0, gate.limit + usual)
    beside = f" + {show_percent(usual)} silent control devices" if usual else ""
    figure = f"{lost} of {_devices(tally.heard)} lost, limit {show_percent(gate.limit)}{beside}"
    if lost == 0 or gate.holds(lost / tally.heard - usual):
        return Verdict(gate.text, Outcome.SATISFIED, figure)
    if lost >= 2 and chance_at_least(lost, tally.heard, allowed) <= LOST_CHANCE:
        return Verdict(gate.text, Outcome.VIOLATED, f"{figure}: {', '.join(sorted(tally.lost)[:5])}")
    return Verdict(
        gate.text,
        Outcome.INCONCLUSIVE,
        f"{figure}: {', '.join(sorted(tally.lost)[:5])}; too few to tell a broken device from a broken release",
    )


def installs(tally: Tally) -> Verdict:
    """The rules that need no statistics: some device of each profile must have reached the release, and two failures
    among the first five are enough.
    """
    gate = "installs"
    reached, failed = sum(tally.reached.values()), sum(tally.not_reached.values())
    if tally.first_failures >= 2:
        words = f"{tally.first_failures} of the first {FIRST_DEVICES} devices failed to install the release"
        return Verdict(gate, Outcome.VIOLATED, words)
    if failed and not reached and not tally.moving:
        return Verdict(gate, Outcome.VIOLATED, "no device of this stage reached the release")
    barren = {p: count for p, count in tally.not_reached.items() if not tally.reached.get(p)}
    for profile, count in sorted(barren.items()):
        if count >= 2:
            words = f"{count} devices of profile {profile} failed and none reached the release"
            return Verdict(gate, Outcome.VIOLATED, words)
    waiting = sorted(barren.keys() | tally.untried)
    if waiting or not reached:
        what = f" of profile {', '.join(waiting)}" if waiting else ""
        return Verdict(gate, Outcome.INCONCLUSIVE, f"no device{what} has reached the release yet")
    return Verdict(gate, Outcome.SATISFIED, f"{_devices(reached)} reached the release")


def chance_at_least(bad: int, total: int, share: float) -> float:
    """P(X >= bad) for X binomial(total, share): exact up to 400 trials, beyond that Chernoff's upper bound.

    Source: Hoeffding (1963), "Probability Inequalities for Sums of Bounded Random Variables", theorem 1.
    """
    if bad <= total * share:
        return 1.0
    if share <= 0:
        return 0.0
    if total <= 400:
        return math.fsum(
            math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(bad, total + 1)
        )
    seen = bad / total
    divergence = seen * math.log(seen / share)
    if seen < 1:
        divergence += (1 - seen) * math.log((1 - seen) / (1 - share))
    return math.exp(-total * divergence)


def _count_above(sketch: Sketch, limit: float) -> int:
    """Values in bins wholly above the limit."""
    edge = index_of(limit) if limit > 0 else -(10**9)
    return sum(count for index, count in sketch.bins.items() if index > edge)


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


_Judge = Callable[[Gate, Cohorts, Tally, bool], Verdict]
_ABSOLUTE: Mapping[str, _Judge] = {
    "error_rate": _error_rate,
    "latency_p50": _latency,
    "latency_p95": _latency,
    "latency_p99": _latency,
    "install_failures": _install_failures,
    "lost": _lost,
}


def judge(
    gates: Sequence[Gate], data: Cohorts, tally: Tally, *, stage: int, is_final: bool
) -> tuple[Verdict, ...]:
    """The verdicts of the rollout's own gates, then of the rules that always hold.

    `stage` counts from 0; `is_final` after the soak, when the plain figure of an absolute gate decides.
    """
    relative = sum(gate.is_relative for gate in gates)
    always = () if any(gate.metric == "lost" for gate in gates) else (DEFAULT_LOST,)
    own = [
        statistics.compare(gate, data, stage=stage, gates=relative)
        if gate.is_relative
        else _ABSOLUTE[gate.metric](gate, data, tally, is_final)
        for gate in (*gates, *always)
    ]
    # First the plainest reason to stop.
    return (installs(tally), *own)
