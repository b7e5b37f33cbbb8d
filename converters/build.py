"""A whole build: every target profile in turn, its candidates judged, the best bundled.

Always true
 1. Bundles appear in the output folder whole or not at all; a build that is interrupted leaves only finished ones.
 2. A profile whose candidates all miss the contract does not stop the others; the build then ends with
    ContractMissedError and keeps the least bad candidate under `refused/`.
 3. Bad input is found before anything is converted: profiles, project, source and data are read first.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from converters import bundling, candidates, datasets, lock, result, tournament
from converters.cache import Cache
from converters.candidates import Candidate, Host
from converters.crew import Crew, Opening
from converters.emulation import verify as emulation
from converters.files import write_whole
from converters.judge import shifted
from converters.judge.select import select
from converters.lock import LockedBundle, LockedTarget
from converters.outcome import Options, Outcome, guilty, tried
from converters.prepare.code import CodeGate
from converters.prepare.project import Project
from converters.quantize import recipes
from converters.quantize.recipes import Plan
from converters.report import page
from converters.report.sheet import Sheet
from converters.result import BundleRow, ProfileResult
from converters.workbench import Workbench
from edgekit import evidence, profile
from edgekit.errors import LockError
from edgekit.manifest import Contract
from edgekit.profile import Profile

REFUSED = "refused"
REPORT = "report.html"


@dataclass(frozen=True)
class Target:
    """One profile to build for; `locked` is what an up-to-date `edgekit.lock` says of it."""

    profile: Profile
    contract: Contract
    plans: tuple[Plan, ...]
    locked: LockedTarget | None


@dataclass
class _Build:
    """What a build has come to so far."""

    results: list[ProfileResult] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    bundles: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    written: dict[str, LockedTarget] = field(default_factory=dict)


def build(project: Project, options: Options, tell: Callable[[str], None]) -> Outcome:
    """Build every target of the project into `options.out`.

    Raises: UsageError, ProfileError, ProjectError, SourceError, DataError for bad input; ToolFailedError.
    """
    recipes.check_patterns(options.recipes)
    profiles = {target: profile.load(project.profile(target)) for target in project.file.targets}
    with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
        bench = Workbench(
            project, CodeGate(options.allow_code, tell), Cache(options.cache), Path(folder), tell
        )
        # Read everything that the user gave before the first conversion.
        bench.source, bench.metric, bench.labels, bench.data.fingerprint, bench.prepared  # noqa: B018  # each is read once and kept
        host = candidates.this_host()
        targets = [_target(bench, loaded, name, options) for name, loaded in profiles.items()]
        done = _Build()
        with closing(_crew(bench, options)):
            # Of all profiles at once: what several share is made once, and what is measured later has the machine
            # to itself.
            candidates.made_together(bench, [plan for target in targets for plan in target.plans], host)
            for target in targets:
                _build_target(bench, target, options, host, done)
        if options.lock == "write" and not done.missed:
            write_whole(lock.beside(project, options.out), lock.encode(done.written))
        write_whole(options.out / REPORT, page.render(done.sheets).encode())
        return Outcome(_document(bench, done), tuple(done.sheets), tuple(done.missed), options.out / REPORT)


def _crew(bench: Workbench, options: Options) -> Crew:
    """Workers that know what this build has read; the workbench has them unless none are wanted."""
    crew = Crew(
        Opening(
            bench.project,
            options.allow_code,
            bench.cache,
            bench.source.sha256,
            bench.data.fingerprint,
            bench.canonicals,
        ),
        options.jobs,
        bench.folder,
        bench.tell,
    )
    bench.crew = crew if options.jobs else None
    return crew


def _target(bench: Workbench, loaded: Profile, name: str, options: Options) -> Target:
    contract = bench.project.contract(name, loaded.budgets)
    plans = _plans(bench, loaded, options)
    locked = _locked(bench, Target(loaded, contract, tuple(plans), None), options)
    return Target(loaded, contract, tuple(lock.plans(locked, plans) if locked else plans), locked)


def _build_target(bench: Workbench, target: Target, options: Options, host: Host, done: _Build) -> None:
    """Judge a target's candidates, and bundle what was chosen."""
    name = target.profile.name
    outcome = _judge(bench, target, options, host)
    done.results.append(outcome)
    if outcome.picked is None:
        done.missed.append(_refuse(outcome, options))
        done.sheets.append(_sheet(bench, outcome, host, done.missed[-1]))
        return
    done.sheets.append(_sheet(bench, outcome, host, ""))
    shipped = [
        _ship(bench, outcome, outcome.candidate(recipe), host, options)
        for recipe in (outcome.picked, *outcome.alternates)
    ]
    done.bundles.extend(shipped)
    done.written[name] = _to_lock(bench, target, outcome, shipped)
    if target.locked is not None:
        differ = lock.differences(target.locked, done.written[name].bundles)
        for difference in differ:
            bench.tell(f"{name}: {difference}")
        if options.lock == "require":
            done.missed.extend(f"{name}: {difference}" for difference in differ)
    if options.strict:
        done.missed.extend(_unshown(outcome, shipped))


def _unshown(outcome: ProfileResult, shipped: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _document(bench: Workbench, done: _Build) -> dict[str, Any]:
    """What `result.json` holds."""
    return {
        "name": bench.project.model.name,
        "version": bench.project.model.version,
        "source_sha256": bench.source.sha256,
        "bundles": done.bundles,
        "candidates": [
            result.candidate_json(outcome, item, bench.metric)
            for outcome in done.results
            for item in outcome.candidates
        ],
        "missed": done.missed,
        "table": msgspec.to_builtins(tried(done.sheets)),
        "layers": msgspec.to_builtins(guilty(done.sheets)),
        "profiles": msgspec.to_builtins(done.sheets),
    }


def _locked(bench: Workbench, target: Target, options: Options) -> LockedTarget | None:
    """What the lock has for a target, if it is about these inputs and tools.

    Raises: LockError where one is required and there is none that fits.
    """
    if options.lock == "write":
        return None
    name = target.profile.name
    path = lock.beside(bench.project, options.out)
    found = lock.read(path)
    locked = found.targets.get(name) if found is not None else None
    if locked is None:
        if options.lock == "require":
            raise LockError(f"{path}: has nothing for {name}; write it with edgekit build --lock")
        return None
    changed = lock.changes(locked, _inputs(bench, target), _tools(bench, lock.plans(locked, target.plans)))
    if not changed:
        return locked
    told = f"{path}: not up to date for {name}: {', '.join(changed)} changed"
    if options.lock == "require":
        raise LockError(f"{told}; write it anew with edgekit build --lock")
    bench.tell(f"{told}; everything is tried")
    return None


def _to_lock(
    bench: Workbench, target: Target, outcome: ProfileResult, shipped: Sequence[Mapping[str, Any]]
) -> LockedTarget:
    items = [outcome.candidate(str(row["recipe"])) for row in shipped]
    return LockedTarget(
        inputs=_inputs(bench, target),
        tools=_tools(bench, [item.plan for item in items]),
        bundles=tuple(
            LockedBundle(item.recipe, str(row["digest"]), item.plan.tuning)
            for item, row in zip(items, shipped, strict=True)
        ),
    )


def _inputs(bench: Workbench, target: Target) -> dict[str, str]:
    return lock.inputs(
        bench.project,
        target.profile,
        target.contract,
        source_sha256=bench.source.sha256,
        calibration=bench.data.fingerprint,
        evaluation=datasets.fingerprint(bench.data.evaluation),
    )


def _tools(bench: Workbench, plans: Sequence[Plan]) -> dict[str, str]:
    return {name: version for plan in plans for name, version in bench.tools(plan).items()}


def _judge(bench: Workbench, target: Target, options: Options, host: Host) -> ProfileResult:
    loaded, contract = target.profile, target.contract
    bench.tell(f"{loaded.name}: {loaded.title}")
    count = options.search if target.locked is None else 0
    if options.search and not count:
        bench.tell(
            f"{loaded.name}: edgekit.lock has the choice already, so nothing is searched (--lock searches anew)"
        )
    round_ = tournament.judged(bench, loaded, contract, target.plans, host, search=count, jobs=options.jobs)
    tried, ratios = round_.candidates, round_.ratios
    chosen = select(
        [candidates.contender(bench, item, loaded) for item in tried if item.stands],
        contract,
        ratios,
        is_int8_faster=loaded.gmacs_int8 > loaded.gmacs_fp32,
        accept_uncertain=options.accept_uncertain,
    )
    return ProfileResult(
        profile=loaded,
        contract=contract,
        candidates=tried,
        trials=round_.trials,
        decisions=chosen.decisions,
        budgets=chosen.budgets,
        picked=chosen.picked or None,
        alternates=chosen.alternates,
        is_measured=host.matches(loaded),
        notes=(*_notes(bench, loaded, chosen.budgets, host), *((lock.NOTE,) if target.locked else ())),
    )


def _plans(bench: Workbench, loaded: Profile, options: Options) -> list[Plan]:
    native = bench.source.native
    if native is None:
        return recipes.plans(loaded, options.recipes)
    return recipes.as_is(loaded, native.engine, native.precision, native.what, options.recipes)


def _sheet(bench: Workbench, outcome: ProfileResult, host: Host, missed: str) -> Sheet:
    plans = [item.plan for item in outcome.candidates if item.artifact is not None]
    return result.sheet(
        outcome,
        host,
        bench.metric,
        name=bench.project.model.name,
        version=bench.project.model.version,
        tools=_tools(bench, plans),
        source_parity=bench.source_parity,
        source_sha256=bench.source.sha256,
        missed=missed,
    )


def _ship(
    bench: Workbench, outcome: ProfileResult, item: Candidate, host: Host, options: Options
) -> dict[str, Any]:
    """Write bundle and evidence; alternates go into a folder of their own, since they share the pick's file name."""
    bench.tell(f"{outcome.profile.name}: writing {item.recipe}")
    folder = options.out
    if item.recipe != outcome.picked:
        folder = options.out / "alternates" / item.recipe.replace("/", "-")
    written = bundling.write(bench, outcome.profile, outcome.contract, item, host, folder=folder)
    predicate = result.evidence(
        outcome,
        item,
        host,
        bench.metric,
        name=bench.project.model.name,
        version=bench.project.model.version,
        tools=bench.tools(item.plan),
        source_parity=bench.source_parity,
        source_sha256=bench.source.sha256,
    )
    emulated = emulation.of_build(
        written.path, outcome.profile, host.where(item.plan), options.cache, bench.tell
    )
    predicate = msgspec.structs.replace(predicate, emulation=emulated)
    write_whole(
        evidence.beside(written.path),
        evidence.encode(evidence.statement(written.path.name, written.sha256, predicate)),
    )
    row = BundleRow(written.path, written.sha256, written.size_bytes)
    told = result.bundle_json(outcome, item, row, bench.metric)
    if emulated is not None:
        told["emulation"] = msgspec.to_builtins(emulated)
        if emulated.outcome == "failed":
            told["notes"].append(f"the self-test fails under emulation: {emulated.reason}")
            bench.tell(f"{written.path.name}: the self-test FAILS under emulation: {emulated.reason}")
    return told


def _notes(bench: Workbench, loaded: Profile, budgets: Mapping[str, str], host: Host) -> tuple[str, ...]:
    """What a reader must know about the figures of this profile."""
    notes = list(dict.fromkeys(note for form in bench.canonicals for note in form.notes))
    notes += filter(None, (bench.padding_note,))
    if bench.data.halves[1].shifted is None:
        notes.append(shifted.told(bench.data.judged))
    beyond = sorted(set(host.isa) - set(loaded.isa))
    if host.matches(loaded) and beyond:
        notes.append(
            f"measured on a CPU that also has {', '.join(beyond)}, which {loaded.name} does not promise;"
            " the device's self-test measures again"
        )
    unverified = [name for name, outcome in budgets.items() if outcome == "unverified"]
    if unverified:
        notes.append(
            f"unverified on this machine: {', '.join(unverified)}; the device's self-test enforces them"
        )
    return tuple(notes)


def _refuse(outcome: ProfileResult, options: Options) -> str:
    """Keep the least bad candidate's artifact for a look, and say what is wrong."""
    standing = [item for item in outcome.candidates if item.artifact is not None and item.stands]
    title = f"{outcome.profile.name}: no candidate meets the contract"
    if not standing:
        reasons = "; ".join(f"{item.recipe}: {item.failure}" for item in outcome.candidates)
        return f"{title} ({reasons or 'the profile allows no recipe'})"
    best = min(
        standing,
        key=lambda item: (
            item.accuracy.drop if item.accuracy else float("inf"),
            item.recipe,
        ),
    )
    folder = options.out / REFUSED / f"{outcome.profile.name}-{best.recipe.replace('/', '-')}"
    assert best.artifact is not None
    for file in best.artifact.files:
        write_whole(folder / file.name, file.read_bytes())
    return f"{title}; closest is {best.recipe} ({outcome.decisions[best.recipe].reason}), kept in {folder}"
