"""From a chosen candidate to the bundle file and its evidence."""

from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET, structs

from converters import backends
from converters.bundle import naming, reference, selftest
from converters.measure.host import Host
from converters.rounds.candidates import Candidate
from converters.work.workbench import Workbench
from edgekit import bundle, manifest
from edgekit.manifest import (
    Buckets,
    Contract,
    EngineSpec,
    FileEntry,
    Manifest,
)
from edgekit.profile import Profile


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
    loading = backends.get(plan.recipe.engine).loading(artifact.folder / artifact.model, plan)
    buckets = artifact.buckets(bench.source.buckets)
    entries: list[FileEntry] = [bundle.file_entry(path, data) for path, data in sorted(files.items())]
    content = Manifest(
        format=_format(bench, has_guard=guarded is not None),
        name=bench.project.model.name,
        version=bench.project.model.version,
        profile=profile.name,
        engine=EngineSpec(
            plan.recipe.engine,
            plan.versions,
            f"model/{artifact.model}",
            {**plan.options, **artifact.options, **loading},
            plan.threads,
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
        reference=reference.made(bench, item),
        buckets=UNSET if buckets is None else _shipped(buckets),
        guard=UNSET if guarded is None else guarded[0],
        sets=bench.source.sets or UNSET,
    )
    named = naming.named(content.postprocess, content.outputs, bench.source.labels)
    content = structs.replace(content, postprocess=named.steps, labels=named.left or UNSET)
    target = folder / content.filename
    digest = bundle.write(target, content, files)
    return Written(target, digest, target.stat().st_size)


def _format(bench: Workbench, *, has_guard: bool) -> int:
    """The oldest that has what the bundle holds."""
    if bench.source.sets:
        return manifest.ROWS_FORMAT
    return manifest.GUARD_FORMAT if has_guard else manifest.COMPACT_FORMAT


def _shipped(buckets: Buckets) -> Buckets:
    """With the files where the bundle has them."""
    return structs.replace(buckets, models=tuple(f"model/{name}" for name in buckets.models))
