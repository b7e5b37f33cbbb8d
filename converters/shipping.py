"""What a build leaves in the output folder for a profile: its bundles with their evidence, or the least bad artifact.

Always true
 1. Bundle and evidence appear whole, the evidence first: no bundle stands without it.
 2. The pick stands in the output folder itself, each alternate in a folder of its own, what was refused under `refused/`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from converters.bundle import writing
from converters.emulation import verify as emulation
from converters.keep.files import place_whole, write_whole
from converters.measure.host import Host
from converters.outcome import Options
from converters.report import result
from converters.report.result import BundleRow, ProfileResult
from converters.rounds.candidates import Candidate
from converters.work.workbench import Workbench
from edgekit import evidence

REFUSED = "refused"


def ship(
    bench: Workbench, outcome: ProfileResult, item: Candidate, host: Host, options: Options, *, built: str
) -> dict[str, Any]:
    """Write bundle and evidence, both or neither; alternates go into a folder of their own, since they share the pick's
    file name.
    """
    bench.tell(f"{outcome.profile.name}: writing {item.recipe}")
    folder = options.out
    if item.recipe != outcome.picked:
        folder = options.out / "alternates" / item.recipe.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the place where it will stand, so that both files are moved there whole, the evidence first.
    with tempfile.TemporaryDirectory(prefix=".edgekit-", dir=folder) as staged:
        return _written(bench, outcome, item, host, options, staged=Path(staged), folder=folder, built=built)


def _written(
    bench: Workbench,
    outcome: ProfileResult,
    item: Candidate,
    host: Host,
    options: Options,
    *,
    staged: Path,
    folder: Path,
    built: str,
) -> dict[str, Any]:
    """The bundle's row in the result."""
    written = writing.write(bench, outcome.profile, outcome.contract, item, host, folder=staged)
    predicate = result.evidence(
        outcome,
        item,
        host,
        bench.metric,
        name=bench.project.model.name,
        version=bench.project.model.version,
        tools=bench.keys.tools(item.plan),
        source_parity=bench.source_parity,
        source_sha256=bench.source.sha256,
    )
    emulated = emulation.of_build(
        written.path, outcome.profile, host.where(item.plan), options.cache, bench.tell
    )
    predicate = msgspec.structs.replace(
        predicate, emulation=emulated, built=built, guard=bench.guarding.evidence
    )
    write_whole(
        evidence.beside(written.path),
        evidence.encode(evidence.statement(written.path.name, written.sha256, predicate)),
    )
    path = folder / written.path.name
    row = BundleRow(path, written.sha256, written.size_bytes)
    told = result.bundle_json(outcome, item, row, bench.metric)
    if predicate.guard is not None:
        told["guard"] = msgspec.to_builtins(predicate.guard)
    if emulated is not None:
        told["emulation"] = msgspec.to_builtins(emulated)
        if emulated.outcome == "failed":
            told["notes"].append(f"the self-test fails under emulation: {emulated.reason}")
            bench.tell(f"{path.name}: the self-test FAILS under emulation: {emulated.reason}")
    evidence.beside(written.path).replace(evidence.beside(path))
    written.path.replace(path)
    return told


def refuse(outcome: ProfileResult, options: Options) -> str:
    """Keep the least bad candidate's artifact for a look, and say what is wrong."""
    standing = [item for item in outcome.candidates if item.artifact is not None and item.stands]
    title = f"{outcome.profile.name}: no candidate meets the contract"
    if not standing:
        reasons = "; ".join(f"{item.recipe}: {item.failure}" for item in outcome.candidates)
        none = "the profile allows no recipe of this source"
        if options.recipes:
            none = f"--recipe {', '.join(options.recipes)} leaves none of what this source gets; leave it out to see those"
        return f"{title} ({reasons or none})"
    best = min(
        standing,
        key=lambda item: (
            item.accuracy.drop if item.accuracy and not item.accuracy.trouble else float("inf"),
            item.recipe,
        ),
    )
    folder = options.out / REFUSED / f"{outcome.profile.name}-{best.recipe.replace('/', '-')}"
    assert best.artifact is not None
    for file in best.artifact.files:
        place_whole(folder / file.name, file)
    return f"{title}; closest is {best.recipe} ({outcome.decisions[best.recipe].reason}), kept in {folder}"


def unshown(outcome: ProfileResult, shipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `--strict` does not let pass."""
    name = outcome.profile.name
    told = [
        f"{name}: the self-test of {row['recipe']} fails under emulation (--strict)"
        for row in shipped
        if row.get("emulation", {}).get("outcome") == "failed"
    ]
    if outcome.unverified:
        told.append(f"{name}: {', '.join(outcome.unverified)} cannot be verified on this machine (--strict)")
    return told
