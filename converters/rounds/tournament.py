"""The tournament of one profile's candidates: made, mended, judged, timed."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from msgspec import structs

from converters.judge.accuracy import ALONE, Place
from converters.judge.select import Ratio
from converters.measure import heats, latency
from converters.measure.footing import Footing
from converters.measure.host import Host
from converters.measure.race import Timing
from converters.recipes.recipes import Plan
from converters.rounds import mixed_precision, trials
from converters.rounds.candidates import Candidate, on_search_half
from converters.rounds.isolated import memory_alone
from converters.rounds.making import made
from converters.rounds.narrowing import narrowed
from converters.rounds.scoring import is_same_function, scored, searched, with_outputs
from converters.rounds.timing import estimated, timed
from converters.rounds.ways import doubtful, in_their_best_way, settled
from converters.work.workbench import Workbench
from edgekit.errors import ToolFailedError
from edgekit.evidence import TrialEvidence
from edgekit.manifest import Contract
from edgekit.profile import Profile


@dataclass(frozen=True)
class Tournament:
    """Every plan as a judged candidate with what repairs and a search added, the measured latency ratios (empty where
    nothing is measured here), and the search's trials. `footing` says whose times they are.
    """

    candidates: tuple[Candidate, ...]
    ratios: dict[tuple[str, str], Ratio]
    trials: tuple[TrialEvidence, ...]
    footing: Footing


def judged(
    bench: Workbench,
    profile: Profile,
    contract: Contract,
    plans: Sequence[Plan],
    host: Host,
    *,
    search: int = 0,
    jobs: int = 1,
    is_narrow: bool = False,
) -> Tournament:
    """The tournament; `search` is how many trials go beyond the plans, `jobs` how many are made side by side. `is_narrow`: all
    are timed first, and who is clearly slower than one that seems to hold is judged a little only (`narrowing`).
    """
    footing = host.footing(profile, plans)
    # Repairs and a search compare on the footing of the last race.
    host = replace(host, environment=footing.environment)
    tried = []
    for plan in plans:
        tried.append(made(bench, plan, host, is_glimpsed=is_narrow))
        # Whether a worker made it before or this process now.
        bench.steps.made_for(profile.name, plan.name)
    early: Timing | None = None
    glimpsed: list[Candidate] = []
    if is_narrow:
        early, host, footing = _raced(bench, tried, host, footing)
        before, raced = tried, early
        tried, early = in_their_best_way(bench, contract, tried, host, early)
        usual = doubtful(before, tried, raced)
        tried, early = narrowed(bench, contract, tried, host, timing=early, usual=usual, jobs=jobs)
        glimpsed = [item for item in tried if item.is_glimpsed]
        tried = [item for item in tried if not item.is_glimpsed]
    tried = _best_of_family(bench, contract, tried, host)
    if early is None and host.matches(profile) and mixed_precision.may_mend(tried):
        # What holds and what may be mended are compared: with all others, it may be the race that decides too.
        early, host, footing = _raced(bench, tried, host, footing)
    tried = mixed_precision.repaired(bench, profile, contract, tried, host, times=early)
    found: tuple[TrialEvidence, ...] = ()
    if search:
        extra, found = trials.explored(bench, profile, contract, tried, host, count=search, jobs=jobs)
        tried = [*tried, *extra]
        bench.steps.finish(profile.name, "trial")
    tried = [*tried, *glimpsed]
    tried = [with_outputs(bench, contract, item) if item.stands else item for item in tried]
    if not any(item.stands for item in tried) or not host.matches(profile):
        tried = _judged_in_line(bench, contract, tried, _by_preference(profile, tried))
        estimates = (replace(item, estimate=estimated(bench, profile, item)) for item in tried)
        return Tournament(tuple(estimates), {}, found, Footing())
    timing = early
    standing = [item for item in tried if item.stands]
    hopeful = [item.recipe for item in standing if not _is_out(item)]
    if timing is None or not is_final(timing, [item.recipe for item in standing], hopeful):
        timing, host, footing = _raced(bench, tried, host, footing)
    tried, timing = in_their_best_way(bench, contract, tried, host, timing)
    bench.tell("measuring memory")
    # Side by side: who else runs is nothing to a process's memory.
    with ThreadPoolExecutor(max(jobs, 1)) as threads:
        tried = list(threads.map(lambda item: _measured(bench, item, host, timing, footing), tried))
    tried = _judged_in_line(bench, contract, tried, _by_time(tried))
    # Compared with each other are those that could be measured in full.
    ratios = latency.ratios({item.recipe: item.latency for item in tried if item.stands and item.latency})
    return Tournament(tuple(_with_slowness(item, tried, ratios) for item in tried), ratios, found, footing)


def _raced(
    bench: Workbench, tried: Sequence[Candidate], host: Host, footing: Footing
) -> tuple[Timing, Host, Footing]:
    """All that stand, timed; on the footing that they could be timed on."""
    bench.tell("measuring latency")
    standing = [item for item in tried if item.stands]
    rivals = {item.recipe for item in standing if not (_is_out(item) or (item.outputs and item.is_glimpsed))}
    timing = settled(standing, timed(bench, standing, host, rivals, in_all_ways=True))
    if footing.held and timing.failures:
        # openvino 2026.4 crashes on some models when held to AVX2; all are timed anew, on one footing.
        bench.tell(f"{', '.join(timing.failures)} cannot be timed with {footing.held}; nothing is held")
        footing, host = footing.released(), replace(host, environment={})
        timing = settled(standing, timed(bench, standing, host, rivals, in_all_ways=True))
    return timing, host, footing


def is_final(timing: Timing, standing: Collection[str], hopeful: Collection[str]) -> bool:
    """Whether a race that was run before all was known of the candidates need not be run again: nobody came later, and behind
    the fastest of the hopeful (that are not out by now) nobody of them is in doubt, whoever led the race.
    """
    times = timing.latencies
    if not {*standing} <= times.keys() | timing.failures.keys():
        return False
    running = [recipe for recipe in hopeful if recipe in times]
    best = min(running, key=lambda recipe: times[recipe].p50_ms, default="")
    if not best or len(times[best].rounds) < latency.HEAT_ROUNDS:
        return False
    return not heats.undecided({recipe: latency.ratio(times[recipe], times[best]) for recipe in running})


def _judged_in_line(
    bench: Workbench, contract: Contract, tried: Sequence[Candidate], line: Sequence[Candidate]
) -> list[Candidate]:
    """All that stand, judged; those that may err there in the order of the line, which nothing of the judged half decided."""
    doubtful = [item.recipe for item in line if not (_is_out(item) or is_same_function(item))]
    places = {recipe: Place(index, len(doubtful)) for index, recipe in enumerate(doubtful)}

    def judged(item: Candidate) -> Candidate:
        bench.tell(f"judging {item.recipe}")
        return scored(bench, contract, item, places.get(item.recipe, ALONE))

    return [judged(item) if item.stands else item for item in tried]


def _by_time(tried: Sequence[Candidate]) -> list[Candidate]:
    return sorted(
        (item for item in tried if item.stands),
        key=lambda item: item.latency.p50_ms if item.latency else float("inf"),
    )


def _by_preference(profile: Profile, tried: Sequence[Candidate]) -> list[Candidate]:
    engines = list(profile.engines)
    return sorted(
        (item for item in tried if item.stands), key=lambda item: engines.index(item.plan.recipe.engine)
    )


def _best_of_family(
    bench: Workbench, contract: Contract, tried: Sequence[Candidate], host: Host
) -> list[Candidate]:
    """Candidates of fewer bits than float32 with what the search half says; of calibration schemes that differ in nothing else, the one
    that does best there goes on.
    """
    bench.tell("judging on the search half what candidates of fewer bits lose")
    tried = [
        searched(bench, contract, item, host)
        if item.stands and item.search is None and item.plan.recipe.is_searched_over
        else item
        for item in tried
    ]
    families: dict[tuple[str, str], list[Candidate]] = {}
    for item in tried:
        # A locked candidate may be tuned, and was chosen already.
        if item.search is not None and item.plan.recipe.needs_calibration and not item.plan.tuning.label:
            families.setdefault((item.plan.recipe.engine, item.plan.recipe.precision), []).append(item)
    beaten: dict[str, str] = {}
    for rivals in families.values():
        best = min(rivals, key=lambda item: item.search.badness if item.search else float("inf"))
        beaten.update({item.recipe: best.recipe for item in rivals if item is not best})
    return [replace(item, outscored=beaten.get(item.recipe, "")) for item in tried]


def _measured(bench: Workbench, item: Candidate, host: Host, timing: Timing, footing: Footing) -> Candidate:
    """With its latency and peak memory; what cannot run in a process of its own cannot be shipped."""
    if item.recipe in timing.failures:
        return replace(item, failure=timing.failures[item.recipe])
    if item.recipe not in timing.latencies:
        return item
    own = structs.replace(timing.latencies[item.recipe], held=footing.held, is_own=footing.is_own)
    if item.is_glimpsed:
        return replace(item, latency=own)
    try:
        memory = memory_alone(bench, item, host)
    except ToolFailedError as error:
        return replace(item, failure=str(error))
    return replace(item, latency=own, memory_mb=memory.peak_mb, memory_base_mb=memory.base_mb)


def _is_out(item: Candidate) -> bool:
    """Refused already: measured and judged for the table only."""
    return bool(on_search_half(item)) or bool(item.mended) or not all(output.holds for output in item.outputs)


def _with_slowness(
    item: Candidate, tried: Sequence[Candidate], ratios: Mapping[tuple[str, str], Ratio]
) -> Candidate:
    """Say so where an int8 candidate is slower than the float one of its engine."""
    if item.plan.recipe.precision != "int8":
        return item
    for other in tried:
        pair = ratios.get((item.recipe, other.recipe))
        same_engine = other.plan.recipe.engine == item.plan.recipe.engine
        if pair is not None and same_engine and other.plan.recipe.precision == "fp32" and pair.low > 1:
            return replace(
                item, notes=(*item.notes, f"slower than {other.recipe}: {pair.median:.2f} x its time")
            )
    return item
