"""Before the button: what each stage's gates will be able to see, and which of them could never conclude.

Always true
 1. What is promised of a stage follows from the rules that will judge it: the same budget, weights and bounds.
 2. A gate whose chance to pass a harmless release stays below `LEAST_CHANCE` even after twice the soak is refused,
    where the devices' traffic is known; one below `LIKELY` is told of.

What devices differ by is assumed (`Usual`): load that wanders and quantiles of few requests. Measured on the simulated
fleet of `bench/fleet`, whose spread is meant to be unkind.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fleet.rules import budget, evalues, judge, scores, statistics
from fleet.rules.evidence import COLD_WINDOWS, COLD_WINDOWS_LATENCY, USUAL_WINDOW_S
from fleet.rules.gates import Gate, show
from fleet.rules.text import show_duration, show_percent

# A harm is seen with this chance; a harmless release should pass a gate nearly always.
POWER = 0.90
LIKELY = 0.95
LEAST_CHANCE = 0.80
_Z_POWER = evalues.NORMAL.inv_cdf(POWER)
# Load that wanders adds this variance to a change of log latency per window; requests this per request.
_LOAD_VARIANCE = 0.25
_REQUEST_VARIANCE = 0.28
_PAST_WINDOWS = 60
# Devices' error rates differ and wander by about as much as they are (a factor of their variance).
_ERROR_SPREAD = 0.5


@dataclass(frozen=True)
class Usual:
    """What is known of a usual device: windows and requests. `requests` (per window) is None where nobody knows."""

    window_s: float = USUAL_WINDOW_S
    requests: float | None = None
    error_rate: float = 0.005

    @property
    def assumed(self) -> float:
        return 8.0 if self.requests is None else self.requests


@dataclass(frozen=True)
class Cut:
    """A stage as it will be: devices ordered by then, and devices still on the old release."""

    words: str
    canaries: int
    controls: int
    is_closing: bool = False


@dataclass(frozen=True)
class Sight:
    """What one gate sees in one stage: the smallest harm it finds with `POWER`, after so many seconds of soak, and the
    chance that a harmless release passes it. `harm` is None where it finds none by itself. `is_counted_out`: there are
    not enough devices, whatever their traffic and windows are.
    """

    gate: Gate
    harm: float | None
    after_s: float
    passes: float
    needs: str = ""
    is_counted_out: bool = False

    @property
    def words(self) -> str:
        if self.harm is None:
            return f"{self.gate.text}: sees nothing by itself here{self.needs}"
        metric = self.gate.about
        harm = show_percent(self.harm) if metric.kind == "ratio" else show(self.harm, metric)
        what = {
            "share": f"{harm.replace(' %', ' points')} more",
            "count": f"{harm} of devices",
            "ratio": f"+{harm}",
            "level": f"a change of {harm}",
        }[metric.kind if not _is_bounded_latency(self.gate) else "share"]
        return f"{self.gate.text}: sees {what} within {show_duration(self.after_s)} (9 times of 10)"


def foresee(
    gates: Sequence[Gate],
    cuts: Sequence[Cut],
    usual: Usual,
    soak_s: float,
    beside: Mapping[str, Usual] = {},
) -> tuple[tuple[Sight, ...], ...]:
    """Per stage, what each gate sees, in the order of `judge.with_always`. `beside` is what is usual in each further
    deployment that moves.
    """
    judged = judge.with_always(gates)
    by_gate = budget.gate_weights(judged)
    best: dict[str, float] = {}
    stages = []
    for weight, cut in zip(budget.stage_weights(len(cuts)), cuts, strict=True):
        sights = []
        for gate in judged:
            needed = budget.STOP / max(1e-9, weight * by_gate.get(gate.text, 0.0))
            here = beside.get(gate.deployment, usual)
            sight = _RULES[_rule_of(gate, cut)](gate, cut, here, soak_s, needed)
            # Later stages are judged together with what earlier ones saw.
            best[gate.text] = max(best.get(gate.text, 0.0), sight.passes)
            sights.append(replace(sight, passes=best[gate.text]))
        stages.append(tuple(sights))
    return tuple(stages)


def hopeless(
    cuts: Sequence[Cut],
    stages: Sequence[Sequence[Sight]],
    usual: Usual,
    beside: Mapping[str, Usual] = {},
) -> str | None:
    """Why some gate could never conclude, and what would help; None if all can."""
    for cut, sights in zip(cuts, stages, strict=True):
        for sight in sights:
            here = beside.get(sight.gate.deployment, usual)
            is_known = here.requests is not None or sight.is_counted_out
            if is_known and sight.passes < LEAST_CHANCE:
                return (
                    f"gate {sight.gate.text!r} could hardly conclude in the stage {cut.words!r}: a harmless release "
                    f"would pass it {sight.passes:.0%} of the time, even after twice the soak{sight.needs}"
                )
    return None


_Rule = Callable[[Gate, Cut, Usual, float, float], Sight]


def _rule_of(gate: Gate, cut: Cut) -> str:
    if gate.about.kind == "count":
        return gate.metric
    if gate.reference == "control" and cut.is_closing:
        return "closing"
    return gate.reference or "limit"


def _compared(gate: Gate, cut: Cut, usual: Usual, soak_s: float, needed: float) -> Sight:
    """Against control: like `statistics.against_control`."""
    if min(cut.canaries, cut.controls) < statistics.SMALLEST_ARM:
        few = statistics.SMALLEST_ARM
        return Sight(
            gate, None, soak_s, 0.0,
            f"; it needs {few} devices on the new and {few} on the old release, here are {cut.canaries} and "
            f"{cut.controls}: use other --stages, --holdback, or an absolute gate", is_counted_out=True,
        )  # fmt: skip

    def se(windows: float) -> float:
        return _change_se(gate, usual, windows) * math.sqrt(1 / cut.canaries + 1 / cut.controls)

    return _sight(gate, usual, soak_s, needed, _Curve(se, _tau(gate), _margin(gate, usual)))


def _limited(gate: Gate, cut: Cut, usual: Usual, soak_s: float, needed: float) -> Sight:
    """Against a number: like `statistics.against_limit`."""
    if gate.about.kind == "level":
        return Sight(gate, gate.limit, soak_s, 1.0)
    limit = statistics.allowed_share(gate)
    rate = usual.error_rate if gate.metric == "error_rate" else limit / 10

    def se(windows: float) -> float:
        requests = usual.assumed * windows
        variance = limit / max(1e-9, requests)
        if cut.canaries < statistics.SMALLEST_ARM:
            return statistics.few_se(limit, requests * cut.canaries)
        variance += _ERROR_SPREAD * rate**2
        return math.sqrt(variance / cut.canaries)

    return _sight(gate, usual, soak_s, needed, _Curve(se, limit, max(0.0, limit - rate)))


def _remembered(gate: Gate, cut: Cut, usual: Usual, soak_s: float, _needed: float) -> Sight:
    """Against before: a sure change pauses."""

    def se(windows: float) -> float:
        return _change_se(gate, usual, windows) / math.sqrt(cut.canaries)

    certain = evalues.of_normal(statistics.Z_SURE, _tau(gate), se(_windows(gate, usual, soak_s)))
    return _sight(gate, usual, soak_s, certain, _Curve(se, _tau(gate), _margin(gate, usual)))


def _followed(gate: Gate, _cut: Cut, _usual: Usual, soak_s: float, _needed: float) -> Sight:
    return Sight(gate, None, soak_s, 1.0, "; it was satisfied beside the holdback, which follows")


def _installed(gate: Gate, cut: Cut, _usual: Usual, soak_s: float, needed: float) -> Sight:
    found = _counted(gate, cut, soak_s, lambda bad: evalues.of_share(bad, cut.canaries, gate.limit) >= needed)
    if cut.canaries >= gate.minimum:
        return found
    needs = f"; it needs {gate.minimum} devices, this stage has {cut.canaries}"
    return replace(found, passes=0.0, needs=needs, is_counted_out=True)


def _silenced(gate: Gate, cut: Cut, _usual: Usual, soak_s: float, needed: float) -> Sight:
    def is_found(bad: int) -> bool:
        if cut.controls >= statistics.SMALLEST_ARM:
            return evalues.of_silence([1.0] * bad, [], (cut.canaries, cut.controls)) >= needed
        return evalues.of_share(bad, cut.canaries, gate.limit) >= needed

    return _counted(gate, cut, soak_s, is_found)


def _counted(gate: Gate, cut: Cut, soak_s: float, is_found: Callable[[int], bool]) -> Sight:
    """The share of bad devices among which enough show with `POWER`."""
    enough = next((bad for bad in range(1, min(cut.canaries, 400) + 1) if is_found(bad)), None)
    if enough is None:
        return Sight(gate, None, soak_s, 1.0, f": {cut.canaries} devices are too few")
    return Sight(gate, _exactly(enough, cut.canaries), soak_s, 1.0)


def _exactly(enough: int, total: int) -> float:
    """The smallest share of bad devices, to a hundredth, that shows `enough` of `total` with `POWER`."""
    for percent in range(1, 101):
        share = percent / 100
        mean, sd = total * share, math.sqrt(total * share * (1 - share))
        if share == 1.0 or evalues.NORMAL.cdf((mean - enough + 0.5) / max(sd, 1e-9)) >= POWER:
            return share
    return 1.0


@dataclass(frozen=True)
class _Curve:
    """The standard error after so many windows, the harm worth finding, and what a harmless release has to spare."""

    se: Callable[[float], float]
    tau: float
    margin: float


def _sight(gate: Gate, usual: Usual, soak_s: float, needed: float, curve: _Curve) -> Sight:
    windows, twice = _windows(gate, usual, soak_s), _windows(gate, usual, 2 * soak_s)
    if usual.assumed <= 0:
        return Sight(gate, None, soak_s, 0.0, "; these devices serve nothing")
    if windows <= 0 or twice <= 0:
        need = (COLD_WINDOWS_LATENCY + 4) * usual.window_s
        return Sight(
            gate, None, soak_s, 0.0, f"; its soak is too short: use --soak {show_duration(need)} or more"
        )
    se = curve.se(windows)
    harm = (_z_needed(needed, curve.tau, se) + _Z_POWER) * se
    if not gate.reference:
        harm += gate.limit if gate.metric == "error_rate" else 0.0
    spare = curve.margin / curve.se(twice)
    passes = evalues.NORMAL.cdf(spare - statistics.Z_PASS)
    needs = "" if passes >= LIKELY else _way_out(gate, usual, soak_s, curve)
    return Sight(
        gate,
        math.expm1(harm) if gate.about.kind == "ratio" and gate.reference else harm,
        soak_s,
        passes,
        needs,
    )


def _way_out(gate: Gate, usual: Usual, soak_s: float, curve: _Curve) -> str:
    """A soak that is long enough, or a limit that is wide enough."""
    target = statistics.Z_PASS + evalues.NORMAL.inv_cdf(LIKELY)
    for times in (2, 3, 4, 6, 8, 12):
        windows = _windows(gate, usual, 2 * times * soak_s)
        if windows > 0 and curve.margin >= target * curve.se(windows):
            return f"; use --soak {show_duration(times * soak_s)} or longer, more devices, or a wider limit"
    return "; use more devices in the stage and held back, or a wider limit"


def _windows(gate: Gate, usual: Usual, soak_s: float) -> float:
    is_cold = gate.about.kind == "ratio" and gate.reference == "control"
    return soak_s / usual.window_s - (COLD_WINDOWS_LATENCY if is_cold else COLD_WINDOWS)


def _change_se(gate: Gate, usual: Usual, windows: float) -> float:
    """Of one device's change."""
    requests = max(1e-9, usual.assumed * windows)
    past = max(1e-9, usual.assumed * _PAST_WINDOWS)
    if gate.about.kind == "share":
        rate = max(usual.error_rate, statistics.ERROR_MARGIN)
        return math.sqrt(rate / requests + rate / (past + scores.PRIOR_REQUESTS) + _ERROR_SPREAD * rate**2)
    load = _LOAD_VARIANCE * (1 / windows + 1 / _PAST_WINDOWS)
    return math.sqrt(load + _REQUEST_VARIANCE * (1 / requests + 1 / past))


def _tau(gate: Gate) -> float:
    return statistics.ERROR_TAU if gate.about.kind == "share" else statistics.LATENCY_TAU


def _margin(gate: Gate, usual: Usual) -> float:
    if gate.about.kind == "ratio":
        return math.log(gate.limit)
    if gate.about.kind == "share":
        allowed = gate.limit if gate.is_added else (gate.limit - 1) * usual.error_rate
        return max(allowed, statistics.ERROR_MARGIN)
    return abs(gate.limit - 1)


def _z_needed(needed: float, tau: float, se: float) -> float:
    low, high = 0.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        if evalues.of_normal(middle, tau, se) >= needed:
            high = middle
        else:
            low = middle
    return high


def _is_bounded_latency(gate: Gate) -> bool:
    return gate.about.kind == "ratio" and not gate.reference


_RULES: Mapping[str, _Rule] = {
    "control": _compared,
    "limit": _limited,
    "before": _remembered,
    "closing": _followed,
    "install_failures": _installed,
    "lost": _silenced,
}
