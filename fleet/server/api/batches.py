"""The enrolment files of batches: listed, and withdrawn. Making one is `enrolment`'s."""

from datetime import UTC, datetime

from edgekit.errors import NotFoundError
from fleet import api
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router
from fleet.server.store import batches

router = Router(prefix="/api/v1", tags=["enrolment"])


@router.get("/batches")
def listing(ctx: Ctx, page: Paged) -> Answer[list[api.BatchView]]:
    """The enrolment files of batches."""
    now = ctx.clock()
    with ctx.database.read() as connection:
        views = [_view(found, now) for found in batches.everything(connection)]
    return page.of(views, lambda found: found.id)


@router.post("/batches/{batch}/revoke")
def revoke(ctx: Ctx, caller: Caller, batch: str) -> Answer[api.Done]:
    """Nobody joins by this file any more; who has joined stays."""
    with ctx.database.begin() as connection:
        is_changed = batches.withdraw(connection, _id(batch), now=ctx.clock(), who=caller.who)
    return answer(api.Done(batch, is_changed=is_changed))


def _id(text: str) -> int:
    digits = text.removeprefix("b")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise NotFoundError(f"{text!r} is no batch; 'edgekit fleet batch list' shows them (b1, b2, …)")
    return int(digits)


def _view(found: batches.Batch, now: float) -> api.BatchView:
    is_full = found.joined + found.waiting >= found.places
    states = (
        (found.is_withdrawn, "withdrawn"),
        (now >= found.expires_at, "run out"),
        (is_full, "full"),
        (True, "open"),
    )
    return api.BatchView(
        id=f"b{found.id}",
        state=next(state for holds, state in states if holds),
        created=datetime.fromtimestamp(found.created_at, UTC),
        created_by=found.created_by,
        expires=datetime.fromtimestamp(found.expires_at, UTC),
        places=found.places,
        joined=found.joined,
        waiting=found.waiting,
        refused=found.refused,
        needs_approval=found.needs_approval,
        listed=len(found.serials),
        labels=found.labels,
        deployments=found.deployments,
    )
