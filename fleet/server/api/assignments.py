"""Assigning without a rollout: the devices of a selector run a release from now on, at once and judged by nobody."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotPossibleError
from fleet import api
from fleet.rules import selectors
from fleet.rules.text import duration
from fleet.server import fitting
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body
from fleet.server.api.paging import Paged
from fleet.server.api.routing import DRY_RUN, Router
from fleet.server.store import (
    assignments,
    blocked,
    devices,
    groups,
    orders,
    releases,
    rollouts,
    settings,
)

router = Router(prefix="/api/v1", tags=["assignments"])


@router.get("/assignments")
def listing(ctx: Ctx, page: Paged) -> Answer[list[api.AssignmentView]]:
    """What devices run outside of rollouts: of those that match a device the newest holds."""
    with ctx.database.read() as connection:
        return page.of(assignments.everything(connection), lambda found: found.id)


@router.post("/assignments", status_code=201, responses=DRY_RUN)
def assign(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewAssignment, Depends(body(api.NewAssignment))]
) -> Answer[api.Assigned]:
    """Who a rollout has waits until that is over; then the newest that matches a device holds."""
    name, version = releases.parse_title(wanted.release)
    deployment = wanted.deployment or name
    if len(to := caller.scope.narrow(wanted.to)) > api.MAX_TEXT:
        raise NotPossibleError(f"the selector is too long: at most {api.MAX_TEXT} characters with your scope")
    probation_s = duration(wanted.probation, "probation") if wanted.probation else None
    with ctx.database.begin() as connection:
        plan = _plan(connection, (name, version), to, deployment)
        if wanted.dry_run:
            return answer(plan)
        if settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        moving = [device for some in plan.moves.values() for device in some]
        waiting = [other.device for other in plan.others]
        groups.mark(connection, [*moving, *waiting], [deployment])
        label = assignments.add(
            connection,
            name,
            version,
            to,
            deployment,
            moves=len(moving),
            probation_s=probation_s,
            now=ctx.clock(),
            who=caller.who,
        )
    ctx.wake()
    return answer(api.Assigned(label, plan.release, deployment, plan.moves, plan.there, plan.others), 201)


@router.post("/assignments/{assignment}/remove")
def remove(
    ctx: Ctx, caller: Caller, assignment: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.Changed]:
    """Nobody moves by it: devices go on with what they run."""
    with ctx.database.begin() as connection:
        assignments.remove(connection, assignment, why.reason, now=ctx.clock(), who=caller.who)
    ctx.wake()
    return answer(api.Changed(assignment))


def _plan(connection: Connection, release: tuple[str, str], to: str, deployment: str) -> api.Assigned:
    """Raises: UsageError, NotFoundError, BlockedError."""
    blocked.check_release(connection, *release)
    bundles = blocked.usable(connection, *release)
    selector = selectors.parse(to)
    everyone = devices.everyone(connection)
    known = {label for row in everyone for label in devices.labels_of(row)} | {*groups.BUILT_IN}
    selectors.check_names(selector, known)
    chosen = [row for row in everyone if selector.matches(devices.labels_of(row))]
    present = orders.desired_of(connection)
    busy = rollouts.busy(connection, [row.id for row in chosen])
    moves: dict[str, list[str]] = {}
    there: list[str] = []
    others: list[api.Ineligible] = []
    for row in chosen:
        if number := busy.get((row.id, deployment)):
            others.append(
                api.Ineligible(row.id, f"is in rollout r{number}, which has the say until it is over")
            )
            continue
        choice = fitting.choose(row, bundles, deployment, None)
        has = present.get((row.id, deployment))
        if choice.bundle is None:
            others.append(api.Ineligible(row.id, choice.reason))
        elif has is not None and has.sha256 == choice.bundle.sha256:
            there.append(row.id)
        else:
            moves.setdefault(choice.bundle.profile, []).append(row.id)
    by_profile = {profile: tuple(names) for profile, names in moves.items()}
    return api.Assigned("", releases.title(*release), deployment, by_profile, tuple(there), tuple(others))
