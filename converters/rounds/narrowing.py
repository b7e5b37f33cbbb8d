"""Which candidates are judged in full: the fastest first, until the rest is clearly slower than what seems to hold.

Always true
 1. Nothing that the judged half says decides who is judged in full: the search half and the times do.
 2. Who is left out is slower beyond the measurement's doubt than one that was judged in full.
 3. Whether that was enough is not decided here: selection takes whoever was left out for one that keeps the contract, and
    if it picks such a one, all are judged in full.
"""

from collections.abc import Mapping, Sequence

from converters.data.halves import FEWEST, OF_EACH
from converters.judge.select import Ratio
from converters.measure.host import Host
from converters.measure.latency import Latency
from converters.measure.latency import ratio as ratio_of
from converters.measure.race import Timing
from converters.recipes.recipes import Plan
from converters.rounds.candidates import Candidate, on_search_half
from converters.rounds.making import made, made_together
from converters.rounds.scoring import searched, with_outputs
from converters.work.workbench import Workbench
from edgekit.manifest import Contract

# A candidate is judged a little first where the judged half has so many samples, or takes so many multiply-accumulates: then
# its four passes (both halves, and shifted ones) take about a second.
MANY, LONG_MACS = 256, 4e9


def is_long(bench: Workbench) -> bool:
    """Whether judging a candidate in full takes more than a moment: by samples, and by what one takes."""
    count = len(bench.data.judged)
    return count >= MANY or (count >= FEWEST * OF_EACH and bench.work.macs * count >= LONG_MACS)


def narrowed(
    bench: Workbench,
    contract: Contract,
    tried: Sequence[Candidate],
    host: Host,
    *,
    timing: Timing,
    usual: Mapping[str, tuple[Plan, Latency]],
    jobs: int,
) -> tuple[list[Candidate], Timing]:
    """The glimpsed candidates, in their order, those judged in full that might be picked, and the times. Who has no time is one
    of them. `usual`: the plans and times of those that are loaded in another way and may compute something else in it; who does
    not hold in that way on all samples is judged in the usual one.
    """
    found, times = {item.recipe: item for item in tried}, dict(timing.latencies)
    holding: list[str] = []
    while turn := next_turn([item for item in found.values() if _waits(item)], times, holding, max(jobs, 1)):
        with bench.beside(bench.standard.look_ahead):
            made_together(bench, [found[recipe].plan for recipe in turn], host)
        for recipe in turn:
            bench.tell(f"judging {recipe}")
            found[recipe] = made(bench, found[recipe].plan, host)
            holds = _seems_to_hold(bench, contract, found[recipe], host)
            if not holds and recipe in usual:
                plan, times[recipe] = usual[recipe]
                bench.tell(
                    f"judging {recipe} loaded as usual: in the faster way it loses something on all samples"
                )
                found[recipe] = made(bench, plan, host)
                holds = _seems_to_hold(bench, contract, found[recipe], host)
            if holds:
                holding.append(recipe)
    return list(found.values()), Timing(times, timing.failures)


def next_turn(
    waiting: Sequence[Candidate], times: Mapping[str, Latency], holding: Sequence[str], count: int
) -> list[str]:
    """Up to so many of those that wait and might still be picked, the fastest first; empty where nobody might. Beside the
    fastest only who may be as fast: the rest may not be asked for.
    """
    hopeful = [item.recipe for item in waiting if not _is_beaten(item.recipe, times, holding)]
    ordered = sorted(hopeful, key=lambda recipe: times[recipe].p50_ms if recipe in times else 0.0)
    return [recipe for recipe in ordered if not _is_beaten(recipe, times, ordered[:1])][:count]


def _is_beaten(recipe: str, times: Mapping[str, Latency], holding: Sequence[str]) -> bool:
    if recipe not in times:
        return False
    pairs: list[Ratio] = [ratio_of(times[recipe], times[other]) for other in holding if other in times]
    return any(pair.low > 1 for pair in pairs)


def _waits(item: Candidate) -> bool:
    return item.stands and item.is_glimpsed


def _seems_to_hold(bench: Workbench, contract: Contract, item: Candidate, host: Host) -> bool:
    """Whether it stands, and the search half has nothing against it; of one that is not searched over, its outputs."""
    if not item.stands:
        return False
    if not item.plan.recipe.is_searched_over:
        item = with_outputs(bench, contract, item)
        return item.stands and all(output.holds for output in item.outputs)
    item = searched(bench, contract, item, host)
    return item.search is not None and item.search.is_kept and not on_search_half(item)
