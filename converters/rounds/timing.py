"""Latencies of a profile's candidates: raced side by side, or estimated where this machine cannot tell.

Always true
 1. All candidates of a race are timed in turn, in one process that does nothing else.
 2. With buckets, the time is that of the evaluation data's mix of sizes; what fails in one bucket is out.
 3. Of a source whose weights are kept apart, candidates are timed one after the other, since together they may not fit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from converters import backends
from converters.backends.artifact import Artifact
from converters.measure import latency, roofline
from converters.measure.host import Host, judged_spec
from converters.measure.race import Runner, Timing, run_race
from converters.recipes.recipes import Loading, other_loadings
from converters.rounds.candidates import Candidate
from converters.work.workbench import Workbench
from edgekit.profile import Profile
from edgekit.tensors import Array


def timed(
    bench: Workbench,
    standing: Sequence[Candidate],
    host: Host,
    rivals: Collection[str],
    *,
    budget_s: float = latency.BUDGET_S,
    in_all_ways: bool = False,
) -> Timing:
    """Latencies of candidates with an artifact, all in one process of their own; only the `rivals` are worth more than
    the first rounds, and with `in_all_ways` those that may win by it are timed as other ways of loading have them too.

    With buckets, each has a race of its own, on samples that fall into it, and they are put together by their shares.
    """
    ways = _ways(bench, standing, host) if in_all_ways else {}

    def raced(size: int | None, feeds: Sequence[Mapping[str, Array]], share_of_time: float) -> Timing:
        runners = [
            _runner(bench, item, item.artifact, host, size) for item in standing if item.artifact is not None
        ]
        runners += [
            _in_a_way(own, name, way) for own in runners for name, way in ways.get(own.name, {}).items()
        ]
        together = [[each] for each in runners] if bench.source.is_apart else [runners]
        parts = [
            run_race(
                racing,
                feeds,
                rivals,
                bench.folder / "race",
                budget_s=budget_s * share_of_time / len(together),
                environment=host.environment,
            )
            for racing in together
        ]
        return Timing(
            {name: found for part in parts for name, found in part.latencies.items()},
            {name: reason for part in parts for name, reason in part.failures.items()},
        )

    shares = bench.data.shares
    if shares:
        timing = _put_together(
            {size: raced(size, bench.data.feeds_at(size), 1 / len(shares)) for size in shares}, shares
        )
    else:
        timing = raced(None, bench.data.feeds, 1)
    for name, reason in timing.failures.items():
        bench.tell(f"{name} {reason}")
    return replace(timing, ways=ways)


def estimated(bench: Workbench, profile: Profile, item: Candidate) -> roofline.Estimate | None:
    """Its compiler's estimate where there is one, otherwise the profile's roofline."""
    if not item.stands or item.artifact is None:
        return None
    made = item.artifact.compiled
    if made is not None:
        return roofline.Estimate(made.latency_ms, made.latency_ms, f"{made.accelerator}, by {made.compiler}")
    return roofline.estimate(bench.work, profile, item.plan.recipe.computes)


def _runner(bench: Workbench, item: Candidate, artifact: Artifact, host: Host, size: int | None) -> Runner:
    """The candidate's model, or that of one bucket."""
    inputs, outputs = (
        artifact.bound(bench.source.inputs),
        artifact.bound(bench.source.outputs, are_outputs=True),
    )
    model, buckets = artifact.runs_here, artifact.buckets(bench.source.buckets)
    if size is not None and buckets is not None:
        model, inputs = buckets.models[buckets.sizes.index(size)], buckets.at(inputs, size)
    return Runner(
        item.recipe, str(artifact.folder / model), judged_spec(item.plan, artifact, host), inputs, outputs
    )


def _ways(bench: Workbench, standing: Sequence[Candidate], host: Host) -> dict[str, dict[str, Loading]]:
    """The other ways of each candidate, by the names that they race under. None where there are fewer cores than the profile
    has, since then no number of threads is the profile's, nor where two models may not fit beside each other.
    """
    if bench.source.is_apart:
        return {}
    found: dict[str, dict[str, Loading]] = {}
    for item in standing:
        plan, artifact = item.plan, item.artifact
        if artifact is None or not plan.tries_loadings or host.threads(plan) != plan.threads:
            continue
        layouts = backends.get(plan.recipe.engine).layouts(artifact.folder / artifact.runs_here, plan)
        ways = other_loadings(plan.threads, layouts)
        found[item.recipe] = {f"{item.recipe} on {way.told}": way for way in ways}
    return found


def _in_a_way(runner: Runner, name: str, way: Loading) -> Runner:
    own = runner.engine
    spec = structs.replace(own, threads=way.threads, options={**own.options, **way.options})
    return structs.replace(runner, name=name, engine=spec, way_of=runner.name)


def _put_together(timings: Mapping[int, Timing], shares: Mapping[int, float]) -> Timing:
    """What fails in one bucket is out."""
    failures = {
        name: f"{reason} (bucket {size})"
        for size, timing in timings.items()
        for name, reason in timing.failures.items()
    }
    # Of other ways those that were worth it in every bucket.
    names = [
        name
        for name in next(iter(timings.values())).latencies
        if name not in failures and all(name in timing.latencies for timing in timings.values())
    ]
    latencies = {
        name: latency.over_buckets({size: timing.latencies[name] for size, timing in timings.items()}, shares)
        for name in names
    }
    return Timing(latencies, failures)
