"""The trials of one profile's search: made through the cache, judged on the search half, timed quickly.

Always true
 1. The judged half is not looked at: what comes out of a search is judged there once, like any other candidate.
 2. A trial that fails costs itself, also where an engine or a converter crashes: it is made and run by a worker, and
    timed in a process that only times (`--jobs 0` alone makes and runs it in the building process).
 3. A trial that ended is kept, whatever stops the build, and not tried again: one that failed neither.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from converters import backends
from converters.judge.score import Score
from converters.judge.select import MEGABYTE
from converters.keep.artifacts import key
from converters.keep.journals import journal
from converters.measure import latency
from converters.measure.host import Host
from converters.recipes.recipes import Plan, Tuning
from converters.rounds import search
from converters.rounds.candidates import Candidate
from converters.rounds.making import made
from converters.rounds.scoring import searched
from converters.rounds.search import Asked, Search, Space, Trial
from converters.rounds.timing import timed
from converters.source import code
from converters.source.source import hash_parts
from converters.work.findings import told
from converters.work.orders import Order
from converters.work.workbench import Workbench
from edgekit import interrupt
from edgekit.errors import ToolFailedError
from edgekit.evidence import Figure, TrialEvidence
from edgekit.manifest import Contract
from edgekit.profile import Profile

# Seconds for one quick comparison with the anchor.
QUICK_S = 0.8


@dataclass
class _Hunt:
    """One profile's search: `fixed` are the candidates that a trial has to beat, by name, `bases` those of them whose
    settings are turned. A trial's time is its ratio to the `anchor` (one of the fixed), timed in turn with it, times the
    anchor's own: what else slows the machine down meanwhile cancels out.
    """

    bench: Workbench
    profile: Profile
    contract: Contract
    host: Host
    fixed: dict[str, Candidate]
    bases: dict[str, Candidate]
    anchor: Trial | None = None

    @property
    def is_timed(self) -> bool:
        return self.host.matches(self.profile)

    @property
    def unit(self) -> str:
        return "ms" if self.is_timed else "MB"


def explored(
    bench: Workbench,
    profile: Profile,
    contract: Contract,
    tried: Sequence[Candidate],
    host: Host,
    *,
    count: int,
    jobs: int,
) -> tuple[list[Candidate], tuple[TrialEvidence, ...]]:
    """Candidates that a search of `count` trials found, judged like any other, and every trial's figures."""
    bases = {item.recipe: item for item in tried if _is_tunable(item)}
    if not bases:
        bench.tell(
            f"{profile.name}: nothing to search, there is no int8 candidate whose settings can be turned"
        )
        return [], ()
    others = [item for item in tried if item.stands and item.recipe not in bases]
    fixed = bases | {item.recipe: item for item in _with_losses(bench, contract, others, host)}
    hunt = _Hunt(bench, profile, contract, host, fixed, bases)
    spaces = _spaces(hunt)
    with journal(bench.cache.root, _journal_name(hunt, spaces), bench.folder, bench.tell) as path:
        study = Search(spaces, path, bench.project.file.data.seed)
        if not study.trials:
            for trial in _fixed(hunt):
                study.knows(trial)
        # As the journal has it, also of an earlier build: trials of both are compared.
        hunt.anchor = next((trial for trial in study.trials if not trial.number and trial.figures), None)
        if hunt.anchor is None:
            bench.tell(f"{profile.name}: nothing to search, none of its candidates can be timed")
        else:
            _run(hunt, study, count, jobs)
        trials = study.trials
    chosen = search.finalists(trials)
    found = [_candidate(hunt, trial) for trial in chosen]
    return found, _evidence(hunt, trials, chosen)


def _is_tunable(item: Candidate) -> bool:
    """An int8 candidate as its recipe says. What differs from another in its calibration alone is that one, turned."""
    return (
        item.artifact is not None
        and item.search is not None
        and item.plan.recipe.precision == "int8"
        and not item.plan.tuning.label
        and item.plan.recipe.scheme != "percentile"
        and bool(backends.get(item.plan.recipe.engine).knobs(item.plan))
    )


def _with_losses(
    bench: Workbench, contract: Contract, items: Sequence[Candidate], host: Host
) -> list[Candidate]:
    """Those that could be run on the search half; float candidates were not yet."""
    bench.together([Order(item.plan, host.threads(item.plan), is_searched=True) for item in items])
    found = [searched(bench, contract, item, host) for item in items]
    return [item for item in found if item.search is not None]


def _spaces(hunt: _Hunt) -> list[Space]:
    """Each recipe's knobs and worst layers; where layers cannot be told apart, or float is not to be had, none stays in
    float.
    """
    bench, items = hunt.bench, list(hunt.bases.values())
    is_float_allowed = bool(set(hunt.profile.precisions) - {"int8"})
    calibrated = [item for item in items if item.plan.recipe.needs_calibration and is_float_allowed]
    bench.together([Order(item.plan, hunt.host.threads(item.plan), is_analysed=True) for item in calibrated])
    layers: dict[str, tuple[str, ...]] = {}
    for item in calibrated:
        assert item.artifact is not None
        try:
            worst = bench.layers(item.plan, item.artifact)
        except Exception as error:  # noqa: BLE001  # a tool's bug costs its knob; the reason is told
            interrupt.check()
            bench.tell(f"{item.recipe}: no layers to leave in float ({told(error)})")
            continue
        layers[item.recipe] = tuple(layer.name for layer in worst[: max(search.FLOAT_LAYERS) + 1])
    return [
        Space(name, backends.get(item.plan.recipe.engine).knobs(item.plan), layers.get(name, ()))
        for name, item in hunt.bases.items()
    ]


def _journal_name(hunt: _Hunt, spaces: Sequence[Space]) -> str:
    """A key of everything that decides what a trial finds."""
    bench = hunt.bench
    parts = {
        "recipes": [bench.keys.parts(item.plan) for item in hunt.fixed.values()],
        "options": [item.plan.judged_options for item in hunt.fixed.values()],
        "metric": _metric_digest(bench),
        "calibration": bench.data.fingerprint,
        "data": bench.data.search_fingerprint,
        "contract": [hunt.contract.max_accuracy_drop, hunt.contract.max_drop_per_slice],
        "spaces": msgspec.to_builtins(spaces),
        "machine": [hunt.host.cpu, *hunt.host.isa, hunt.host.cores, dict(hunt.host.environment)]
        if hunt.is_timed
        else [],
        "profile": hunt.profile.name,
    }
    return key(parts)


def _metric_digest(bench: Workbench) -> list[str]:
    """What scores: a built-in metric by its name, the user's own by its file, and the alphabet."""
    folder, table = bench.project.folder, bench.project.file.data
    files = [code.split(table.metric, folder)[0]] if code.is_reference(table.metric) else []
    files += [folder / table.alphabet] if table.alphabet else []
    return [bench.metric.name, hash_parts(files)]


def _fixed(hunt: _Hunt) -> list[Trial]:
    """What the fixed recipes are known to lose and cost; the first that could be timed is what all are compared with."""
    found: list[Trial] = []
    costs, failures = _fixed_costs(hunt)
    for name, item in hunt.fixed.items():
        assert item.search is not None
        if name in failures:
            found.append(Trial(0, name, Tuning(), failure=failures[name]))
        else:
            found.append(_trial(0, name, Tuning(), item.search, costs[name]))
    return found


def _fixed_costs(hunt: _Hunt) -> tuple[dict[str, float], dict[str, str]]:
    items = list(hunt.fixed.values())
    if not hunt.is_timed:
        return {item.recipe: _megabytes(item) for item in items}, {}
    # As long for each as a trial gets, which is timed with one other.
    budget_s = QUICK_S * max(2, len(items)) / 2
    timing = timed(hunt.bench, items, hunt.host, set(hunt.fixed), budget_s=budget_s)
    times = timing.latencies
    anchor = next((times[name] for name in hunt.fixed if name in times), None)
    if anchor is None:
        return {}, timing.failures
    return {
        name: anchor.p50_ms * latency.ratio(times[name], anchor).median for name in times
    }, timing.failures


def _run(hunt: _Hunt, study: Search, count: int, jobs: int) -> None:
    bench = hunt.bench
    known = len([trial for trial in study.trials if trial.number])
    if known:
        bench.tell(f"search: {min(known, count)} of {count} trials are known from an earlier build")
        for _ in range(known):
            bench.steps.count(hunt.profile.name, "trial")
    began, done = time.monotonic(), 0
    while known + done < count:
        wanted = min(max(jobs, 1), count - known - done)
        asked = [item for item in (study.ask() for _ in range(wanted)) if item is not None]
        if not asked:
            bench.tell(f"search: every combination was tried in {known + done} trials")
            return
        bench.together(
            [
                Order(plan, hunt.host.threads(plan), is_searched=True, is_trial=True)
                for plan in _plans(hunt, asked)
            ]
        )
        for item in asked:
            trial = _tried(hunt, item)
            study.tell(item, trial)
            bench.steps.count(hunt.profile.name, "trial")
            done += 1
            left = (time.monotonic() - began) / done * (count - known - done)
            bench.tell(f"search {known + done} of {count}: {_line(hunt, trial)}; about {left:.0f} s left")


def _plans(hunt: _Hunt, asked: Sequence[Asked]) -> list[Plan]:
    return [_plan(hunt, item.recipe, item.tuning) for item in asked]


def _plan(hunt: _Hunt, recipe: str, tuning: Tuning) -> Plan:
    return replace(hunt.bases[recipe].plan, tuning=tuning)


def _tried(hunt: _Hunt, asked: Asked) -> Trial:
    bench, plan = hunt.bench, _plan(hunt, asked.recipe, asked.tuning)
    try:
        item = Candidate(plan, artifact=bench.artifact(plan))
        item = searched(bench, hunt.contract, item, hunt.host)
        if item.search is None:
            return Trial(asked.number, asked.recipe, asked.tuning, failure=item.failure)
        cost = _cost(hunt, item)
    except Exception as error:  # noqa: BLE001  # a tool's bug costs its trial; the reason is shown
        interrupt.check()
        return Trial(asked.number, asked.recipe, asked.tuning, failure=told(error))
    return _trial(asked.number, asked.recipe, asked.tuning, item.search, cost)


def _trial(number: int, recipe: str, tuning: Tuning, found: Score, cost: float) -> Trial:
    return Trial(number, recipe, tuning, found.badness, cost, found.is_kept)


def _cost(hunt: _Hunt, item: Candidate) -> float:
    """Milliseconds, or megabytes where the target's time cannot be measured here. Raises: ToolFailedError."""
    if not hunt.is_timed:
        return _megabytes(item)
    assert hunt.anchor is not None
    assert hunt.anchor.cost is not None
    anchor = hunt.fixed[hunt.anchor.recipe]
    timing = timed(hunt.bench, [anchor, item], hunt.host, {anchor.recipe, item.recipe}, budget_s=QUICK_S)
    for name, reason in timing.failures.items():
        raise ToolFailedError(reason if name == item.recipe else f"{name}, the measure of all, {reason}")
    times = timing.latencies
    return hunt.anchor.cost * latency.ratio(times[item.recipe], times[anchor.recipe]).median


def _megabytes(item: Candidate) -> float:
    assert item.artifact is not None
    return item.artifact.size_bytes / MEGABYTE


def _line(hunt: _Hunt, trial: Trial) -> str:
    if trial.failure:
        return f"{trial.recipe} {search.told(trial)}: {trial.failure}"
    return (
        f"{trial.recipe} {search.told(trial)}: loses {trial.loss:.4f} {hunt.bench.metric.name},"
        f" {trial.cost:.3g} {hunt.unit} ({'holds' if trial.holds else 'does not hold'})"
    )


def _candidate(hunt: _Hunt, trial: Trial) -> Candidate:
    plan = _plan(hunt, trial.recipe, trial.tuning)
    found = made(hunt.bench, plan, hunt.host)
    found = replace(found, notes=(*found.notes, f"found by a search: {search.told(trial)}"))
    return searched(hunt.bench, hunt.contract, found, hunt.host) if found.stands else found


def _evidence(hunt: _Hunt, trials: Sequence[Trial], chosen: Sequence[Trial]) -> tuple[TrialEvidence, ...]:
    on_front = search.front(trials)

    def figure(hunt: _Hunt, value: float | None, unit: str, trial: Trial) -> Figure | None:
        where = hunt.host.where(hunt.fixed[trial.recipe].plan)
        # JSON has no infinity, which is what a trial loses whose figure was not to be had.
        return Figure(value, "measured", where, unit) if value is not None and math.isfinite(value) else None

    return tuple(
        TrialEvidence(
            number=trial.number,
            recipe=trial.recipe,
            settings=trial.tuning.settings,
            float_layers=trial.tuning.float_layers,
            loss=figure(hunt, trial.loss, "", trial),
            cost=figure(hunt, trial.cost, hunt.unit, trial),
            holds=trial.holds,
            is_on_front=trial in on_front,
            candidate=_plan(hunt, trial.recipe, trial.tuning).name if trial in chosen else "",
            failure=trial.failure,
        )
        for trial in trials
    )
