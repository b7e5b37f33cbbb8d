"""From a plan to a candidate: converted and run over the judged half, or the reason why not.

Always true
 1. A plan that cannot come to anything (no engine, no calibration data) is not tried, and says why.
 2. What fails costs its candidate only, a tool's bug as well; an interrupt and a full disk alone end the build.
"""

from collections.abc import Sequence
from dataclasses import replace

from converters import backends
from converters.backends import Unsupported
from converters.backends.artifact import Artifact
from converters.graph import canonical
from converters.measure.host import Host
from converters.recipes.recipes import Plan
from converters.rounds.candidates import Candidate
from converters.work import golden
from converters.work.findings import told
from converters.work.orders import glimpse, whole
from converters.work.scratch import check_room
from converters.work.workbench import Workbench
from edgekit import engines, interrupt
from edgekit.errors import EdgeKitError
from edgekit.rows import aligned
from edgekit.samples import rows


def made_together(
    bench: Workbench,
    plans: Sequence[Plan],
    host: Host,
    *,
    limit_s: float = float("inf"),
    is_glimpsed: bool = False,
) -> None:
    """All that these plans' candidates need, made side by side; or what it takes to time them, and to judge them a little."""
    tried = [plan for plan in plans if not _obstacle(bench, plan)]
    if is_glimpsed:
        bench.together([glimpse(plan, host.threads(plan)) for plan in tried])
    else:
        bench.together([whole(plan, host.threads(plan), limit_s) for plan in tried])


def made(
    bench: Workbench, plan: Plan, host: Host, *, limit_s: float = float("inf"), is_glimpsed: bool = False
) -> Candidate:
    """Converted and run on the evaluation data, or on a little of it, or the reason why not; in `limit_s` seconds, if that
    is less than the build's own limit.
    """
    blank = Candidate(plan, notes=plan.notes)
    obstacle = _obstacle(bench, plan)
    if obstacle:
        return replace(blank, failure=obstacle)
    made_together(bench, [plan], host, limit_s=limit_s, is_glimpsed=is_glimpsed)
    try:
        artifact = bench.artifact(plan)
        if plan.static_shapes_only:
            _refuse_open_shapes(artifact, plan.recipe.engine)
        run = bench.glimpse if is_glimpsed else bench.evaluate
        evaluated = run(artifact, plan, host.threads(plan))
    except EdgeKitError as error:
        interrupt.check()
        check_room(bench.folder)
        return replace(blank, failure=str(error))
    except Exception as error:  # noqa: BLE001  # a tool's bug costs its candidate, not the build; the reason is shown
        interrupt.check()
        check_room(bench.folder)
        return replace(blank, failure=told(error))
    reference = bench.standard.few_reference if is_glimpsed else bench.standard.reference
    wanted = rows(reference.golden)
    pairs = zip(rows(evaluated.golden), wanted, strict=True)
    parity = canonical.parity(wanted, [aligned(bench.source.sets, ours, own) for ours, own in pairs])
    golden_bytes = bench.golden.size_bytes(artifact.size_bytes, is_whole=golden.is_whole(plan))
    return replace(
        blank,
        artifact=artifact,
        bundle_bytes=artifact.size_bytes + golden_bytes,
        evaluated=evaluated,
        is_glimpsed=is_glimpsed,
        parity=parity,
        notes=(*blank.notes, *artifact.notes),
    )


def _obstacle(bench: Workbench, plan: Plan) -> str:
    """Why a plan need not be tried; empty if it may be."""
    if plan.obstacle:
        return plan.obstacle
    if plan.constraints.vela and bench.source.buckets:
        return "buckets are not compiled for an Ethos-U yet; give this target's input one size"
    if plan.recipe.needs_calibration and bench.prepared.calibration is None:
        return "needs calibration data ([data] calibration, or --calibration)"
    installed = engines.installed().get(plan.recipe.engine)
    if installed is None:
        return f"{plan.recipe.engine} is not installed here"
    if not engines.accepts(plan.versions, installed):
        return f"the profile wants {plan.recipe.engine} {plan.versions}, and {installed} is installed here"
    return ""


def _refuse_open_shapes(artifact: Artifact, engine: str) -> None:
    """Raises: Unsupported."""
    found = backends.get(engine).open_shapes(artifact.folder / artifact.runs_here)
    if found:
        raise Unsupported(
            f"the profile takes static shapes only, and {len(found)} inside depend on the data: {', '.join(found[:5])}"
        )
