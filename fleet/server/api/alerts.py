"""Alerts, and whom they are told."""

from typing import Annotated

import msgspec
from fastapi import Depends, Query

from edgekit.errors import NotPossibleError, UsageError
from fleet import api
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body, body_or
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router
from fleet.server.store import alert_targets, alerts
from fleet.server.store.alerts import Body
from fleet.server.telling import NotToldError, Target, check, tell

router = Router(prefix="/api/v1", tags=["alerts"])


@router.get("/alerts")
def listing(ctx: Ctx, page: Paged, ended: Annotated[bool, Query()] = False) -> Answer[list[api.AlertView]]:
    """Alerts that stand, the gravest first; with `ended` the newest of those that are over."""
    with ctx.database.read() as connection:
        return page.of(alerts.listing(connection, is_open=not ended), lambda alert: alert.id)


@router.post("/alerts/{alert}/acknowledge")
def acknowledge(
    ctx: Ctx, caller: Caller, alert: str, why: Annotated[api.Reason, Depends(body_or(api.Reason()))]
) -> Answer[api.Changed]:
    """Note that a person has seen it, and who. It stands until it is over."""
    with ctx.database.begin() as connection:
        is_changed = alerts.acknowledge(connection, alert, why.reason, now=ctx.clock(), who=caller.who)
    return answer(api.Changed(alert, is_changed))


@router.get("/alert-targets")
def targets(ctx: Ctx, page: Paged) -> Answer[list[api.TargetView]]:
    """Who is told, what waits for each, and why."""
    with ctx.database.read() as connection:
        return page.of(alert_targets.listing(connection), lambda target: target.name)


@router.post("/alert-targets", status_code=201)
def add_target(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewTarget, Depends(body(api.NewTarget))]
) -> Answer[api.Changed]:
    """Somebody is told from now on."""
    try:
        shown, secret = check(wanted)
    except UsageError as error:
        # Each field is well formed; together, or as an address, they are of no use.
        raise NotPossibleError(str(error)) from error
    sealed = ctx.seal.close(wanted.name, secret)
    with ctx.database.begin() as connection:
        alert_targets.add(connection, wanted, shown, sealed, now=ctx.clock(), who=caller.who)
    return answer(api.Changed(wanted.name), 201)


@router.post("/alert-targets/{target}/remove")
def remove_target(ctx: Ctx, caller: Caller, target: str) -> Answer[api.Changed]:
    """Nobody there is told any more; what still waits goes too."""
    with ctx.database.begin() as connection:
        alert_targets.remove(connection, target, now=ctx.clock(), who=caller.who)
    return answer(api.Changed(target))


@router.post("/alert-targets/{target}/test")
def test_target(ctx: Ctx, caller: Caller, target: str) -> Answer[api.TargetTried]:
    """Send a message at once; whether it arrived. What the receiver answers is not shown but for its status."""
    with ctx.database.read() as connection:
        row = alert_targets.get(connection, target)
    fleet, now = ctx.issuer.fleet, ctx.clock()
    text = f"{fleet}: a test of the target {target}, asked for by {caller.who.name}"
    message = Body("test", alerts.new_id(), fleet, alerts.moment(now), text, ctx.places.url)
    try:
        words = tell(
            Target(row.name, row.kind, row.sealed), msgspec.json.encode(message).decode(), ctx.seal, now
        )
    except NotToldError as error:
        return answer(api.TargetTried(target, has_arrived=False, words=str(error)))
    return answer(api.TargetTried(target, has_arrived=True, words=words))
