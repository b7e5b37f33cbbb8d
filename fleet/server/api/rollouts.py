"""Rollouts: planning, starting, watching, and what an operator may do with one."""

from datetime import timedelta
from typing import Annotated

import msgspec
from fastapi import Depends, Query, Request
from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotFoundError, NotPossibleError
from edgekit.wire.states import FleetState
from fleet import api
from fleet.rules.members import Member
from fleet.rules.rollout import ACTIVE, Command, Rollout, Status, Verb
from fleet.rules.text import duration
from fleet.server import changes, planning
from fleet.server.api.admission import Caller, Principal
from fleet.server.api.context import Answer, Ctx, answer, body, body_or
from fleet.server.api.matching import IfMatch, tag_of
from fleet.server.api.paging import After, link
from fleet.server.api.routing import DRY_RUN, Router
from fleet.server.clock import Now
from fleet.server.store import blocked, devices, members, orders, releases, rollouts, settings

router = Router(prefix="/api/v1", tags=["rollouts"])

# Of a page of rollouts and of members; and the members that a rollout itself shows.
USUAL, MOST = 50, 500
USUAL_MEMBERS, MOST_MEMBERS = 500, 5000
FIRST_MEMBERS = 50
_HOW = body_or(api.Turn())
# From which states a verb makes sense; anything else is a mistake worth telling.
_UNDER_WAY = {Status.RUNNING, Status.PAUSED}
_ALLOWED: dict[Verb, set[Status]] = {
    "pause": {Status.RUNNING},
    "resume": {Status.PAUSED},
    "abort": {*_UNDER_WAY, Status.QUEUED},
    "rollback": {*_UNDER_WAY, Status.COMPLETED},
    "approve": _UNDER_WAY,
    "hold": _UNDER_WAY,
    "release": _UNDER_WAY,
}


@router.post("/rollouts", status_code=201, responses=DRY_RUN)
def start(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewRollout, Depends(body(api.NewRollout))]
) -> Answer[api.RolloutAnswer]:
    """Plan a rollout and begin it; with `dry_run` only plan it."""
    now = ctx.time.now()
    if len(to := caller.scope.narrow(wanted.to)) > api.MAX_TEXT:
        raise NotPossibleError(f"the selector is too long: at most {api.MAX_TEXT} characters with your scope")
    wanted = msgspec.structs.replace(wanted, to=to)
    with ctx.database.begin() as connection:
        rollout, plan = planning.plan(connection, wanted, now)
        if wanted.dry_run:
            return answer(api.RolloutAnswer(plan))
        if settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        rollout = changes.begin(connection, ctx.issuer, rollout, now=now, who=caller.who, wanted=wanted)
        shown = view(connection, rollout, now)
    ctx.wake()
    return answer(api.RolloutAnswer(plan, shown), 201)


@router.get("/rollouts")
def listing(
    request: Request,
    ctx: Ctx,
    caller: Caller,
    after: After = "",
    limit: Annotated[int, Query(ge=1, le=MOST)] = USUAL,
) -> Answer[list[api.RolloutView]]:
    """Rollouts, the newest first, without their members."""
    now = ctx.time.now()
    before = rollouts.parse_id(after) if after else None
    with ctx.database.read() as connection:
        page = rollouts.page(connection, before, limit)
        reached = [rollout for rollout in page if reaches_all(connection, caller, rollout)]
        response = answer([view(connection, rollout, now, first=0) for rollout in reached])
    if len(page) == limit:
        link(response, request, page[-1].label, limit)
    return response


@router.get("/rollouts/{rollout_id}")
def show(ctx: Ctx, caller: Caller, rollout_id: str) -> Answer[api.RolloutView]:
    """A rollout."""
    with ctx.database.read() as connection:
        found = within(connection, caller, rollouts.head(connection, rollouts.parse_id(rollout_id)))
        return answer(view(connection, found, ctx.time.now()))


@router.get("/rollouts/{rollout_id}/members")
def member_listing(
    request: Request,
    ctx: Ctx,
    caller: Caller,
    rollout_id: str,
    *,
    after: After = "",
    limit: Annotated[int, Query(ge=1, le=MOST_MEMBERS)] = USUAL_MEMBERS,
    state: Annotated[FleetState | None, Query(description="Only those in this state.")] = None,
) -> Answer[list[api.MemberView]]:
    """The devices of a rollout, by name."""
    with ctx.database.read() as connection:
        found = within(connection, caller, rollouts.head(connection, rollouts.parse_id(rollout_id)))
        page = members.page(connection, found.id, after, limit, state)
    response = answer([_member(member) for member in page])
    if len(page) == limit:
        link(response, request, page[-1].device, limit)
    return response


@router.get("/rollouts/{rollout_id}/wanted")
def asked(ctx: Ctx, caller: Caller, rollout_id: str) -> Answer[api.NewRollout]:
    """What it was started with; the same again starts another one like it."""
    with ctx.database.read() as connection:
        found = within(connection, caller, rollouts.head(connection, rollouts.parse_id(rollout_id)))
        return answer(rollouts.wanted(connection, found.id))


@router.post("/rollouts/{rollout_id}/{verb}")
def turn(
    ctx: Ctx,
    caller: Caller,
    rollout_id: str,
    verb: Verb,
    *,
    seen: IfMatch,
    how: Annotated[api.Turn, Depends(_HOW)],
) -> Answer[api.RolloutView]:
    """Pause, resume, abort, roll back, approve a stage, hold a profile or release it."""
    now = ctx.time.now()
    with ctx.database.begin() as connection:
        rollout = within(connection, caller, rollouts.load(connection, rollouts.parse_id(rollout_id)))
        seen.check(tag(rollout), f"rollout {rollout.label}")
        if rollout.status not in _ALLOWED[verb]:
            raise ConflictError(f"rollout {rollout.label} is {rollout.status}; it cannot {verb} now")
        if verb == "resume" and settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        if verb == "resume":
            blocked.check_release(connection, rollout.spec.name, rollout.spec.version)
        if rollout.status is Status.COMPLETED:
            _check_still_its_own(connection, rollout)
        command = _command(rollout, verb, how, f"{verb} asked for by {caller.who}", now)
        rollout = changes.apply(connection, ctx.issuer, rollout, command, now=now, who=caller.who)
        shown = view(connection, rollout, ctx.time.now())
    ctx.wake()
    return answer(shown)


def _command(rollout: Rollout, verb: Verb, how: api.Turn, reason: str, now: Now) -> Command:
    """Raises: UsageError, ConflictError where it would change nothing, and says why."""
    finish_by_s = duration(how.finish_by, "finish-by") if how.finish_by else None
    if verb == "resume" and finish_by_s is None and rollouts.moment(now.steady) >= rollout.finish_at:
        raise ConflictError(
            f"the time of rollout {rollout.label} is over, and it would pause again at once; resume it with --finish-by "
            "and the time that it has from now on, e.g. 1d"
        )
    if verb == "approve" and rollout.awaits is None:
        raise ConflictError(f"rollout {rollout.label} waits for no approval now")
    if verb in ("hold", "release"):
        profiles = sorted({member.profile for member in rollout.members.values()})
        if how.profile not in profiles:
            raise NotPossibleError(
                f"profile {how.profile!r}: rollout {rollout.label} has devices of {', '.join(profiles)}"
            )
        if (how.profile in rollout.stopped) == (verb == "hold"):
            held = "held already" if verb == "hold" else "not held"
            raise ConflictError(f"the profile {how.profile} of rollout {rollout.label} is {held}")
        reason = f"{reason}: {how.profile}"
    return Command(verb, reason, how.profile, finish_by_s)


def reaches_all(connection: Connection, caller: Principal, rollout: Rollout) -> bool:
    """Whether a rollout is within the caller's scope: all of its devices are."""
    if not caller.scope.is_limited:
        return True
    labels = {row.id: devices.labels_of(row) for row in devices.everyone(connection)}
    found = [labels.get(device) for device in members.names(connection, rollout.id)]
    return bool(found) and all(some is not None and caller.reaches(some) for some in found)


def within(connection: Connection, caller: Principal, rollout: Rollout) -> Rollout:
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


def tag(rollout: Rollout) -> str:
    """Stands for what a person decides by; what devices do meanwhile is no part of it."""
    return tag_of(rollout.id, rollout.status, rollout.stage, rollout.awaits, rollout.stopped)


def view(
    connection: Connection, rollout: Rollout, now: Now, *, first: int = FIRST_MEMBERS
) -> api.RolloutView:
    """A rollout as the API shows it, with its `first` members in the order in which they move; times by the wall clock.

    The members are read from their rows: `rollout` need not have them.
    """
    ahead = timedelta(seconds=now.wall - now.steady)
    spec, is_running = rollout.spec, rollout.status is Status.RUNNING
    soak_ends = None
    if is_running and rollout.soak_from is not None:
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
        counts=members.counts(connection, rollout.id),
        gates=tuple(api.GateView(v.gate, v.outcome.value, v.words) for v in rollout.verdicts),
        created=rollout.created_at + ahead,
        soak_ends=soak_ends,
        finish_by=rollout.finish_at + ahead if rollout.status in ACTIVE else None,
        awaits=rollout.awaits + 1 if rollout.awaits is not None else None,
        held_profiles=rollout.stopped,
        waiting=members.waiting(connection, rollout) if is_running else 0,
        members=tuple(map(_member, members.first(connection, rollout.id, first))) if first else (),
        tag=tag(rollout),
    )


def _member(member: Member) -> api.MemberView:
    return api.MemberView(
        device=member.device,
        profile=member.profile,
        stage=member.stage + 1 if member.stage is not None else None,
        state=member.state.value,
        reason=member.reason,
        previous=member.previous_title,
    )
