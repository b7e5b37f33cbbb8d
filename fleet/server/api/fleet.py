"""The fleet as a whole: status, public keys, freeze."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy import Connection

from fleet import api
from fleet.server.api.context import Actor, Context, Ctx, answer, body
from fleet.server.store import audit, devices, rollouts, settings

router = APIRouter(tags=["fleet"])


@router.get("/status")
def status(ctx: Ctx, _actor: Actor) -> Response:
    with ctx.database.begin() as connection:
        return answer(_view(connection, ctx))


@router.get("/keys")
def keys(ctx: Ctx, _actor: Actor) -> Response:
    return answer(
        api.KeysView(fleet=ctx.issuer.fleet, order_keys={ctx.issuer.key.keyid: ctx.issuer.key.public_hex})
    )


@router.post("/freeze")
def freeze(ctx: Ctx, actor: Actor, wanted: Annotated[api.Freeze, Depends(body(api.Freeze))]) -> Response:
    """The stop button: while frozen no rollout starts, moves on or is judged. An operator may still roll back."""
    with ctx.database.begin() as connection:
        settings.set_frozen(connection, wanted.is_frozen)
        action = "fleet.freeze" if wanted.is_frozen else "fleet.unfreeze"
        audit.append(connection, ctx.clock(), actor, action, ctx.issuer.fleet, wanted.reason)
        view = _view(connection, ctx)
    ctx.wake()
    return answer(view)


def _view(connection: Connection, ctx: Context) -> api.FleetView:
    total, online = devices.counts(connection)
    dropped = dict(ctx.dropped)
    if ctx.link.overflowed:
        dropped["queue full"] = ctx.link.overflowed
    return api.FleetView(
        fleet=ctx.issuer.fleet,
        is_frozen=settings.is_frozen(connection),
        broker=str(ctx.link.address),
        is_connected=ctx.link.is_connected,
        devices=total,
        online=online,
        active_rollouts=len(rollouts.active_ids(connection)),
        dropped=dropped,
    )
