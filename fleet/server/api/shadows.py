"""Shadows: start, look, stop."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from fastapi import Depends
from sqlalchemy import Connection

from edgekit.errors import ConflictError
from fleet import api
from fleet.rules import shadowing as rules
from fleet.server import shadowing
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router
from fleet.server.store import devices, releases, settings, shadows
from fleet.server.store.shadows import ShadowRow

router = Router(prefix="/api/v1", tags=["shadows"])


@router.post("/shadows", status_code=201)
def start(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewShadow, Depends(body(api.NewShadow))]
) -> Answer[api.ShadowView]:
    """Let devices compare a release with what they serve. Their next orders say so; answers come from what is served."""
    with ctx.database.begin() as connection:
        if settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        number = shadowing.start(connection, wanted, now=ctx.clock(), who=caller.who)
        made = view(connection, shadows.get(connection, number))
    ctx.wake()
    return answer(made, 201)


@router.get("/shadows")
def listing(ctx: Ctx, page: Paged) -> Answer[list[api.ShadowView]]:
    """Shadows, the newest first."""
    with ctx.database.read() as connection:
        views = [view(connection, found) for found in shadows.everything(connection)]
    return page.of(views, lambda found: found.id)


@router.get("/shadows/{shadow}")
def show(ctx: Ctx, shadow: str) -> Answer[api.ShadowView]:
    """How far a shadow agrees with what is served, by device."""
    with ctx.database.read() as connection:
        found = shadows.get(connection, shadows.parse_id(shadow))
        made = view(connection, found)
        return answer(msgspec.structs.replace(made, devices=_devices(connection, found)))


@router.post("/shadows/{shadow}/stop")
def stop(ctx: Ctx, caller: Caller, shadow: str) -> Answer[api.ShadowView]:
    """End it; its devices delete it."""
    number = shadows.parse_id(shadow)
    with ctx.database.begin() as connection:
        shadowing.stop(connection, number, now=ctx.clock(), who=caller.who)
        made = view(connection, shadows.get(connection, number))
    ctx.wake()
    return answer(made)


def view(connection: Connection, found: ShadowRow) -> api.ShadowView:
    rows = shadows.rows_of(connection, found.id)
    sums = [shadows.sums_of(row) for row in rows]
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("compared", "dropped", "failed")}
    agreed = rules.agreements(sums)
    return api.ShadowView(
        id=shadows.label(found.id),
        status=found.status,
        reason=found.reason,
        release=releases.title(found.name, found.version),
        deployment=found.deployment,
        to=found.selector,
        share=found.share,
        members=len(rows),
        **counts,
        outputs=tuple(msgspec.convert(msgspec.to_builtins(one), api.AgreementView) for one in agreed),
        latency_ratio=rules.latency_ratio(sums),
        words=rules.words(counts, agreed),
        created=datetime.fromtimestamp(found.created_at, UTC),
        created_by=found.created_by,
    )


def _devices(connection: Connection, found: ShadowRow) -> tuple[api.ShadowDeviceView, ...]:
    rows = shadows.rows_of(connection, found.id)
    known = {
        row.id: devices.reported_of(row) for row in devices.some(connection, [row.device for row in rows])
    }
    views = []
    for row in rows:
        told = known.get(row.device)
        deployment = told.deployments.get(found.deployment) if told is not None else None
        said = deployment.shadow if deployment is not None else None
        is_own = said is not None and said.digest == row.sha256
        sums = shadows.sums_of(row)
        means = [each.mean for each in sums.agreement.values() if each.count]
        views.append(
            api.ShadowDeviceView(
                row.device,
                said.state if said is not None and is_own else "",
                said.reason if said is not None and is_own else "",
                row.compared,
                row.dropped,
                row.failed,
                min(means, default=None),
                rules.latency_ratio([sums]),
            )
        )
    return tuple(views)
