"""Other ways to run a candidate's bytes: with fewer threads than the profile has cores.

Always true
 1. A candidate changes its way only where that is faster beyond doubt, and where it may win by it.
 2. It is evaluated anew in the way that it ships: openvino 2026.4 computes some int8 models wrong on one thread.
"""

from collections.abc import Sequence
from dataclasses import replace

from converters.measure import heats, latency
from converters.measure.host import Host
from converters.measure.race import Timing
from converters.rounds.candidates import Candidate, on_search_half
from converters.rounds.making import made, made_together
from converters.rounds.scoring import searched, with_outputs
from converters.rounds.timing import threads_told, way_name
from converters.work.workbench import Workbench
from edgekit.manifest import Contract


def in_their_best_way(
    bench: Workbench, contract: Contract, standing: Sequence[Candidate], host: Host, timing: Timing
) -> tuple[dict[str, Candidate], Timing]:
    """Those that are better off with fewer threads, and the race with one latency of each candidate."""
    times = timing.latencies
    better = {item.recipe: name for item in standing if (name := _better(item, timing))}
    changed = [_with_threads(item, better[item.recipe]) for item in standing if item.recipe in better]
    made_together(bench, [item.plan for item in changed], host)
    found = {
        item.recipe: again
        for item in changed
        if (again := _judged_anew(bench, contract, item, host)) is not None
    }
    usual = {item.recipe: item.plan.threads for item in standing}
    for recipe, again in found.items():
        gain = latency.ratio(times[better[recipe]], times[recipe])
        told = (
            f"on {threads_told(again.plan.threads)}, which takes {gain.median:.2f} x the time of {usual[recipe]}"
            f" ({gain.low:.2f} to {gain.high:.2f})"
        )
        found[recipe] = replace(again, notes=(*again.notes, told))
    own = {item.recipe for item in standing}
    latencies = {name: times[better[name] if name in found else name] for name in own if name in times}
    return found, Timing(latencies, {name: why for name, why in timing.failures.items() if name in own})


def _better(item: Candidate, timing: Timing) -> str | None:
    """The name of the way that it is to take instead of its own."""
    times = timing.latencies
    names = [way_name(item.recipe, threads) for threads in item.plan.fewer_threads]
    names = [name for name in names if name in times]
    if not names or item.recipe not in times:
        return None
    leader = min(times.values(), key=lambda each: each.p50_ms)
    return heats.better_way(
        {name: latency.ratio(times[name], times[item.recipe]) for name in names},
        {name: latency.ratio(times[name], leader) for name in names},
    )


def _with_threads(item: Candidate, way: str) -> Candidate:
    threads = next(each for each in item.plan.fewer_threads if way_name(item.recipe, each) == way)
    return replace(item, plan=replace(item.plan, threads=threads, fewer_threads=()))


def _judged_anew(bench: Workbench, contract: Contract, item: Candidate, host: Host) -> Candidate | None:
    """As it computes with its threads; None where it fails, or loses what it kept before."""
    seen = made(bench, item.plan, host)
    again = replace(item, evaluated=seen.evaluated, parity=seen.parity, failure=seen.failure)
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
        bench.tell(f"{item.recipe} keeps its threads: with {item.plan.threads} {lost}")
        return None
    return None if again.failure else again


def _was_out(item: Candidate) -> bool:
    return bool(on_search_half(item)) or not all(output.holds for output in item.outputs)
