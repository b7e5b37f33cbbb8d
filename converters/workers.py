"""A build's workers: how many there are, what they load ahead, and what they are told to open."""

from collections.abc import Callable, Iterable
from pathlib import Path

from converters.data.handed import Handed, hand
from converters.outcome import Options
from converters.recipes import facts, recipes
from converters.source import code
from converters.source.project import Project
from converters.work.pool import Opening, WorkerPool
from converters.work.workbench import Workbench
from edgekit.profile import Profile


def pool(
    bench: Workbench, options: Options, tell: Callable[[str], None], profiles: Iterable[Profile]
) -> WorkerPool:
    """The workbench's workers, unless none are wanted; they start, and load slow converters that will be needed, while this
    process reads what the user gave.
    """
    made = WorkerPool(options.jobs, bench.folder, tell, options.time_budget_s, bench.spent)
    bench.limit_s = options.time_budget_s
    if options.jobs:
        bench.pool = made
        slow = _slow_converters(bench.project, options, profiles)
        for engine in (*slow, *[""] * options.jobs)[: options.jobs]:
            made.start_ahead(engine)
    return made


def _slow_converters(project: Project, options: Options, profiles: Iterable[Profile]) -> list[str]:
    """Engines whose converter takes seconds to load; of a file that an engine takes as it is, none may be needed."""
    if Path(project.model.source).suffix.lower() in {each.suffix for each in facts.own() if each.source}:
        return []
    plans = [plan for each in profiles for plan in recipes.plans(each, options.recipes) if not plan.obstacle]
    wanted = [plan.recipe for plan in plans]
    return sorted({each.engine for each in wanted if each.precision in facts.of(each.engine).loads_slowly})


def jobs(bench: Workbench, options: Options) -> int:
    """How many processes work side by side: two converters of a large model would be in memory together."""
    return min(options.jobs, 1) if bench.source.is_apart else options.jobs


def opening(bench: Workbench, options: Options) -> Opening:
    """What this build has read, for its workers."""
    return Opening(
        bench.project,
        options.allow_code,
        bench.cache,
        bench.source.sha256,
        bench.data.fingerprint,
        bench.data.feeds_fingerprint,
        bench.canonicals,
        bench.judging.judges,
        bench.source.sets,
        _handed(bench),
        bench.data.spool,
    )


def _handed(bench: Workbench) -> Handed | None:
    """Evaluation samples that the user's code makes, which may take long; files are read as fast where they are."""
    if not code.is_reference(bench.data.evaluated_from):
        return None
    folder = bench.folder / "evaluation"
    folder.mkdir()
    return hand(bench.data.evaluation, folder)
