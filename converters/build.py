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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from converters.bundle import writing
from converters.data import datasets
from converters.emulation import verify as emulation
from converters.judge.select import Selection, select
from converters.keep import lock
from converters.keep.artifacts import Cache
from converters.keep.files import write_whole
from converters.keep.lock import LockedBundle, LockedTarget
from converters.measure.footing import Footing
from converters.outcome import Options, Outcome, guilty, tried
from converters.recipes import recipes
from converters.recipes.recipes import Plan
from converters.report import folder as folder_report
from converters.report import result
from converters.report.result import BundleRow, ProfileResult
from converters.rounds import candidates, tournament
from converters.rounds.candidates import Candidate, Host
from converters.sheet import Sheet
from converters.source.code import CodeGate
from converters.source.project import Project
from converters.work.pool import Opening, WorkerPool
from converters.work.scratch import scratch
from converters.work.steps import Steps
from converters.work.workbench import Workbench
from edgekit import evidence, profile
from edgekit.errors import LockError
from edgekit.manifest import Contract
from edgekit.plain import plain
from edgekit.profile import Profile

REFUSED = "refused"
UNSHOWN = (
    "no candidate is shown to keep the default limit with so few samples; the one shipped keeps it as far as was seen"
    " (give more evaluation data, or --max-accuracy-drop)"
)


@dataclass(frozen=True)
class Target:
    """One profile to build for; `locked` is what an up-to-date `edgekit.lock` says of it."""

    profile: Profile
    contract: Contract
    plans: tuple[Plan, ...]
    locked: LockedTarget | None
    # Nobody said how much accuracy may be lost.
    is_default_limit: bool = False


@dataclass
class _Build:
    """What a build has come to so far."""

    results: list[ProfileResult] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    bundles: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    written: dict[str, LockedTarget] = field(default_factory=dict)
    # When it began, for the reader of evidence and page; nothing is decided by it.
    built: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def build(
    project: Project, options: Options, tell: Callable[[str], None], steps: Steps | None = None
) -> Outcome:
    """Build every target of the project into `options.out`; `steps` tells how far it is.

    Raises: UsageError, ProfileError, ProjectError, SourceError, DataError for bad input; ToolFailedError.
    """
    recipes.check_patterns(options.recipes)
    profiles = {target: profile.load(project.profile(target)) for target in project.file.targets}
    with scratch() as folder:
        bench = Workbench(
            project, CodeGate(options.allow_code, tell), Cache(options.cache, tell=tell), folder, tell
        )
        bench.steps = steps or bench.steps
        # Read everything that the user gave before the first conversion.
        bench.source, bench.metric, bench.standard.labels, bench.data.fingerprint, bench.prepared  # noqa: B018  # each is read once and kept
        bench.standard.check_labels()
        host = candidates.this_host()
        targets = [_target(bench, loaded, name, options) for name, loaded in profiles.items()]
        for target in targets:
            bench.steps.expect(target.profile.name, [plan.name for plan in target.plans])
        done = _Build()
        with closing(_pool(bench, options)):
            # Of all profiles at once: what several share is made once, and what is measured later has the machine
            # to itself.
            candidates.made_together(bench, [plan for target in targets for plan in target.plans], host)
            for target in targets:
                bench.steps.enter(target.profile.name)
                _build_target(bench, target, options, host, done)
                bench.steps.finish(target.profile.name)
        if options.lock == "write" and not done.missed:
            write_whole(lock.beside(project, options.out), lock.encode(done.written))
        report = folder_report.write(options.out, done.sheets)
        cut = tuple(dict.fromkeys(bench.cut))
        if cut:
            tell(f"ended at the limit of {options.time_budget_s:.0f} s (--time-budget): {', '.join(cut)}")
        return Outcome(_document(bench, done), tuple(done.sheets), tuple(done.missed), report, cut)


def _pool(bench: Workbench, options: Options) -> WorkerPool:
    """Workers that know what this build has read; the workbench has them unless none are wanted."""
    pool = WorkerPool(
        Opening(
            bench.project,
            options.allow_code,
            bench.cache,
            bench.source.sha256,
            bench.data.fingerprint,
            bench.data.feeds_fingerprint,
            bench.canonicals,
            bench.judging.judges,
        ),
        options.jobs,
        bench.folder,
        bench.tell,
        options.time_budget_s,
    )
    bench.limit_s = options.time_budget_s
    bench.pool = pool if options.jobs else None
    return pool


def _target(bench: Workbench, loaded: Profile, name: str, options: Options) -> Target:
    contract = bench.standard.contract(name, loaded.budgets)
    plans = _plans(bench, loaded, options)
    locked = _locked(bench, Target(loaded, contract, tuple(plans), None), options)
    is_default = bench.project.contract(name, loaded.budgets).max_accuracy_drop is None
    return Target(loaded, contract, tuple(lock.plans(locked, plans) if locked else plans), locked, is_default)


def _build_target(bench: Workbench, target: Target, options: Options, host: Host, done: _Build) -> None:
    """Judge a target's candidates, and bundle what was chosen."""
    name = target.profile.name
    outcome = _judge(bench, target, options, host)
    done.results.append(outcome)
    if outcome.picked is None:
        done.missed.append(_refuse(outcome, options))
        done.sheets.append(_sheet(bench, outcome, host, done.missed[-1], done.built))
        return
    done.sheets.append(_sheet(bench, outcome, host, "", done.built))
    shipped = [
        _ship(bench, outcome, outcome.candidate(recipe), host, options, built=done.built)
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
        "table": msgspec.to_builtins(tried(done.sheets), enc_hook=plain),
        "layers": msgspec.to_builtins(guilty(done.sheets), enc_hook=plain),
        "profiles": msgspec.to_builtins(done.sheets, enc_hook=plain),
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
    return bench.keys.all_tools(plans)


def _judge(bench: Workbench, target: Target, options: Options, host: Host) -> ProfileResult:
    loaded, contract = target.profile, target.contract
    bench.tell(f"{loaded.name}: {loaded.title}")
    count = options.search if target.locked is None else 0
    if options.search and not count:
        bench.tell(
            f"{loaded.name}: edgekit.lock has the choice already, so nothing is searched (--lock searches anew)"
        )
    round_ = tournament.judged(bench, loaded, contract, target.plans, host, search=count, jobs=options.jobs)
    bench.steps.finish(loaded.name, "measure")
    tried, ratios = round_.candidates, round_.ratios
    contenders = [candidates.contender(item, loaded) for item in tried if item.stands]

    def selected(*, accept_uncertain: bool) -> Selection:
        is_int8_faster = loaded.gmacs_int8 > loaded.gmacs_fp32
        return select(
            contenders, contract, ratios, is_int8_faster=is_int8_faster, accept_uncertain=accept_uncertain
        )

    chosen = selected(accept_uncertain=options.accept_uncertain)
    is_doubtful = chosen.picked is None and target.is_default_limit
    if is_doubtful:
        # A limit that nobody asked for refuses what breaks it, not what too few samples leave open.
        chosen = selected(accept_uncertain=True)
    return ProfileResult(
        profile=loaded,
        contract=contract,
        candidates=tried,
        trials=round_.trials,
        is_limit_default=target.is_default_limit,
        decisions=chosen.decisions,
        budgets=chosen.budgets,
        picked=chosen.picked or None,
        alternates=chosen.alternates,
        is_measured=host.matches(loaded),
        notes=(
            *_notes(
                bench,
                loaded,
                chosen.budgets,
                round_.footing,
                is_default_limit=target.is_default_limit,
            ),
            *((UNSHOWN,) if is_doubtful and chosen.picked else ()),
            *((lock.NOTE,) if target.locked else ()),
        ),
    )


def _plans(bench: Workbench, loaded: Profile, options: Options) -> list[Plan]:
    native = bench.source.native
    if native is None:
        return recipes.plans(loaded, options.recipes)
    return recipes.as_is(loaded, native.engine, native.precision, native.what, options.recipes)


def _sheet(bench: Workbench, outcome: ProfileResult, host: Host, missed: str, built: str) -> Sheet:
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
        built=built,
    )


def _ship(
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
        return _shipped(bench, outcome, item, host, options, staged=Path(staged), folder=folder, built=built)


def _shipped(
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
    predicate = msgspec.structs.replace(predicate, emulation=emulated, built=built)
    write_whole(
        evidence.beside(written.path),
        evidence.encode(evidence.statement(written.path.name, written.sha256, predicate)),
    )
    path = folder / written.path.name
    row = BundleRow(path, written.sha256, written.size_bytes)
    told = result.bundle_json(outcome, item, row, bench.metric)
    if emulated is not None:
        told["emulation"] = msgspec.to_builtins(emulated)
        if emulated.outcome == "failed":
            told["notes"].append(f"the self-test fails under emulation: {emulated.reason}")
            bench.tell(f"{path.name}: the self-test FAILS under emulation: {emulated.reason}")
    evidence.beside(written.path).replace(evidence.beside(path))
    written.path.replace(path)
    return told


def _notes(
    bench: Workbench,
    loaded: Profile,
    budgets: Mapping[str, str],
    footing: Footing,
    *,
    is_default_limit: bool,
) -> tuple[str, ...]:
    """What a reader must know about the figures of this profile."""
    notes = list(dict.fromkeys(note for form in bench.canonicals for note in form.notes))
    told = (
        bench.standard.padding_note,
        bench.judging.metric_note,
        bench.data.shift_note,
        bench.standard.default_note if is_default_limit else "",
        footing.note(loaded.name),
    )
    notes += filter(None, told)
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
