"""A candidate of one profile: made from a plan, scored, and run in a process of its own."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from converters import backends
from converters.backends import Unsupported
from converters.backends.artifact import Artifact
from converters.graph import canonical
from converters.judge import fit
from converters.judge.accuracy import Accuracy, Judgement, Place, Shift, Verdict
from converters.judge.outputs import OutputScore
from converters.judge.score import Score, score
from converters.judge.select import Contender
from converters.measure import latency, roofline
from converters.measure.alone import Job, Memory, peak_memory, run_job
from converters.measure.footing import Footing, footing
from converters.measure.latency import Latency
from converters.measure.race import Runner, Timing, run_race
from converters.quantize.sensitivity import LayerError
from converters.recipes.recipes import Plan
from converters.rounds import float_layers
from converters.work import golden
from converters.work.findings import Evaluated, told
from converters.work.orders import whole
from converters.work.scratch import check_room
from converters.work.workbench import Workbench
from edgekit import detect, engines, interrupt
from edgekit.errors import DataError, EdgeKitError
from edgekit.evidence import Where
from edgekit.manifest import Contract, EngineSpec
from edgekit.profile import Profile
from edgekit.samples import Samples, dump_npz, rows
from edgekit.tensors import Array

# Schemes of one precision, the surest first.
_SCHEME_RANK = {
    "float": 0,
    "static": 1,
    "percentile": 2,
    "static16": 2,
    "dynamic": 3,
    "weights": 4,
    "as-is": 0,
}


@dataclass(frozen=True)
class BucketScore:
    """Of one bucket: the share of all evaluation samples that falls into it, and the metric on the judged ones."""

    size: int
    share: float
    samples: int
    source: float
    candidate: float


@dataclass(frozen=True)
class Candidate:
    """A recipe tried. Without an artifact, `failure` says why; figures that were not obtained are None."""

    plan: Plan
    failure: str = ""
    outscored: str = ""
    artifact: Artifact | None = None
    evaluated: Evaluated | None = None
    parity: float = float("inf")
    # Of the artifact and its self-test, within their headers.
    bundle_bytes: int | None = None
    accuracy: Accuracy | None = None
    judgement: Judgement | None = None
    shift: Shift | None = None
    # What it keeps of every output, on the judged half.
    outputs: tuple[OutputScore, ...] = ()
    latency: Latency | None = None
    memory_mb: float | None = None
    # Of that, what the process took before it loaded its engine.
    memory_base_mb: float | None = None
    estimate: roofline.Estimate | None = None
    notes: tuple[str, ...] = ()
    # Figures of each bucket, smallest first.
    buckets: tuple[BucketScore, ...] = ()
    # What the search half said, and each layer's share in it where that was asked for.
    search: Score | None = None
    layers: tuple[LayerError, ...] = ()
    # The candidate that was made of this one and keeps what this one does not.
    mended: str = ""

    @property
    def recipe(self) -> str:
        return self.plan.name

    @property
    def stands(self) -> bool:
        return not self.failure and not self.outscored


@dataclass(frozen=True)
class Host:
    """The building machine, and whether what it measures counts for a profile."""

    cpu: str
    isa: tuple[str, ...]
    arch: str
    cores: int
    # Added to that of processes that time: what holds engines to a profile (measure.footing).
    environment: Mapping[str, str] = field(default_factory=dict)

    def matches(self, profile: Profile) -> bool:
        """Same architecture, every instruction set of the profile, and no accelerator that is not here."""
        return profile.arch == self.arch and set(profile.isa) <= set(self.isa) and profile.accelerator is None

    def footing(self, profile: Profile, plans: Iterable[Plan]) -> Footing:
        """On what footing these plans' candidates are timed here for the profile."""
        work = [(plan.recipe.engine, plan.recipe.computes) for plan in plans if not plan.obstacle]
        return footing(profile.isa, self.isa, work)

    def where(self, plan: Plan) -> Where:
        """The origin of what was measured here with this plan."""
        return Where(
            cpu=self.cpu,
            isa=self.isa,
            engine=plan.recipe.engine,
            engine_version=engines.get(plan.recipe.engine).version(),
            threads=self.threads(plan),
        )

    def threads(self, plan: Plan) -> int:
        """What the manifest says, as far as there are cores: more threads than cores measure the scheduler."""
        return min(plan.threads, self.cores)


def this_host() -> Host:
    return Host(detect.cpu_name(), detect.isa(), os.uname().machine, len(os.sched_getaffinity(0)))


def estimated(bench: Workbench, profile: Profile, item: Candidate) -> roofline.Estimate | None:
    """Its compiler's estimate where there is one, otherwise the profile's roofline."""
    if not item.stands or item.artifact is None:
        return None
    made = item.artifact.compiled
    if made is not None:
        return roofline.Estimate(made.latency_ms, made.latency_ms, f"{made.accelerator}, by {made.compiler}")
    return roofline.estimate(bench.work, profile, item.plan.recipe.computes)


def contender(item: Candidate, profile: Profile) -> Contender:
    """What selection needs of a candidate that stands."""
    assert item.artifact is not None
    assert item.evaluated is not None
    verdict, reason = _verdict(item)
    compiled = item.artifact.compiled
    return Contender(
        recipe=item.recipe,
        engine_rank=list(profile.engines).index(item.plan.recipe.engine),
        precision=item.plan.recipe.precision,
        scheme_rank=_SCHEME_RANK[item.plan.recipe.scheme],
        size_bytes=item.artifact.size_bytes,
        verdict=verdict,
        verdict_reason=reason,
        is_refused_on_shift=bool(item.mended) or (item.shift is not None and item.shift.verdict == "refused"),
        shift_reason=_shift_reason(item),
        latency_p50_ms=item.latency.p50_ms if item.latency else None,
        latency_p95_ms=item.latency.p95_ms if item.latency else None,
        is_own_time=item.latency is None or item.latency.is_own,
        memory_mb=item.memory_mb,
        least_memory_mb=compiled.memory_mb if compiled else None,
        misfit=fit.misfit(profile, item.bundle_bytes or item.artifact.size_bytes, item.memory_mb, compiled),
    )


def _verdict(item: Candidate) -> tuple[Verdict, str]:
    """The judged half's word, with what the search half and the layers had to say about it."""
    assert item.judgement is not None
    verdict, reason = item.judgement.verdict, item.judgement.reason
    ruined = [output.reason for output in item.outputs if not output.holds]
    if ruined:
        verdict, reason = "missed", "; ".join(ruined if verdict != "missed" else (reason, *ruined))
    objection = on_search_half(item)
    if objection and verdict != "missed":
        verdict, reason = "missed", f"{reason}; on the search half {objection}"
    if item.layers and item.search is not None and item.search.is_broken:
        reason = f"{reason}; worst layers: {float_layers.named(item.layers)}"
    return verdict, reason


def on_search_half(item: Candidate) -> str:
    """What rules a candidate out before it is judged; empty if nothing does."""
    if item.search is None:
        return ""
    if item.search.judgement.verdict == "missed":
        return item.search.judgement.reason
    return next((output.reason for output in item.search.outputs if not output.holds), "")


def _shift_reason(item: Candidate) -> str:
    """Of the judged half, or of the search half where that had something mended."""
    reason = item.shift.reason if item.shift else ""
    if item.mended and item.search is not None and item.search.shift is not None:
        reason = f"on the search half, {item.search.shift.reason}; mended as {item.mended}"
    return f"{reason}; worst layers: {float_layers.named(item.layers)}" if item.layers else reason


def seen_alone(
    bench: Workbench,
    item: Candidate,
    host: Host,
    environment: Mapping[str, str],
    *,
    samples: Samples,
    spec: EngineSpec,
) -> dict[str, Array]:
    """The candidate's outputs in a process of its own. Raises: ToolFailedError."""
    folder = _child(bench)
    (folder / "samples.npz").write_bytes(dump_npz(samples))
    return run_job(_job(bench, item, spec, folder), folder, {**host.environment, **environment})


def memory_alone(bench: Workbench, item: Candidate, host: Host) -> Memory:
    """What a process takes that loads and runs nothing but the candidate. Raises: ToolFailedError."""
    assert item.artifact is not None
    folder = _child(bench)
    job = _job(bench, item, judged_spec(item.plan, item.artifact, host), folder)
    return peak_memory(job, bench.data.feeds, folder, host.environment)


def _child(bench: Workbench) -> Path:
    folder = bench.folder / "child"
    folder.mkdir(exist_ok=True)
    return folder


def _job(bench: Workbench, item: Candidate, spec: EngineSpec, folder: Path) -> Job:
    artifact, source = item.artifact, bench.source
    assert artifact is not None
    return Job(
        folder=str(artifact.folder),
        engine=spec,
        inputs=artifact.bound(source.inputs),
        outputs=artifact.bound(source.outputs),
        state=source.state,
        samples=str(folder / "samples.npz"),
        out=str(folder / "out.npz"),
        buckets=artifact.buckets(source.buckets),
    )


def made_together(
    bench: Workbench, plans: Sequence[Plan], host: Host, *, limit_s: float = float("inf")
) -> None:
    """All that these plans' candidates need, made side by side."""
    bench.together([whole(plan, host.threads(plan), limit_s) for plan in plans if not _obstacle(bench, plan)])


def made(bench: Workbench, plan: Plan, host: Host, *, limit_s: float = float("inf")) -> Candidate:
    """Converted and run on the evaluation data, or the reason why not; in `limit_s` seconds, if that is less than the
    build's own limit.
    """
    blank = Candidate(plan, notes=plan.notes)
    obstacle = _obstacle(bench, plan)
    if obstacle:
        return replace(blank, failure=obstacle)
    made_together(bench, [plan], host, limit_s=limit_s)
    try:
        artifact = bench.artifact(plan)
        if plan.static_shapes_only:
            _refuse_open_shapes(artifact, plan.recipe.engine)
        evaluated = bench.evaluate(artifact, plan, host.threads(plan))
    except EdgeKitError as error:
        interrupt.check()
        check_room(bench.folder)
        return replace(blank, failure=str(error))
    except Exception as error:  # noqa: BLE001  # a tool's bug costs its candidate, not the build; the reason is shown
        interrupt.check()
        check_room(bench.folder)
        return replace(blank, failure=told(error))
    parity = canonical.parity(rows(bench.standard.reference.golden), rows(evaluated.golden))
    golden_bytes = bench.golden.size_bytes(artifact.size_bytes, is_whole=golden.is_whole(plan))
    return replace(
        blank,
        artifact=artifact,
        bundle_bytes=artifact.size_bytes + golden_bytes,
        evaluated=evaluated,
        parity=parity,
        notes=(*blank.notes, *artifact.notes),
    )


def _obstacle(bench: Workbench, plan: Plan) -> str:
    """Why a plan need not be tried; empty if it may be."""
    if plan.obstacle:
        return plan.obstacle
    if plan.constraints.vela and bench.source.buckets:
        return "buckets are not compiled for an Ethos-U yet; give this target's input one size"
    if plan.recipe.needs_calibration and bench.prepared.calibration is None:
        return "needs calibration data ([data] calibration, or --calibration)"
    installed = engines.installed().get(plan.recipe.engine)
    if installed is None:
        return f"{plan.recipe.engine} is not installed here"
    if not engines.accepts(plan.versions, installed):
        return f"the profile wants {plan.recipe.engine} {plan.versions}, and {installed} is installed here"
    return ""


def _refuse_open_shapes(artifact: Artifact, engine: str) -> None:
    """Raises: Unsupported."""
    found = backends.get(engine).open_shapes(artifact.folder / artifact.runs_here)
    if found:
        raise Unsupported(
            f"the profile takes static shapes only, and {len(found)} inside depend on the data: {', '.join(found[:5])}"
        )


def searched(bench: Workbench, contract: Contract, item: Candidate, host: Host) -> Candidate:
    """Scored on the search half, which may be looked at again and again; an engine that fails there costs it."""
    assert item.artifact is not None
    threads = host.threads(item.plan)
    try:
        found = bench.search(item.artifact, item.plan, threads)
    except Exception as error:  # noqa: BLE001  # an engine's bug costs its candidate, not the build; the reason is shown
        interrupt.check()
        return replace(item, failure=told(error))
    return replace(item, search=bench.standard.search_score(item.plan, found, limit_of(contract)))


def is_same_function(item: Candidate) -> bool:
    """Whether a candidate is known to compute what its source does: its own file, or float32 that keeps every output."""
    recipe = item.plan.recipe
    return recipe.scheme == "as-is" or (
        recipe.precision == "fp32" and all(output.holds for output in item.outputs)
    )


def limit_of(contract: Contract) -> float:
    """How much accuracy may be lost. A build's contracts always say: by default where the user did not."""
    assert contract.max_accuracy_drop is not None
    return contract.max_accuracy_drop


def with_outputs(bench: Workbench, contract: Contract, item: Candidate) -> Candidate:
    """With what it keeps of every output on the judged half; outputs that cannot be compared cost it."""
    assert item.evaluated is not None
    try:
        found = bench.standard.output_scores(item.plan, item.evaluated, bench.standard.reference, limit_of(contract))
    except DataError as error:
        return replace(item, failure=str(error))
    return replace(item, outputs=found)


def scored(bench: Workbench, contract: Contract, item: Candidate, place: Place) -> Candidate:
    """Judged on the half that nothing was chosen by, in its place among those that may err there."""
    assert item.evaluated is not None
    found = score(
        bench.standard.yardstick,
        item.evaluated.digest,
        item.evaluated.shifted,
        limit_of(contract),
        outputs=item.outputs,
        place=place,
        is_same_function=is_same_function(item),
    )
    notes = item.notes
    if found.shift is not None and found.shift.verdict == "red":
        notes = (*notes, found.shift.reason)
    return replace(
        item,
        accuracy=found.accuracy,
        judgement=found.judgement,
        shift=found.shift,
        notes=notes,
        buckets=_bucket_scores(bench, item.evaluated.digest),
    )


def _bucket_scores(bench: Workbench, digest: Mapping[str, Array]) -> tuple[BucketScore, ...]:
    found = []
    for size, share in bench.data.shares.items():
        own = bench.data.judged_buckets == size
        source, ours = (
            {name: array[own] for name, array in of.items()} for of in (bench.standard.reference.digest, digest)
        )
        labels = bench.standard.labels[own]
        score_of = bench.metric.of_digest
        found.append(
            BucketScore(size, share, int(own.sum()), score_of(source, labels), score_of(ours, labels))
        )
    return tuple(found)


def timed(
    bench: Workbench,
    standing: Sequence[Candidate],
    host: Host,
    rivals: Collection[str],
    *,
    budget_s: float = latency.BUDGET_S,
) -> Timing:
    """Latencies of candidates with an artifact, all in one process of their own; only the `rivals` are worth more than
    the first rounds.

    With buckets, each has a race of its own, on samples that fall into it, and they are put together by their shares.
    """

    def raced(size: int | None, feeds: Sequence[Mapping[str, Array]], share_of_time: float) -> Timing:
        runners = [
            _runner(bench, item, item.artifact, host, size) for item in standing if item.artifact is not None
        ]
        return run_race(
            runners,
            feeds,
            rivals,
            bench.folder / "race",
            budget_s=budget_s * share_of_time,
            environment=host.environment,
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
    return timing


def _runner(bench: Workbench, item: Candidate, artifact: Artifact, host: Host, size: int | None) -> Runner:
    """The candidate's model, or that of one bucket."""
    inputs, outputs = artifact.bound(bench.source.inputs), artifact.bound(bench.source.outputs)
    model, buckets = artifact.runs_here, artifact.buckets(bench.source.buckets)
    if size is not None and buckets is not None:
        model, inputs = buckets.models[buckets.sizes.index(size)], buckets.at(inputs, size)
    return Runner(
        item.recipe, str(artifact.folder / model), judged_spec(item.plan, artifact, host), inputs, outputs
    )


def _put_together(timings: Mapping[int, Timing], shares: Mapping[int, float]) -> Timing:
    """What fails in one bucket is out."""
    failures = {
        name: f"{reason} (bucket {size})"
        for size, timing in timings.items()
        for name, reason in timing.failures.items()
    }
    names = [name for name in next(iter(timings.values())).latencies if name not in failures]
    latencies = {
        name: latency.over_buckets({size: timing.latencies[name] for size, timing in timings.items()}, shares)
        for name in names
    }
    return Timing(latencies, failures)


def judged_spec(plan: Plan, artifact: Artifact, host: Host) -> EngineSpec:
    """How the engine loads it here, where it is judged."""
    return EngineSpec(
        plan.recipe.engine, plan.versions, artifact.runs_here, plan.judged_options, host.threads(plan)
    )
