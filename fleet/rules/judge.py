"""What a stage's gates say together.

Always true
 1. Missing data never satisfies a gate: too little is inconclusive.
 2. Every gate is judged per device, and what they find adds up in one budget (`budget`); nothing else turns a rollout
    back but a release that no device reaches. A weak finding pauses.
 3. Devices count by assignment: one that crashed, fell silent or left the release again is `lost`, it does not drop
    out of the mean. One that was silent already when the stage opened counts in neither arm.
 4. The closing stage has no control: its gates against control were satisfied beside the holdback; the devices that
    follow are then compared with their own past, which may pause.
 5. Where several deployments move together each gate is judged on what devices do in its own, all in the one budget; a
    device that is lost is lost once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from fleet.rules import budget, scores, statistics
from fleet.rules.budget import Spent
from fleet.rules.cohorts import FIRST_DEVICES, Tally, tally_of
from fleet.rules.evalues import chance_at_least, of_share, of_silence
from fleet.rules.evidence import DeviceEvidence, StageEvidence
from fleet.rules.gates import Gate, Outcome, Unit, Verdict, show
from fleet.rules.statistics import SMALLEST_ARM, Finding
from fleet.rules.table import Rows, Tables
from fleet.rules.text import show_percent

DEFAULT_LOST = Gate("lost <= 5%", "lost", is_strict=False, limit=0.05)
# Devices fail to install a good release, too: a full disk, a power cut.
DEFAULT_INSTALLS = Gate("install_failures <= 2%", "install_failures", is_strict=False, limit=0.02)
# As many bad devices as come by chance in one of seven stages do not hold a rollout up, where there are devices enough.
_LUCK = 0.15
_ENOUGH_DEVICES = 20
_ENOUGH_WINDOWS = 3


@dataclass(frozen=True)
class Stage:
    """What a gate is judged on. `canary` and `control` are at risk; `tally` counts all that were ordered."""

    canary: Rows
    control: Rows
    tally: Tally
    spent: Spent
    is_closing: bool


@dataclass(frozen=True)
class Opinion:
    """One gate's verdict by itself, its evidence, and what it saw (for later stages)."""

    verdict: Verdict
    e: float = 1.0
    found: tuple[float, float] | None = None


class Judgement(msgspec.Struct, frozen=True):
    """`evidence` of the open stage, the budget's `total`, and what to remember when the stage closes."""

    verdicts: tuple[Verdict, ...]
    evidence: float
    total: float
    spent: Spent


def judge(
    gates: Sequence[Gate],
    data: StageEvidence,
    spent: Spent,
    *,
    stage: int,
    stages: int,
    is_closing: bool = False,
) -> Judgement:
    """The plain rules first, then the rollout's own gates, then those that are always there."""
    judged = with_always(gates)
    first = [gate for gate in judged if gate.deployment not in data.beside]
    present = _arms(first, data, spent, is_closing=is_closing)
    opinions = {gate.text: _opinion(gate, present) for gate in first}
    for deployment, devices in data.beside.items():
        own = [gate for gate in judged if gate.deployment == deployment]
        there = _beside(own, devices, present)
        opinions |= {gate.text: _opinion(gate, there) for gate in own}
    weights = budget.gate_weights(judged)
    terms = {text: weights[text] * opinions[text].e for text in weights}
    evidence = math.fsum(terms.values())
    whole = budget.total(spent, evidence, stage, stages)
    verdicts = [_shown(gate, opinions[gate.text]) for gate in judged]
    if whole >= budget.STOP:
        worst = max(terms, key=lambda text: terms[text])
        verdicts = [
            msgspec.structs.replace(v, outcome=Outcome.VIOLATED) if v.gate == worst else v for v in verdicts
        ]
    found = {
        text: (*spent.found.get(text, ()), opinion.found)
        for text, opinion in opinions.items()
        if opinion.found is not None
    }
    closed = Spent(
        closed=(*spent.closed, evidence),
        found={**spent.found, **found},
        absent=present.spent.absent,
    )
    return Judgement((installs(present.tally), *verdicts), evidence, whole, closed)


def with_always(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """The gates and those that are always there, unless the operator gave them another limit."""
    named = {gate.metric for gate in gates}
    always = [gate for gate in (DEFAULT_LOST, DEFAULT_INSTALLS) if gate.metric not in named]
    return (*gates, *always)


def _arms(gates: Sequence[Gate], data: StageEvidence, spent: Spent, *, is_closing: bool) -> Stage:
    table = tables.of(gates, data)
    rows = table.read(data)
    canary, control = _at_risk(rows)
    tally = tally_of(table, rows, data)
    if len(control) >= SMALLEST_ARM:
        absent = tally.control_silent / len(control)
        spent = msgspec.structs.replace(spent, absent=max(spent.absent, absent))
    return Stage(canary, control, tally, spent, is_closing)


def _beside(gates: Sequence[Gate], devices: Mapping[str, DeviceEvidence], present: Stage) -> Stage:
    """The same stage in another deployment: what its devices do there; how they fared is of the device."""
    data = StageEvidence(devices)
    canary, control = _at_risk(tables.of(gates, data).read(data))
    return replace(present, canary=canary, control=control)


def _at_risk(rows: Rows) -> tuple[Rows, Rows]:
    """Canary and control."""
    is_canary, at_risk = rows.flag("is_canary"), rows.flag("at_risk")
    return rows.take(is_canary & at_risk & ~rows.flag("is_excused")), rows.take(~is_canary & at_risk)


def _opinion(gate: Gate, present: Stage) -> Opinion:
    if gate.metric in _COUNTED:
        return _COUNTED[gate.metric](gate, present)
    return _BY_REFERENCE[gate.reference](gate, present)


def _shown(gate: Gate, opinion: Opinion) -> Verdict:
    return msgspec.structs.replace(opinion.verdict, gate=gate.text)


def _limited(gate: Gate, present: Stage) -> Opinion:
    """A gate with a number as its limit."""
    canary = present.canary.take(scores.usable(gate, present.canary))
    amount = _amount(gate.minimum_unit, canary)
    if not len(canary):
        return _waits(gate, f"too little data: {amount} of {gate.minimum} {gate.minimum_unit}")
    found = statistics.against_limit(gate, canary)
    value = _value(gate, canary, found)
    figure = f"{show(value, gate.about)} on {_devices(len(canary))}, limit {show(gate.limit, gate.about)}"
    has_enough = canary["windows"].sum() >= _ENOUGH_WINDOWS
    e = found.e if found.is_beyond and has_enough else min(1.0, found.e)
    if amount < gate.minimum:
        return _waits(gate, f"too little data: {amount} of {gate.minimum} {gate.minimum_unit}", e)
    return _concluded(gate, found, figure, present, e)


def _compared(gate: Gate, present: Stage) -> Opinion:
    """A gate against control. Devices of earlier stages have a past of other hours, and are left out."""
    canary = _fresh(gate, present)
    control = present.control.take(scores.usable(gate, present.control))
    if present.is_closing and len(control) < SMALLEST_ARM:
        return _after_holdback(gate, canary)
    if min(len(canary), len(control)) < SMALLEST_ARM:
        return _waits(
            gate,
            f"too little data: {len(canary)} canaries and {len(control)} control devices have a past and a present to "
            f"compare; {SMALLEST_ARM} of each are needed",
        )
    found = statistics.against_control(gate, canary, control)
    shown = _figure(gate, found, "control's")
    figure = f"{shown} ({len(canary)} canaries, {len(control)} control devices)"
    if found.worst:
        figure += f"; profile {found.worst} is beyond it"
    return _concluded(gate, found, figure, present, found.e)


def _fresh(gate: Gate, present: Stage) -> Rows:
    return present.canary.take(scores.usable(gate, present.canary) & present.canary.flag("is_fresh"))


def _concluded(gate: Gate, found: Finding, figure: str, present: Stage, e: float) -> Opinion:
    seen = (found.harm, found.se)
    earlier = present.spent.found.get(gate.text, ())
    if found.is_within or (not found.is_beyond and not found.worst and found.with_earlier(earlier).is_within):
        return Opinion(Verdict(gate.text, Outcome.SATISFIED, figure), e, seen)
    where = "seems to be beyond the limit" if found.is_beyond else "not yet sure to be within the limit"
    return Opinion(Verdict(gate.text, Outcome.INCONCLUSIVE, f"{figure}; {where}"), e, seen)


def _after_holdback(gate: Gate, canary: Rows) -> Opinion:
    """Rule 4: without control, only a sure change for the worse holds the last devices up."""
    words = "satisfied beside the devices held back, which follow now"
    if not len(canary):
        return Opinion(Verdict(gate.text, Outcome.SATISFIED, words))
    found = statistics.against_before(gate, canary)
    figure = f"{words}: {_figure(gate, found, 'their own past')}"
    if found.is_surely_beyond:
        return Opinion(Verdict(gate.text, Outcome.VIOLATED, figure, is_weak=True))
    return Opinion(Verdict(gate.text, Outcome.SATISFIED, figure))


def _remembered(gate: Gate, present: Stage) -> Opinion:
    """A gate against the devices' own past."""
    canary = _fresh(gate, present)
    if not len(canary):
        return _waits(gate, "too little data: no device has a past and a present to compare")
    found = statistics.against_before(gate, canary)
    figure = f"{_figure(gate, found, 'their own past')} ({_devices(len(canary))})"
    if found.is_surely_beyond:
        return Opinion(Verdict(gate.text, Outcome.VIOLATED, figure, is_weak=True))
    opinion = _concluded(gate, found, figure, present, 1.0)
    return Opinion(opinion.verdict, 1.0, opinion.found)


def _figure(gate: Gate, found: Finding, whose: str) -> str:
    """What was seen beside what is allowed, in the gate's own terms."""
    if gate.about.kind == "share":
        here, allowed = show_percent(found.rate + found.harm), show_percent(found.margin)
        return f"{here} against {show_percent(found.rate)} by {whose} change, {allowed} more allowed"
    if gate.about.kind == "ratio":
        return f"{math.exp(found.harm):.3g} times {whose} change, limit {gate.limit:g}"
    worse = "lower" if gate.at_least else "higher"
    return f"{found.harm:.3g} {worse} than {whose} change, {found.margin:.3g} allowed"


def _value(gate: Gate, canary: Rows, found: Finding) -> float:
    """The figure beside an absolute limit: the mean of devices; of a latency, the quantile of the middle device."""
    if gate.about.kind == "ratio":
        return math.exp(scores.middle_latency(gate, canary))
    sign = -1.0 if gate.at_least else 1.0
    return max(0.0, gate.limit + sign * found.harm) if gate.about.unit else gate.limit + sign * found.harm


def _amount(unit: Unit, canary: Rows) -> int:
    if unit == "devices":
        return int((canary["windows"] > 0).sum())
    return int(canary[unit].sum())


def _waits(gate: Gate, words: str, e: float = 1.0) -> Opinion:
    return Opinion(Verdict(gate.text, Outcome.INCONCLUSIVE, words), e)


def _install_failures(gate: Gate, present: Stage) -> Opinion:
    tally = present.tally
    failed, settled = tally.failed, tally.settled
    figure = f"{failed} of {_devices(settled)} failed to install, limit {show_percent(gate.limit)}"
    # Of all that were asked: failures are heard of before successes are.
    e = of_share(failed, tally.asked, gate.limit)
    e = e if settled and not gate.holds(failed / settled) else min(1.0, e)
    if settled < gate.minimum:
        return _waits(gate, f"too little data: {settled} of {_devices(gate.minimum)}", e)
    if _is_lucky(gate, failed, settled, gate.limit):
        return Opinion(Verdict(gate.text, Outcome.SATISFIED, figure), e)
    return Opinion(Verdict(gate.text, Outcome.INCONCLUSIVE, f"{figure}; {_names(tally.failures)}"), e)


def _lost(gate: Gate, present: Stage) -> Opinion:
    tally = present.tally
    lost, heard = len(tally.lost), tally.heard
    if heard < gate.minimum:
        return _waits(gate, "no device has accepted the order yet")
    has_control = len(present.control) >= SMALLEST_ARM
    usual = tally.control_silent / len(present.control) if has_control else present.spent.absent
    beside = f" + {show_percent(usual)} usual silence" if usual else ""
    figure = f"{lost} of {_devices(heard)} lost, limit {show_percent(gate.limit)}{beside}"
    if has_control:
        at_risk = (len(tally.entered), len(present.control))
        e = of_silence(tally.fell_silent, tally.control_fell_silent, at_risk, tally.entered)
    else:
        e = of_share(len(tally.silent), heard, min(0.9, gate.limit + usual))
    is_beyond = lost >= 2 and not gate.holds(lost / heard - usual)
    e = e if is_beyond else min(1.0, e)
    if _is_lucky(gate, lost, heard, min(1.0, gate.limit + usual)):
        return Opinion(Verdict(gate.text, Outcome.SATISFIED, figure), e)
    words = f"{figure}: {_names(tally.lost)}; too few to tell a broken device from a broken release"
    return Opinion(Verdict(gate.text, Outcome.INCONCLUSIVE, words), e)


def _is_lucky(gate: Gate, bad: int, total: int, limit: float) -> bool:
    """Whether the share is within the limit, or no more above it than chance would have it."""
    if not bad or (bad / total < limit if gate.is_strict else bad / total <= limit):
        return True
    return total >= _ENOUGH_DEVICES and chance_at_least(bad, total, limit) >= _LUCK


def installs(tally: Tally) -> Verdict:
    """The rules that need no statistics: some device of each profile must have reached the release; two failures among
    the first five pause.
    """
    gate = "installs"
    reached, failed = sum(tally.reached.values()), sum(tally.not_reached.values())
    if failed and not reached and not tally.moving:
        return Verdict(gate, Outcome.VIOLATED, "no device of this stage reached the release")
    barren = {p: count for p, count in tally.not_reached.items() if not tally.reached.get(p)}
    for profile, count in sorted(barren.items()):
        if count >= 2:
            words = f"{count} devices of profile {profile} failed and none reached the release"
            return Verdict(gate, Outcome.VIOLATED, words)
    if tally.first_failures >= 2:
        words = f"{tally.first_failures} of the first {FIRST_DEVICES} devices failed to install the release"
        return Verdict(gate, Outcome.VIOLATED, words, is_weak=True)
    waiting = sorted(barren.keys() | tally.untried)
    if waiting or not reached:
        what = f" of profile {', '.join(waiting)}" if waiting else ""
        return Verdict(gate, Outcome.INCONCLUSIVE, f"no device{what} has reached the release yet")
    return Verdict(gate, Outcome.SATISFIED, f"{_devices(reached)} reached the release")


def _names(devices: frozenset[str]) -> str:
    return ", ".join(sorted(devices)[:5])


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


_Rule = Callable[[Gate, Stage], Opinion]
_COUNTED: Mapping[str, _Rule] = {"install_failures": _install_failures, "lost": _lost}
_BY_REFERENCE: Mapping[str, _Rule] = {"": _limited, "control": _compared, "before": _remembered}

# What is read of records that have not changed since the last tick.
tables = Tables()
