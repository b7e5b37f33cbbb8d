"""What `edgekit.lock` says of a build's targets, and what it is told of them.

Always true
 1. A target follows the lock only if that is about the inputs and tools at hand; otherwise everything is tried, or with
    `--locked` the build ends and says what changed.
 2. What is written is what was shipped, the pick first.

The file and its rules are `converters.keep.lock`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from converters.data import datasets
from converters.keep import lock
from converters.keep.lock import LockedBundle, LockedTarget
from converters.outcome import Options
from converters.recipes.recipes import Plan, threads_for
from converters.report.result import ProfileResult
from converters.work.workbench import Workbench
from edgekit.errors import LockError
from edgekit.manifest import Contract
from edgekit.profile import Profile


def read(
    bench: Workbench, profile: Profile, asked: Contract, plans: Sequence[Plan], options: Options
) -> LockedTarget | None:
    """What the lock has for a target of which these limits are asked, if it is about these inputs and tools.

    Raises: LockError where one is required and there is none that fits.
    """
    if options.lock == "write":
        return None
    name = profile.name
    path = lock.beside(bench.project, options.out)
    found = lock.read(path)
    locked = found.targets.get(name) if found is not None else None
    if locked is None:
        if options.lock == "require":
            raise LockError(f"{path}: has nothing for {name}; write it with edgekit build --lock")
        return None
    tools = bench.keys.all_tools(lock.plans(locked, plans))
    changed = lock.changes(locked, _inputs(bench, profile, asked), tools)
    if not changed:
        return locked
    told = f"{path}: not up to date for {name}: {', '.join(changed)} changed"
    if options.lock == "require":
        raise LockError(f"{told}; write it anew with edgekit build --lock")
    bench.tell(f"{told}; everything is tried")
    return None


def written(
    bench: Workbench, outcome: ProfileResult, asked: Contract, shipped: Sequence[Mapping[str, Any]]
) -> LockedTarget:
    """What the lock is to say of a target; `shipped` are the rows of its bundles in the result."""
    items = [outcome.candidate(str(row["recipe"])) for row in shipped]
    usual = threads_for(outcome.profile)
    return LockedTarget(
        inputs=_inputs(bench, outcome.profile, asked),
        tools=bench.keys.all_tools(item.plan for item in items),
        bundles=tuple(
            LockedBundle(
                item.recipe,
                str(row["digest"]),
                item.plan.tuning,
                item.plan.threads if item.plan.threads != usual else 0,
                dict(item.plan.layout),
            )
            for item, row in zip(items, shipped, strict=True)
        ),
    )


def _inputs(bench: Workbench, profile: Profile, asked: Contract) -> dict[str, str]:
    """Of limits those that are asked: what a default comes to follows from the rest."""
    return lock.inputs(
        bench.project,
        profile,
        asked,
        source_sha256=bench.source.sha256,
        calibration=bench.data.fingerprint,
        evaluation=datasets.fingerprint(bench.data.evaluation),
    )
