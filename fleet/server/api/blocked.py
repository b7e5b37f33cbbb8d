"""The block list: what no new order may name."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection

from fleet import api
from fleet.rules.rollout import Command, Rollout, Status
from fleet.server import changes
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Context, Ctx, answer, body
from fleet.server.api.paging import Paged
from fleet.server.api.routing import WAS_SO, Router
from fleet.server.store import blocked, releases, rollouts
from fleet.server.store.audit import Who

router = Router(prefix="/api/v1", tags=["releases"])


@router.get("/blocked")
def listing(ctx: Ctx, page: Paged) -> Answer[list[api.BlockedView]]:
    """What no new order names."""
    with ctx.database.read() as connection:
        return page.of(blocked.everything(connection), lambda found: found.subject)


@router.post("/blocked", status_code=201, responses=WAS_SO)
def block(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.Block, Depends(body(api.Block))]
) -> Answer[api.BlockAnswer]:
    """From this transaction on no order names it; running rollouts that would are paused."""
    subject = blocked.checked(wanted.subject)
    with ctx.database.begin() as connection:
        # Locks in everyone's order: rollouts before the audit log.
        under_way = [rollouts.load(connection, number) for number in rollouts.active_ids(connection)]
        is_new = blocked.add(connection, subject, wanted.reason, now=ctx.clock(), who=caller.who)
        _pause(connection, ctx, subject, under_way, caller.who)
    ctx.wake()
    return answer(api.BlockAnswer(subject, is_changed=is_new), 201 if is_new else 200)


@router.post("/blocked/{subject}/remove")
def unblock(
    ctx: Ctx, caller: Caller, subject: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.BlockAnswer]:
    """Paused rollouts stay so: resuming one is a person's decision."""
    with ctx.database.begin() as connection:
        blocked.remove(connection, subject, why.reason, now=ctx.clock(), who=caller.who)
    ctx.wake()
    return answer(api.BlockAnswer(subject, is_changed=True))


def _pause(connection: Connection, ctx: Context, subject: str, under_way: list[Rollout], who: Who) -> None:
    for rollout in under_way:
        title = releases.title(rollout.spec.name, rollout.spec.version)
        targets = {member.target for member in rollout.members.values()}
        if rollout.status is Status.RUNNING and (subject == title or subject in targets):
            command = Command("pause", f"{subject} was blocked by {who}")
            changes.apply(connection, ctx.issuer, rollout, command, now=ctx.time.now(), who=who)
