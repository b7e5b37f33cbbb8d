"""The fleet as a whole: status, public keys, freeze."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection

from fleet import api
from fleet.server.api.admission import Caller, Principal
from fleet.server.api.context import Answer, Context, Ctx, answer, body
from fleet.server.api.rollouts import reaches_all
from fleet.server.api.routing import Router
from fleet.server.store import audit, devices, news, rollouts, settings

router = Router(prefix="/api/v1", tags=["fleet"])


@router.get("/status")
def status(ctx: Ctx, caller: Caller) -> Answer[api.FleetView]:
    """The fleet at a glance."""
    with ctx.database.read() as connection:
        return answer(_view(connection, ctx, caller))


@router.get("/whoami")
def whoami(caller: Caller) -> Answer[api.Whoami]:
    """Whose token or session this is, and what it may do."""
    return answer(api.Whoami(caller.who.name, caller.role.word, caller.scope.text))


@router.get("/keys")
def keys(ctx: Ctx) -> Answer[api.KeysView]:
    """The public halves of the keys that sign orders and the audit log."""
    order, audited = ctx.issuer.key, ctx.keys.audit
    return answer(
        api.KeysView(
            fleet=ctx.issuer.fleet,
            order_keys={order.keyid: order.public_hex},
            audit_keys={audited.keyid: audited.public_hex},
        )
    )


@router.post("/freeze")
def freeze(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.Freeze, Depends(body(api.Freeze))]
) -> Answer[api.FleetView]:
    """The stop button: while frozen no rollout starts, moves on or is judged. An operator may still roll back."""
    with ctx.database.begin() as connection:
        was_frozen = settings.is_frozen(connection)
        settings.set_frozen(connection, wanted.is_frozen)
        # What changed meanwhile waits for nobody to report.
        news.anyone(connection)
        action = "fleet.freeze" if wanted.is_frozen else "fleet.unfreeze"
        audit.append(
            connection,
            ctx.clock(),
            caller.who,
            action,
            ctx.issuer.fleet,
            wanted.reason,
            before=was_frozen,
            after=wanted.is_frozen,
        )
        view = _view(connection, ctx, caller)
    ctx.wake()
    return answer(view)


def is_frozen(ctx: Context) -> bool:
    with ctx.database.read() as connection:
        return settings.is_frozen(connection)


def _view(connection: Connection, ctx: Context, caller: Principal) -> api.FleetView:
    if caller.scope.is_limited:
        seen = [row for row in devices.everyone(connection) if caller.reaches(devices.labels_of(row))]
        total, online = len(seen), sum(row.is_online for row in seen)
        active = sum(reaches_all(connection, caller, one) for one in rollouts.active(connection))
    else:
        total, online = devices.counts(connection)
        active = len(rollouts.active_ids(connection))
    dropped = dict(ctx.dropped)
    if ctx.link.inbox.overflowed:
        dropped["queue full"] = ctx.link.inbox.overflowed
    return api.FleetView(
        fleet=ctx.issuer.fleet,
        is_frozen=settings.is_frozen(connection),
        broker=str(ctx.link.address),
        is_connected=ctx.link.is_connected,
        devices=total,
        online=online,
        active_rollouts=active,
        dropped=dropped,
        is_controller=ctx.is_controller(),
    )
