"""Other ways to load a candidate's bytes: with fewer threads than the profile has cores, or laid out otherwise in memory.

Always true
 1. A candidate changes its way only where that is faster beyond doubt, and where it may win by it.
 2. It is evaluated anew in the way that it ships: openvino 2026.4 computes some int8 models wrong on one thread. Who is
    judged a little so far is judged a little in it.
"""

from collections.abc import Sequence
from dataclasses import replace

from converters.graph import canonical
from converters.measure import heats, latency
from converters.measure.host import Host
from converters.measure.latency import Latency
from converters.measure.race import Timing
from converters.recipes.recipes import Loading, Plan
from converters.rounds.candidates import Candidate, on_search_half
from converters.rounds.making import made, made_together
from converters.rounds.scoring import searched, with_outputs
from converters.work.workbench import Workbench
from edgekit.manifest import Contract
from edgekit.samples import rows

# Two ways whose outputs are no further apart, in units of the largest value, compute the same function.
SAME = 1e-3


def settled(standing: Sequence[Candidate], timing: Timing) -> Timing:
    """One time of each candidate: that of the way in which it does best."""
    own = {item.recipe for item in standing}
    latencies = {name: each for name, each in timing.latencies.items() if name in own}
    chosen = {}
    for item in standing:
        name = _better(item, timing)
        if name is not None:
            chosen[item.recipe] = timing.ways[item.recipe][name], latencies[item.recipe]
            latencies[item.recipe] = timing.latencies[name]
    failures = {name: why for name, why in timing.failures.items() if name in own}
    return Timing(latencies, failures, settled=chosen)


def in_their_best_way(
    bench: Workbench, contract: Contract, tried: Sequence[Candidate], host: Host, timing: Timing
) -> tuple[list[Candidate], Timing]:
    """The candidates in the way that their times are of, evaluated in it, and the times; who computes something else in it has
    its own way and time.
    """
    changed = {
        item.recipe: replace(item, plan=_in_its_way(item.plan, *timing.settled[item.recipe], timing))
        for item in tried
        if item.recipe in timing.settled and item.stands
    }
    for is_glimpsed in (False, True):
        plans = [item.plan for item in changed.values() if item.is_glimpsed is is_glimpsed]
        made_together(bench, plans, host, is_glimpsed=is_glimpsed)
    found = {recipe: _judged_anew(bench, contract, item, host) for recipe, item in changed.items()}
    latencies = dict(timing.latencies)
    latencies |= {recipe: usual for recipe, (_, usual) in timing.settled.items() if found.get(recipe) is None}
    return [found.get(item.recipe) or item for item in tried], Timing(latencies, timing.failures)


def doubtful(
    before: Sequence[Candidate], after: Sequence[Candidate], timing: Timing
) -> dict[str, tuple[Plan, Latency]]:
    """The plan and time in its own way of each that was settled on another and computes there what may be another function:
    if it loses something on more samples, that may be the way's doing. `timing` is that before.
    """
    return {
        own.recipe: (own.plan, timing.settled[own.recipe][1])
        for own, now in zip(before, after, strict=True)
        if own.plan is not now.plan and _gap(own, now) > SAME
    }


def _gap(own: Candidate, now: Candidate) -> float:
    """Between the golden samples' outputs in two ways, in units of the largest value."""
    assert own.evaluated is not None
    assert now.evaluated is not None
    return canonical.parity(rows(own.evaluated.golden), rows(now.evaluated.golden))


def _in_its_way(plan: Plan, way: Loading, own: Latency, timing: Timing) -> Plan:
    """With a note of what it gains by it."""
    gain = latency.ratio(timing.latencies[plan.name], own)
    note = (
        f"on {way.told}, which takes {gain.median:.2f} x the time of {Loading(plan.threads).told}"
        f" ({gain.low:.2f} to {gain.high:.2f})"
    )
    return replace(plan.loaded(way), notes=(*plan.notes, note))


def _better(item: Candidate, timing: Timing) -> str | None:
    """The name of the way in which it is to run instead of its own."""
    times = timing.latencies
    names = [name for name in timing.ways.get(item.recipe, {}) if name in times]
    if not names or item.recipe not in times:
        return None
    leader = min(times.values(), key=lambda each: each.p50_ms)
    return heats.better_way(
        {name: latency.ratio(times[name], times[item.recipe]) for name in names},
        {name: latency.ratio(times[name], leader) for name in names},
    )


def _judged_anew(bench: Workbench, contract: Contract, item: Candidate, host: Host) -> Candidate | None:
    """As it computes in its way; None where it fails, or loses what it kept before."""
    seen = made(bench, item.plan, host, is_glimpsed=item.is_glimpsed)
    notes = (*item.notes, item.plan.notes[-1])
    again = replace(item, evaluated=seen.evaluated, parity=seen.parity, failure=seen.failure, notes=notes)
    if again.stands and item.search is not None:
        again = searched(bench, contract, again, host)
    if again.stands:
        again = with_outputs(bench, contract, again)
    lost = (
        again.failure
        or on_search_half(again)
        or next((one.reason for one in again.outputs if not one.holds), "")
    )
    if lost and not _was_out(item):
        way = Loading(item.plan.threads, dict(item.plan.layout))
        bench.tell(f"{item.recipe} is not loaded on {way.told}: {lost}")
        return None
    return None if again.failure else again


def _was_out(item: Candidate) -> bool:
    return bool(on_search_half(item)) or not all(output.holds for output in item.outputs)
