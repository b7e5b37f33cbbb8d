"""A candidate of one profile: all that is known of it so far, and what selection is told.

Pure: what makes, scores and times candidates stands beside this.

Always true
 1. A candidate is never changed: each round gives a new one that knows more.
 2. What selection is told is the judged half's verdict, made worse but never better by outputs and search half.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from converters.backends.artifact import Artifact
from converters.judge import fit, slices
from converters.judge.accuracy import Accuracy, Judgement, Shift, Verdict
from converters.judge.outputs import OutputScore
from converters.judge.score import Score
from converters.judge.select import Contender
from converters.judge.slices import SliceScore
from converters.measure import roofline
from converters.measure.latency import Latency
from converters.quantize.sensitivity import LayerError
from converters.recipes.recipes import Plan
from converters.rounds import float_layers
from converters.work.findings import Evaluated
from edgekit.profile import Profile

# Schemes of one precision, the surest first.
_SCHEME_RANK = {
    "float": 0,
    "static": 1,
    "percentile": 2,
    "static16": 2,
    "dynamic": 3,
    "weights": 4,
    "as-is": 0,
    "kept": 0,
}


_RANK: Mapping[Verdict, int] = {"met": 0, "undecided": 1, "missed": 2}


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
    # What each group of the judged samples loses, where they have groups.
    slices: tuple[SliceScore, ...] = ()
    # The candidate that was made of this one and keeps what this one does not.
    mended: str = ""
    # Judged on a few samples only, since it is clearly slower than what seems to hold: never picked.
    is_glimpsed: bool = False

    @property
    def recipe(self) -> str:
        return self.plan.name

    @property
    def stands(self) -> bool:
        return not self.failure and not self.outscored


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
        few=item.accuracy.samples if item.accuracy and item.is_glimpsed else 0,
        verdict_reason=reason,
        is_refused_on_shift=bool(item.mended) or (item.shift is not None and item.shift.verdict == "refused"),
        shift_reason=_shift_reason(item),
        latency_p50_ms=item.latency.p50_ms if item.latency else None,
        latency_p95_ms=item.latency.p95_ms if item.latency else None,
        is_own_time=item.latency is None or item.latency.is_own,
        memory_mb=item.memory_mb,
        least_memory_mb=compiled.memory_mb if compiled else None,
        misfit=fit.grown(item.artifact.size_bytes, item.plan.most_bytes)
        or fit.misfit(profile, item.bundle_bytes or item.artifact.size_bytes, item.memory_mb, compiled),
    )


def _verdict(item: Candidate) -> tuple[Verdict, str]:
    """The judged half's word, with what the search half and the layers had to say about it."""
    assert item.judgement is not None
    verdict, reason = item.judgement.verdict, item.judgement.reason
    groups = slices.verdict(item.slices)
    if groups is not None and _RANK[groups.verdict] >= _RANK[verdict] and groups.verdict != "met":
        reason = groups.reason if groups.verdict != verdict else f"{reason}; {groups.reason}"
        verdict = groups.verdict
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
    ruined = next((output.reason for output in item.search.outputs if not output.holds), "")
    if ruined:
        return ruined
    groups = slices.verdict(item.search.slices)
    return groups.reason if groups is not None and groups.verdict == "missed" else ""


def _shift_reason(item: Candidate) -> str:
    """Of the judged half, or of the search half where that had something mended."""
    reason = item.shift.reason if item.shift else ""
    if item.mended and item.search is not None and item.search.shift is not None:
        reason = f"on the search half, {item.search.shift.reason}; mended as {item.mended}"
    return f"{reason}; worst layers: {float_layers.named(item.layers)}" if item.layers else reason
