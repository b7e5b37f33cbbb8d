"""What a build tells: `result.json`, the evidence beside each bundle, and the rows of the terminal's table."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from converters.judge.metrics import Metric
from converters.judge.outputs import OutputScore
from converters.judge.select import Decision
from converters.measure.host import Host
from converters.measure.latency import Latency
from converters.report import sliced
from converters.rounds.candidates import Candidate
from converters.sheet import Sheet
from edgekit.evidence import (
    BucketEvidence,
    BuildEvidence,
    CandidateEvidence,
    Compiled,
    Figure,
    LayerEvidence,
    Outcome,
    OutputEvidence,
    TrialEvidence,
    Where,
)
from edgekit.manifest import Contract
from edgekit.profile import Profile


class ProfileResult(msgspec.Struct, frozen=True):
    """One profile's build; `picked` is None where nothing met the contract. `notes` hold for all its candidates."""

    profile: Profile
    contract: Contract
    candidates: tuple[Candidate, ...]
    decisions: dict[str, Decision]
    budgets: dict[str, Outcome]
    picked: str | None
    alternates: tuple[str, ...]
    is_measured: bool
    notes: tuple[str, ...] = ()
    trials: tuple[TrialEvidence, ...] = ()
    is_limit_default: bool = False

    def candidate(self, recipe: str) -> Candidate:
        return next(item for item in self.candidates if item.recipe == recipe)

    @property
    def unverified(self) -> list[str]:
        return [name for name, outcome in self.budgets.items() if outcome == "unverified"]


class BundleRow(msgspec.Struct, frozen=True):
    path: Path
    sha256: str
    size_bytes: int


def status(result: ProfileResult, item: Candidate) -> tuple[str, str]:
    """Status word and reason of a candidate."""
    if item.failure:
        return "failed", item.failure
    if item.outscored:
        return "lost", f"{item.outscored} did better on the search half of the evaluation data"
    decision = result.decisions[item.recipe]
    return decision.status, decision.reason


def bundle_json(result: ProfileResult, item: Candidate, written: BundleRow, metric: Metric) -> dict[str, Any]:
    """An entry of `bundles[]`."""
    return {
        "profile": result.profile.name,
        "path": str(written.path),
        "digest": f"sha256:{written.sha256}",
        "recipe": item.recipe,
        "alternate": item.recipe != result.picked,
        "size_bytes": written.size_bytes,
        "model_bytes": item.artifact.size_bytes if item.artifact else None,
        "latency_ms": _latency_json(item),
        "accuracy": _accuracy_json(item, metric),
        "budgets": dict(result.budgets),
        "reason": status(result, item)[1],
        "notes": [*result.notes, *item.notes],
        **_buckets_json(item),
    }


def candidate_json(result: ProfileResult, item: Candidate, metric: Metric) -> dict[str, Any]:
    """An entry of `candidates[]`."""
    word, reason = status(result, item)
    return {
        "profile": result.profile.name,
        "recipe": item.recipe,
        "status": word,
        "size_bytes": item.artifact.size_bytes if item.artifact else None,
        "bundle_bytes": item.bundle_bytes,
        "latency_ms": _latency_json(item),
        "accuracy": _accuracy_json(item, metric),
        "memory_mb": round(item.memory_mb, 1) if item.memory_mb is not None else None,
        "parity": item.parity if item.artifact else None,
        "reason": reason,
        "notes": list(item.notes),
        "compiled": _compiled(item),
        "outputs": [msgspec.to_builtins(_output(found)) for found in item.outputs],
        **({"slices": list(map(sliced.as_json, item.slices))} if item.slices else {}),
        **_buckets_json(item),
    }


def evidence(
    result: ProfileResult,
    item: Candidate,
    host: Host,
    metric: Metric,
    *,
    name: str,
    version: str,
    tools: Mapping[str, str],
    source_parity: float,
    source_sha256: str = "",
) -> BuildEvidence:
    """The predicate for one bundle."""
    assert item.accuracy is not None
    where = host.where(item.plan)
    p50, p95 = latency_figures(item, host)
    assert p50 is not None
    assert p95 is not None
    source = Where(cpu=host.cpu, isa=host.isa)
    return BuildEvidence(
        name=name,
        version=version,
        profile=result.profile.name,
        recipe=item.recipe,
        metric=metric.name,
        source_accuracy=Figure(item.accuracy.source, "measured", source),
        accuracy=Figure(item.accuracy.candidate, "measured", where),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        budgets=dict(result.budgets),
        candidates=tuple(_candidate_evidence(result, other, host) for other in result.candidates),
        tools=dict(tools),
        notes=(*result.notes, *item.notes),
        source_parity=Figure(source_parity, "measured", source),
        title=result.profile.title,
        source_sha256=source_sha256,
        contract=result.contract,
        higher_is_better=metric.higher_is_better,
        is_limit_default=result.is_limit_default,
        samples=item.accuracy.samples,
        memory_mb=_memory(item, host),
        compiled=_compiled(item),
        trials=result.trials,
        buckets=_buckets(item, host),
    )


def sheet(
    result: ProfileResult,
    host: Host,
    metric: Metric,
    *,
    name: str,
    version: str,
    tools: Mapping[str, str],
    source_parity: float,
    source_sha256: str,
    missed: str,
    built: str = "",
) -> Sheet:
    """All that is known of one profile, whether or not it got a bundle."""
    scored = next(
        (item.accuracy for item in result.candidates if item.accuracy is not None and not item.is_glimpsed),
        None,
    )
    source = Where(cpu=host.cpu, isa=host.isa)
    return Sheet(
        name=name,
        version=version,
        profile=result.profile.name,
        title=result.profile.title,
        metric=metric.name,
        picked=result.picked or "",
        contract=result.contract,
        candidates=tuple(_candidate_evidence(result, other, host) for other in result.candidates),
        higher_is_better=metric.higher_is_better,
        is_limit_default=result.is_limit_default,
        samples=scored.samples if scored else 0,
        source_accuracy=Figure(scored.source, "measured", source) if scored else None,
        source_sha256=source_sha256,
        source_parity=Figure(source_parity, "measured", source),
        budgets=dict(result.budgets),
        tools=dict(tools),
        notes=result.notes,
        missed=missed,
        trials=result.trials,
        built=built,
    )


def latency_figures(item: Candidate, host: Host) -> tuple[Figure | None, Figure | None]:
    """p50 and p95: measured, or the estimate's range for both."""
    if item.latency is not None:
        p50, p95 = (
            _time(value, item, host, item.latency) for value in (item.latency.p50_ms, item.latency.p95_ms)
        )
        return p50, p95
    if item.estimate is not None:
        where = Where(cpu=item.estimate.by, engine=item.plan.recipe.engine)
        figure = Figure(item.estimate.low_ms, "estimated", where, "ms", item.estimate.high_ms)
        return figure, figure
    return None, None


def _time(value_ms: float, item: Candidate, host: Host, told: Latency) -> Figure:
    where = msgspec.structs.replace(host.where(item.plan), held=told.held)
    return Figure(value_ms, "measured", where, "ms", ranks_only=not told.is_own)


def _measured(value: float, where: Where, high: float | None = None) -> Figure | None:
    """None for what is not finite: JSON has no such number, and its reader would find none. A bound that is not is left
    out.
    """
    if not math.isfinite(value):
        return None
    return Figure(value, "measured", where, high=high if high is not None and math.isfinite(high) else None)


def _candidate_evidence(result: ProfileResult, item: Candidate, host: Host) -> CandidateEvidence:
    word, reason = status(result, item)
    p50, p95 = latency_figures(item, host)
    where = None if item.accuracy is None else host.where(item.plan)
    return CandidateEvidence(
        recipe=item.recipe,
        status=word,  # type: ignore[arg-type]  # `status` gives only the words of that literal
        reason=reason,
        size_bytes=item.artifact.size_bytes if item.artifact else None,
        bundle_bytes=item.bundle_bytes,
        accuracy=_measured(item.accuracy.candidate, where) if item.accuracy and where else None,
        accuracy_drop=(
            _measured(item.accuracy.drop, where, high=item.accuracy.bound)
            if item.accuracy and where
            else None
        ),
        samples=item.accuracy.samples if item.accuracy and item.is_glimpsed else None,
        parity=_measured(item.parity, where) if item.artifact and where else None,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        memory_mb=_memory(item, host),
        memory_base_mb=_memory_base(item, host),
        notes=item.notes,
        layers=tuple(
            LayerEvidence(layer.name, layer.op_type, layer.snr_db, layer.divergence) for layer in item.layers
        ),
        compiled=_compiled(item),
        buckets=_buckets(item, host),
        outputs=tuple(map(_output, item.outputs)),
        slices=tuple(
            sliced.evidence(each, host.where(item.plan), Where(cpu=host.cpu, isa=host.isa))
            for each in item.slices
        ),
    )


def _output(found: OutputScore) -> OutputEvidence:
    return OutputEvidence(
        name=found.name,
        kind=found.kind,
        metric=found.metric,
        value=round(found.figure, 6),
        drop_bound=None,
        snr_db=None if found.snr_db is None else round(found.snr_db, 2),
        channels=found.channels.removeprefix(found.name).strip(),
        limit=None if found.least is None else round(1 - found.least, 6),
        floor_db=found.floor_db,
        holds=found.holds,
        reason=found.reason,
    )


def _buckets(item: Candidate, host: Host) -> tuple[BucketEvidence, ...]:
    where = host.where(item.plan)
    source = Where(cpu=host.cpu, isa=host.isa)

    def figures(size: int) -> tuple[Figure | None, Figure | None]:
        if item.latency is None:
            return None, None
        own = item.latency.buckets[size]
        return _time(own.p50_ms, item, host, item.latency), _time(own.p95_ms, item, host, item.latency)

    return tuple(
        BucketEvidence(
            each.size,
            each.share,
            each.samples,
            Figure(each.source, "measured", source),
            Figure(each.candidate, "measured", where),
            *figures(each.size),
        )
        for each in item.buckets
    )


def _buckets_json(item: Candidate) -> dict[str, Any]:
    """`buckets`, of a source that has some."""
    rows = [
        {
            "size": each.size,
            "share": round(each.share, 4),
            "samples": each.samples,
            "accuracy": {"source": each.source, "shipped": each.candidate},
            "latency_ms": _measured_json(item.latency.buckets[each.size], item.latency)
            if item.latency
            else None,
        }
        for each in item.buckets
    ]
    return {"buckets": rows} if rows else {}


def _measured_json(latency: Latency, told: Latency) -> dict[str, Any]:
    """`told` knows whose time it is; a bucket's does not."""
    figures = {"p50": round(latency.p50_ms, 4), "p95": round(latency.p95_ms, 4), "how": "measured"}
    held = {"held": told.held} if told.held else {}
    return {**figures, **held, **({} if told.is_own else {"ranks_only": True})}


def _compiled(item: Candidate) -> Compiled | None:
    return item.artifact.compiled if item.artifact else None


def _memory(item: Candidate, host: Host) -> Figure | None:
    if item.memory_mb is None:
        return None
    return Figure(round(item.memory_mb, 1), "measured", host.where(item.plan), "MB")


def _memory_base(item: Candidate, host: Host) -> Figure | None:
    if item.memory_base_mb is None:
        return None
    return Figure(round(item.memory_base_mb, 1), "measured", host.where(item.plan), "MB")


def _latency_json(item: Candidate) -> dict[str, Any] | None:
    if item.latency is not None:
        return _measured_json(item.latency, item.latency)
    if item.estimate is not None:
        low, high = round(item.estimate.low_ms, 5), round(item.estimate.high_ms, 5)
        return {"p50": low, "p95": high, "how": "estimated", "range": [low, high]}
    return None


def _accuracy_json(item: Candidate, metric: Metric) -> dict[str, Any] | None:
    if item.accuracy is None:
        return None
    return {
        "metric": metric.name,
        "source": item.accuracy.source,
        "shipped": item.accuracy.candidate,
        "drop": item.accuracy.drop,
        "drop_bound_95": item.accuracy.bound,
        "samples": item.accuracy.samples,
        "how": "measured",
        "shifted_gap": item.shift.gap if item.shift else None,
    }
