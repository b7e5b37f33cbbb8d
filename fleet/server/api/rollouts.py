"""Rollouts: planning, starting, watching, and the operator's four verbs."""

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from sqlalchemy import Connection

from edgekit.errors import ConflictError
from fleet import api
from fleet.rules.rollout import Command, Rollout, Status
from fleet.server import changes, planning
from fleet.server.api.context import Actor, Ctx, answer, body
from fleet.server.store import blocked, orders, releases, rollouts, settings

router = APIRouter(tags=["rollouts"])

# From which states a verb makes sense; anything else is a mistake worth telling.
_ALLOWED = {
    "pause": {Status.RUNNING},
    "resume": {Status.PAUSED},
    "abort": {Status.RUNNING, Status.PAUSED},
    "rollback": {Status.RUNNING, Status.PAUSED, Status.COMPLETED},
}


@router.post("/rollouts")
def start(
    ctx: Ctx, actor: Actor, wanted: Annotated[api.NewRollout, Depends(body(api.NewRollout))]
) -> Response:
    now = ctx.clock()
    with ctx.database.begin() as connection:
        rollout, plan = planning.plan(connection, wanted, now)
        if wanted.dry_run:
            return answer(api.RolloutAnswer(plan))
        if settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        rollout = changes.begin(connection, ctx.issuer, rollout, now=now, actor=actor)
    ctx.wake()
    return answer(api.RolloutAnswer(plan, view(rollout)), 201)


@router.get("/rollouts")
def listing(ctx: Ctx, _actor: Actor) -> Response:
    with ctx.database.begin() as connection:
        return answer([view(rollout) for rollout in rollouts.everything(connection)])


@router.get("/rollouts/{rollout_id}")
def show(ctx: Ctx, _actor: Actor, rollout_id: str) -> Response:
    with ctx.database.begin() as connection:
        return answer(view(rollouts.load(connection, rollouts.parse_id(rollout_id))))


@router.post("/rollouts/{rollout_id}/{verb}")
def turn(
    ctx: Ctx, actor: Actor, rollout_id: str, verb: Literal["pause", "resume", "abort", "rollback"]
) -> Response:
    with ctx.database.begin() as connection:
        rollout = rollouts.load(connection, rollouts.parse_id(rollout_id))
        if rollout.status not in _ALLOWED[verb]:
            raise ConflictError(f"rollout {rollout.label} is {rollout.status}; it cannot {verb} now")
        if verb == "resume" and settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        if verb == "resume":
            blocked.check_release(connection, rollout.spec.name, rollout.spec.version)
        if rollout.status is Status.COMPLETED:
            _check_still_its_own(connection, rollout)
        command = Command(verb, f"{verb} asked for by {actor}")
        rollout = changes.apply(connection, ctx.issuer, rollout, command, now=ctx.clock(), actor=actor)
    ctx.wake()
    return answer(view(rollout))


def _check_still_its_own(connection: Connection, rollout: Rollout) -> None:
    """A completed rollout goes back only while its devices are still where it put them."""
    present = orders.desired_of(connection)
    moved_on = [
        member.device
        for member in rollout.members.values()
        if member.order_counter
        and (found := present.get((member.device, rollout.spec.deployment))) is not None
        and found.sha256 != member.target
    ]
    busy = {
        device
        for other in rollouts.active(connection)
        if other.spec.deployment == rollout.spec.deployment
        for device in other.members.keys() & rollout.members.keys()
    }
    if moved_on or busy:
        raise ConflictError(
            f"rollout {rollout.label}: {len(set(moved_on) | busy)} of its devices belong to a newer rollout by now; "
            "roll that one back first"
        )


def view(rollout: Rollout) -> api.RolloutView:
    """A rollout as the API shows it: devices in the order in which they move."""
    spec = rollout.spec
    members = sorted(rollout.members.values(), key=lambda m: (m.is_held, m.key))
    counts: dict[str, int] = {}
    for member in members:
        counts[member.state.value] = counts.get(member.state.value, 0) + 1
    soak_ends = None
    if rollout.status is Status.RUNNING and rollout.soak_from is not None:
        soak_ends = rollout.soak_from + timedelta(seconds=spec.soak_s)
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
        created=rollout.created_at,
        soak_ends=soak_ends,
    )
