"""What was: a rollout's arms, a device, a release, by the minute, the hour and the day."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Query

from fleet import api
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer
from fleet.server.api.rollouts import within
from fleet.server.api.routing import Router
from fleet.server.store import history, releases, rollouts

router = Router(prefix="/api/v1", tags=["history"])

_USUAL = timedelta(days=7)
Since = Annotated[
    datetime | None,
    Query(description="From when on: RFC 3339, or unix seconds. Default: a week before `until`."),
]
Until = Annotated[datetime | None, Query(description="Until when. Default: now.")]


@router.get("/rollouts/{rollout_id}/history")
def rollout(
    ctx: Ctx, caller: Caller, rollout_id: str, since: Since = None, until: Until = None
) -> Answer[list[api.ArmPoint]]:
    """Canary and control while a stage is judged, from the beginning where nothing else is said."""
    number = rollouts.parse_id(rollout_id)
    begin = _seconds(since) if since is not None else 0.0
    end = _seconds(until) if until is not None else float("inf")
    with ctx.database.read() as connection:
        if caller.scope.is_limited:
            within(connection, caller, rollouts.get(connection, number))
        else:
            rollouts.revision(connection, number)
        return answer(history.of_rollout(connection, number, begin, end))


@router.get("/devices/{device}/history")
def device(
    ctx: Ctx, caller: Caller, device: str, since: Since = None, until: Until = None
) -> Answer[list[api.DevicePoint]]:
    """What a device did with each bundle that it ran."""
    begin, end = _times(since, until, ctx.clock())
    with ctx.database.read() as connection:
        caller.device(connection, device)
        return answer(history.of_device(connection, device, begin, end))


@router.get("/releases/{name}/{version}/history")
def release(
    ctx: Ctx, name: str, version: str, since: Since = None, until: Until = None
) -> Answer[list[api.ReleasePoint]]:
    """What all devices did with the bundles of a release together."""
    begin, end = _times(since, until, ctx.clock())
    with ctx.database.read() as connection:
        digests = [row.sha256 for row in releases.by_profile(connection, name, version).values()]
        bundles = history.deployments_of(connection, digests)
        return answer(history.of_bundles(connection, bundles, begin, end))


def _times(since: datetime | None, until: datetime | None, now: float) -> tuple[float, float]:
    end = _seconds(until) if until is not None else now
    return (_seconds(since) if since is not None else end - _USUAL.total_seconds()), end


def _seconds(moment: datetime) -> float:
    """Without a zone it is UTC."""
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
