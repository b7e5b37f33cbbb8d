"""The tournament of one profile's candidates: made, mended, judged, timed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from converters.judge.select import Ratio
from converters.measure import latency
from converters.measure.race import Timing
from converters.recipes.recipes import Plan
from converters.rounds import mixed_precision, trials
from converters.rounds.candidates import Candidate, Host, estimated, made, scored, searched, seen_alone, timed
from converters.work.workbench import Workbench
from edgekit.errors import ToolFailedError
from edgekit.evidence import TrialEvidence
from edgekit.manifest import Contract
from edgekit.profile import Profile


@dataclass(frozen=True)
class Tournament:
    """Every plan as a judged candidate with what repairs and a search added, the measured latency ratios (empty where
    nothing is measured here), and the search's trials.
    """

    candidates: tuple[Candidate, ...]
    ratios: dict[tuple[str, str], Ratio]
    trials: tuple[TrialEvidence, ...]


def judged(
    bench: Workbench,
    profile: Profile,
    contract: Contract,
    plans: Sequence[Plan],
    host: Host,
    *,
    search: int = 0,
    jobs: int = 1,
) -> Tournament:
    """The tournament; `search` is how many trials go beyond the plans, `jobs` how many are made side by side."""
    tried = []
    for plan in plans:
        tried.append(made(bench, plan, host))
        # Whether a worker made it before or this process now.
        bench.steps.made_for(profile.name, plan.name)
    tried = _best_of_family(bench, contract, tried, host)
    tried = mixed_precision.repaired(bench, profile, contract, tried, host)
    found: tuple[TrialEvidence, ...] = ()
    if search:
        extra, found = trials.explored(bench, profile, contract, tried, host, count=search, jobs=jobs)
        tried = [*tried, *extra]
    tried = [scored(bench, contract, item) if item.stands else item for item in tried]
    standing = [item for item in tried if item.stands]
    if not standing or not host.matches(profile):
        estimates = (replace(item, estimate=estimated(bench, profile, item)) for item in tried)
        return Tournament(tuple(estimates), {}, found)
    bench.tell("measuring latency")
    rivals = {item.recipe for item in standing if not _is_out(item)}
    timing = timed(bench, standing, host, rivals)
    tried = [_measured(bench, item, host, timing) for item in tried]
    # Compared with each other are those that could be measured in full.
    ratios = latency.ratios({item.recipe: item.latency for item in tried if item.stands and item.latency})
    return Tournament(tuple(_with_slowness(item, tried, ratios) for item in tried), ratios, found)


def _best_of_family(
    bench: Workbench, contract: Contract, tried: Sequence[Candidate], host: Host
) -> list[Candidate]:
    """int8 candidates with what the search half says; of calibration schemes that differ in nothing else, the one
    that does best there goes on.
    """
    bench.tell("searching: what quantized candidates lose on the search half")
    tried = [
        searched(bench, contract, item, host)
        if item.stands and item.plan.recipe.precision == "int8"
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


def _measured(bench: Workbench, item: Candidate, host: Host, timing: Timing) -> Candidate:
    """With its latency and peak memory; what cannot run in a process of its own cannot be shipped."""
    if item.recipe in timing.failures:
        return replace(item, failure=timing.failures[item.recipe])
    if item.recipe not in timing.latencies:
        return item
    try:
        memory_mb = seen_alone(bench, item, host, {}).memory_mb
    except ToolFailedError as error:
        return replace(item, failure=str(error))
    return replace(item, latency=timing.latencies[item.recipe], memory_mb=memory_mb)


def _is_out(item: Candidate) -> bool:
    """Refused already: measured for the table only."""
    assert item.judgement is not None
    return item.judgement.verdict == "missed" or (item.shift is not None and item.shift.verdict == "refused")


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
