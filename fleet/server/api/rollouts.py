"""Rollouts: planning, starting, watching, and the operator's four verbs."""

from datetime import timedelta
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Response
from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotFoundError, UsageError
from fleet import api
from fleet.rules.rollout import Command, Rollout, Status
from fleet.server import changes, planning
from fleet.server.api.admission import Caller, Principal
from fleet.server.api.context import Ctx, answer, body
from fleet.server.clock import Now
from fleet.server.store import blocked, devices, orders, releases, rollouts, settings

router = APIRouter(prefix="/api/v1", tags=["rollouts"])

# From which states a verb makes sense; anything else is a mistake worth telling.
_ALLOWED = {
    "pause": {Status.RUNNING},
    "resume": {Status.PAUSED},
    "abort": {Status.RUNNING, Status.PAUSED},
    "rollback": {Status.RUNNING, Status.PAUSED, Status.COMPLETED},
}


@router.post("/rollouts")
def start(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewRollout, Depends(body(api.NewRollout))]
) -> Response:
    now = ctx.time.now()
    if len(to := caller.scope.narrow(wanted.to)) > api.MAX_TEXT:
        raise UsageError(f"the selector is too long: at most {api.MAX_TEXT} characters with your scope")
    wanted = msgspec.structs.replace(wanted, to=to)
    with ctx.database.begin() as connection:
        rollout, plan = planning.plan(connection, wanted, now)
        if wanted.dry_run:
            return answer(api.RolloutAnswer(plan))
        if settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        rollout = changes.begin(connection, ctx.issuer, rollout, now=now, who=caller.who)
    ctx.wake()
    return answer(api.RolloutAnswer(plan, view(rollout, now)), 201)


@router.get("/rollouts")
def listing(ctx: Ctx, caller: Caller) -> Response:
    now = ctx.time.now()
    with ctx.database.read() as connection:
        found = rollouts.everything(connection)
        return answer([view(rollout, now) for rollout in found if reaches_all(connection, caller, rollout)])


@router.get("/rollouts/{rollout_id}")
def show(ctx: Ctx, caller: Caller, rollout_id: str) -> Response:
    with ctx.database.read() as connection:
        found = rollouts.get(connection, rollouts.parse_id(rollout_id))
        return answer(view(_within(connection, caller, found), ctx.time.now()))


@router.post("/rollouts/{rollout_id}/{verb}")
def turn(
    ctx: Ctx, caller: Caller, rollout_id: str, verb: Literal["pause", "resume", "abort", "rollback"]
) -> Response:
    with ctx.database.begin() as connection:
        rollout = _within(connection, caller, rollouts.load(connection, rollouts.parse_id(rollout_id)))
        if rollout.status not in _ALLOWED[verb]:
            raise ConflictError(f"rollout {rollout.label} is {rollout.status}; it cannot {verb} now")
        if verb == "resume" and settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        if verb == "resume":
            blocked.check_release(connection, rollout.spec.name, rollout.spec.version)
        if rollout.status is Status.COMPLETED:
            _check_still_its_own(connection, rollout)
        command = Command(verb, f"{verb} asked for by {caller.who}")
        rollout = changes.apply(connection, ctx.issuer, rollout, command, now=ctx.time.now(), who=caller.who)
    ctx.wake()
    return answer(view(rollout, ctx.time.now()))


def reaches_all(connection: Connection, caller: Principal, rollout: Rollout) -> bool:
    """Whether a rollout is within the caller's scope: all of its devices are."""
    if not caller.scope.is_limited:
        return True
    labels = {row.id: devices.labels_of(row) for row in devices.everyone(connection)}
    members = [labels.get(device) for device in rollout.members]
    return bool(members) and all(found is not None and caller.reaches(found) for found in members)


def _within(connection: Connection, caller: Principal, rollout: Rollout) -> Rollout:
    """A rollout within the scope; any other is not there. Raises: NotFoundError."""
    if not reaches_all(connection, caller, rollout):
        raise NotFoundError(
            f"there is no rollout {rollout.label}; 'edgekit fleet rollout list' shows them (r1, r2, …)"
        )
    return rollout


def _check_still_its_own(connection: Connection, rollout: Rollout) -> None:
    """A completed rollout goes back only while its devices are still where it put them."""
    present = orders.desired_of(connection, devices=sorted(rollout.members))
    moved_on = [
        member.device
        for member in rollout.members.values()
        if member.order_counter
        and (found := present.get((member.device, rollout.spec.deployment))) is not None
        and found.sha256 != member.target
    ]
    busy = {
        device
        for device, deployment in rollouts.busy(connection, sorted(rollout.members))
        if deployment == rollout.spec.deployment
    }
    if moved_on or busy:
        raise ConflictError(
            f"rollout {rollout.label}: {len(set(moved_on) | busy)} of its devices belong to a newer rollout by now; "
            "roll that one back first"
        )


def view(rollout: Rollout, now: Now) -> api.RolloutView:
    """A rollout as the API shows it: devices in the order in which they move, times by the wall clock."""
    ahead = timedelta(seconds=now.wall - now.steady)
    spec = rollout.spec
    members = sorted(rollout.members.values(), key=lambda m: (m.is_held, m.key))
    counts: dict[str, int] = {}
    for member in members:
        counts[member.state.value] = counts.get(member.state.value, 0) + 1
    soak_ends = None
    if rollout.status is Status.RUNNING and rollout.soak_from is not None:
        soak_ends = rollout.soak_from + timedelta(seconds=spec.soak_s) + ahead
    return api.RolloutView(
        id=rollout.label,
        release=releases.title(spec.name, spec.version),
        deployment=spec.deployment,
        to=spec.selector,
        status=rollout.status.value,
        reason=rollout.reason,
        stage=rollout.stage + 1,
        stages=tuple(stage.words for stage in spec.stages),
        counts=counts,
        gates=tuple(api.GateView(v.gate, v.outcome.value, v.words) for v in rollout.verdicts),
        members=tuple(
            api.MemberView(
                device=member.device,
                profile=member.profile,
                stage=member.stage + 1 if member.stage is not None else None,
                state=member.state.value,
                reason=member.reason,
                previous=member.previous_title,
            )
            for member in members
        ),
        created=rollout.created_at + ahead,
        soak_ends=soak_ends,
    )
