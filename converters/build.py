"""A whole build: every target profile in turn, its candidates judged, the best bundled.

Always true
 1. Bundles appear in the output folder whole or not at all; a build that is interrupted leaves only finished ones.
 2. A profile whose candidates all miss the contract does not stop the others; the build then ends with
    ContractMissedError and keeps the least bad candidate under `refused/`.
 3. Bad input is found before anything is converted: profiles, project, source and data are read first. Of what the source
    itself answers nothing decides what is made, so that is found beside; labels it can make nothing of end the build then.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from converters import locking, shipping, workers
from converters.judge.select import Selection, select
from converters.keep import lock
from converters.keep.artifacts import Cache
from converters.keep.files import write_whole
from converters.keep.lock import LockedTarget
from converters.measure.footing import Footing
from converters.measure.host import Host, this_host
from converters.outcome import Options, Outcome, guilty, tried
from converters.recipes import recipes
from converters.recipes.recipes import Plan
from converters.report import folder as folder_report
from converters.report import result
from converters.report.result import ProfileResult
from converters.rounds import narrowing, tournament
from converters.rounds.candidates import contender
from converters.rounds.making import made_together
from converters.sheet import Sheet
from converters.source.code import CodeGate
from converters.source.project import Project
from converters.work.scratch import scratch
from converters.work.spent import HERE, Stopwatch
from converters.work.steps import Steps
from converters.work.workbench import Workbench
from edgekit import profile
from edgekit.manifest import Contract
from edgekit.plain import plain
from edgekit.profile import Profile

UNSHOWN = (
    "no candidate is shown to keep the default limit with so few samples; the one shipped keeps it as far as was seen"
    " (give more evaluation data, or --max-accuracy-drop)"
)
_APART = (
    "the model is large: its weights stayed in files, and candidates were made and timed one after the other ([model]"
    " weights_apart_mb)"
)


@dataclass(frozen=True)
class Target:
    """One profile to build for; `locked` is what an up-to-date `edgekit.lock` says of it."""

    profile: Profile
    # What the user said of its limits.
    asked: Contract
    plans: tuple[Plan, ...]
    locked: LockedTarget | None

    @property
    def is_default_limit(self) -> bool:
        """Nobody said how much accuracy may be lost."""
        return self.asked.max_accuracy_drop is None


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
        spent = Stopwatch()
        spent.does(HERE, "reading")

        def told(text: str) -> None:
            spent.does(HERE, text)
            tell(text)

        bench = Workbench(
            project,
            CodeGate(options.allow_code, tell),
            Cache(options.cache, tell=tell),
            folder,
            told,
            spent=spent,
        )
        bench.steps = steps or bench.steps
        done, host = _Build(), this_host()
        with closing(workers.pool(bench, options, tell, profiles.values())) as pool:
            # Read everything that the user gave before the first conversion.
            bench.source, bench.metric, bench.data.halves  # noqa: B018  # each is read once and kept
            bench.standard.check_has_labels()
            bench.data.fingerprint, bench.prepared, bench.guarding.fitted  # noqa: B018  # likewise
            targets = [_target(bench, loaded, name, options) for name, loaded in profiles.items()]
            for target in targets:
                bench.steps.expect(target.profile.name, [plan.name for plan in target.plans])
                bench.steps.expect_more(target.profile.name, "trial", _trials(target, options))
            pool.opening, pool.jobs = workers.opening(bench, options), workers.jobs(bench, options)
            # Of all profiles at once: what several share is made once, and what is measured later has the machine
            # to itself.
            is_narrow = _is_narrow(bench, targets, options, host)
            plans = [plan for target in targets for plan in target.plans]
            bench.tell("evaluating the source")
            with bench.beside(bench.standard.check_labels):
                made_together(bench, plans, host, is_glimpsed=is_narrow)
            for target in targets:
                bench.steps.enter(target.profile.name)
                _build_target(bench, target, options, host, done, is_narrow=is_narrow)
                bench.steps.finish(target.profile.name)
        if options.lock == "write" and not done.missed:
            write_whole(lock.beside(project, options.out), lock.encode(done.written))
        report = folder_report.write(options.out, done.sheets)
        cut = tuple(dict.fromkeys(bench.cut))
        if cut:
            tell(f"ended at the limit of {options.time_budget_s:.0f} s (--time-budget): {', '.join(cut)}")
        return Outcome(_document(bench, done), tuple(done.sheets), tuple(done.missed), report, cut)


def _target(bench: Workbench, loaded: Profile, name: str, options: Options) -> Target:
    asked = bench.standard.asked(name, loaded.budgets)
    plans = _plans(bench, loaded, options)
    locked = locking.read(bench, loaded, asked, plans, options)
    return Target(loaded, asked, tuple(lock.plans(locked, plans) if locked else plans), locked)


def _is_unseen(outcome: ProfileResult) -> bool:
    """Whether the pick was judged on a few samples only."""
    return outcome.picked is not None and outcome.candidate(outcome.picked).is_glimpsed


def _is_narrow(bench: Workbench, targets: Iterable[Target], options: Options, host: Host) -> bool:
    """Whether candidates are timed before they are judged in full, and the slow ones are not. Not where that is soon done,
    where times are not to be had, where every candidate's groups or buckets are promised, where a search begins from all, or
    the choice is known.
    """
    return not (
        options.search
        or not narrowing.is_long(bench)
        or bench.source.buckets
        or bench.data.evaluation.slices is not None
        or any(target.locked or not host.matches(target.profile) for target in targets)
    )


def _build_target(
    bench: Workbench, target: Target, options: Options, host: Host, done: _Build, *, is_narrow: bool
) -> None:
    """Judge a target's candidates, and bundle what was chosen."""
    name = target.profile.name
    outcome = _judge(bench, target, options, host, is_narrow=is_narrow)
    if _is_unseen(outcome):
        bench.tell(f"{name}: {outcome.picked} may be the pick after all, so all are judged in full")
        outcome = _judge(bench, target, options, host, is_narrow=False)
    done.results.append(outcome)
    if outcome.picked is None:
        done.missed.append(shipping.refuse(outcome, options))
        done.sheets.append(_sheet(bench, outcome, host, done.missed[-1], done.built))
        return
    done.sheets.append(_sheet(bench, outcome, host, "", done.built))
    shipped = [
        shipping.ship(bench, outcome, outcome.candidate(recipe), host, options, built=done.built)
        for recipe in (outcome.picked, *outcome.alternates)
    ]
    done.bundles.extend(shipped)
    done.written[name] = locking.written(bench, outcome, target.asked, shipped)
    if target.locked is not None:
        differ = lock.differences(target.locked, done.written[name].bundles)
        for difference in differ:
            bench.tell(f"{name}: {difference}")
        if options.lock == "require":
            done.missed.extend(f"{name}: {difference}" for difference in differ)
    if options.strict:
        done.missed.extend(shipping.unshown(outcome, shipped))


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
        "spent": msgspec.to_builtins(bench.spent.account()),
    }


def _judge(
    bench: Workbench, target: Target, options: Options, host: Host, *, is_narrow: bool
) -> ProfileResult:
    loaded, contract = target.profile, bench.standard.contract(target.asked)
    bench.tell(f"{loaded.name}: {loaded.title}")
    if options.search and target.locked is not None:
        bench.tell(
            f"{loaded.name}: edgekit.lock has the choice already, so nothing is searched (--lock searches anew)"
        )
    round_ = tournament.judged(
        bench,
        loaded,
        contract,
        target.plans,
        host,
        search=_trials(target, options),
        jobs=workers.jobs(bench, options),
        is_narrow=is_narrow,
    )
    bench.steps.finish(loaded.name, "measure")
    tried, ratios = round_.candidates, round_.ratios
    contenders = [contender(item, loaded) for item in tried if item.stands]

    def selected(*, accept_uncertain: bool) -> Selection:
        is_int8_faster = loaded.gmacs_int8 > loaded.gmacs_fp32
        return select(
            contenders, contract, ratios, is_int8_faster=is_int8_faster, accept_uncertain=accept_uncertain
        )

    chosen = selected(accept_uncertain=options.accept_uncertain)
    is_doubtful = chosen.picked is None and target.is_default_limit and contract.max_drop_per_slice is None
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
            *_notes(bench, loaded, chosen.budgets, round_.footing, is_default_limit=target.is_default_limit),
            *((UNSHOWN,) if is_doubtful and chosen.picked else ()),
            *((lock.NOTE,) if target.locked else ()),
        ),
    )


def _trials(target: Target, options: Options) -> int:
    """How many trials its search gets: none where the lock has the choice already."""
    return options.search if target.locked is None else 0


def _plans(bench: Workbench, loaded: Profile, options: Options) -> list[Plan]:
    native, quantized = bench.source.native, bench.source.quantized
    if native is not None:
        return recipes.as_is(
            loaded,
            native.engine,
            native.precision,
            native.what,
            options.recipes,
            suffix=native.suffix,
            stored=native.stored,
        )
    if quantized is not None:
        return recipes.of_quantized(
            loaded,
            quantized.what,
            options.recipes,
            is_widened=quantized.is_widened,
            most_bytes=quantized.most_bytes,
        )
    return recipes.plans(loaded, options.recipes)


def _sheet(bench: Workbench, outcome: ProfileResult, host: Host, missed: str, built: str) -> Sheet:
    return result.sheet(
        outcome,
        host,
        bench.metric,
        name=bench.project.model.name,
        version=bench.project.model.version,
        tools=bench.keys.all_tools(item.plan for item in outcome.candidates if item.artifact is not None),
        source_parity=bench.source_parity,
        source_sha256=bench.source.sha256,
        missed=missed,
        built=built,
    )


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
        _APART if bench.source.is_apart else "",
        bench.standard.padding_note,
        bench.judging.metric_note,
        bench.data.shift_note,
        bench.guarding.note,
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
