"""From a chosen candidate to the bundle file and its evidence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import UNSET, structs

from converters.bundle import naming, selftest
from converters.measure.host import Host
from converters.rounds.candidates import Candidate
from converters.work.workbench import Workbench
from edgekit import bundle, manifest
from edgekit.manifest import (
    Buckets,
    Contract,
    EngineSpec,
    FileEntry,
    Histogram,
    Manifest,
    Reference,
)
from edgekit.profile import Profile
from edgekit.samples import flat, stacked
from edgekit.tensors import Array

HISTOGRAM_BINS = 10
# Values that a histogram is drawn from, at most.
HISTOGRAM_VALUES = 100_000


@dataclass(frozen=True)
class Written:
    path: Path
    sha256: str
    size_bytes: int


def write(
    bench: Workbench, profile: Profile, contract: Contract, item: Candidate, host: Host, *, folder: Path
) -> Written:
    """Write the candidate's bundle into `folder`. Raises: BundleError, ToolFailedError."""
    artifact, plan = item.artifact, item.plan
    assert artifact is not None
    assert item.evaluated is not None
    files: dict[str, bytes | Path] = {f"model/{path.name}": path for path in artifact.files}
    test, members = selftest.made(bench, item, host)
    files |= members
    guarded = bench.guarding.shipped(selftest.shipped(bench, item).samples)
    if guarded is not None:
        files |= guarded[1]
    buckets = artifact.buckets(bench.source.buckets)
    entries: list[FileEntry] = [bundle.file_entry(path, data) for path, data in sorted(files.items())]
    content = Manifest(
        format=manifest.COMPACT_FORMAT if guarded is None else manifest.GUARD_FORMAT,
        name=bench.project.model.name,
        version=bench.project.model.version,
        profile=profile.name,
        engine=EngineSpec(
            plan.recipe.engine, plan.versions, f"model/{artifact.model}", plan.options, plan.threads
        ),
        inputs=artifact.bound(bench.source.inputs),
        outputs=artifact.bound(bench.source.outputs, are_outputs=True),
        recipe=plan.name,
        source_sha256=bench.source.sha256,
        files=tuple(entries),
        selftest=test,
        state=bench.source.state,
        preprocess=bench.project.preprocess,
        postprocess=bench.project.postprocess,
        contract=contract,
        tools=bench.keys.tools(plan),
        reference=_reference(bench, item),
        buckets=UNSET if buckets is None else _shipped(buckets),
        guard=UNSET if guarded is None else guarded[0],
    )
    named = naming.named(content.postprocess, content.outputs, bench.source.labels)
    content = structs.replace(content, postprocess=named.steps, labels=named.left or UNSET)
    target = folder / content.filename
    digest = bundle.write(target, content, files)
    return Written(target, digest, target.stat().st_size)


def _shipped(buckets: Buckets) -> Buckets:
    """With the files where the bundle has them."""
    return structs.replace(buckets, models=tuple(f"model/{name}" for name in buckets.models))


def _reference(bench: Workbench, item: Candidate) -> Reference:
    """Histograms of what the model meets and gives on the evaluation data, for drift."""
    assert item.evaluated is not None
    count = len(bench.data.judged)
    picked = np.unique(np.linspace(0, count - 1, min(count, 256)).astype(np.int64))
    rows = [bench.data.ready(bench.data.judged.sample(int(index))) for index in picked]
    inputs = {
        name: stacked([row[name] for row in rows]) for name in rows[0] if name not in bench.source.states
    }
    states = {pair.output for pair in bench.source.state}
    outputs = {name: array for name, array in item.evaluated.golden.items() if name not in states}
    return Reference(
        inputs={name: _histogram(array) for name, array in inputs.items()},
        outputs={name: _histogram(array) for name, array in outputs.items()},
    )


def _histogram(values: Array) -> Histogram:
    """Up to ten bins of about equal counts, of the finite values: a mask's infinities tell nothing of drift."""
    row = flat(values).astype(np.float64)
    row = row[np.isfinite(row)]
    if not row.size:
        return Histogram([-0.5, 0.5], [0])
    row = row[:: max(1, len(row) // HISTOGRAM_VALUES)]
    rounded = [float(f"{edge:.6g}") for edge in np.quantile(row, np.linspace(0, 1, HISTOGRAM_BINS + 1))]
    edges = sorted(set(rounded))
    if len(edges) < 2:
        edges = [edges[0] - 0.5, edges[0] + 0.5]
    # Ends are open: what lies outside counts in the first or last bin.
    counts, _ = np.histogram(np.clip(row, edges[0], edges[-1]), bins=np.asarray(edges))
    return Histogram(edges, [int(count) for count in counts])
