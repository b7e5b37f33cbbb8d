"""Trying again what failed for a passing reason: a device's newest order, or the failed devices of a rollout."""

from typing import Annotated

import msgspec
from fastapi import Depends
from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotPossibleError
from fleet import api
from fleet.rules import retry as rules
from fleet.rules.rollout import Rollout
from fleet.server import changes
from fleet.server.api.admission import Caller, Principal
from fleet.server.api.context import Answer, Context, Ctx, answer, body, body_or
from fleet.server.api.rollouts import within
from fleet.server.api.routing import Router
from fleet.server.store import audit, devices, orders, rollouts, settings
from fleet.server.store.audit import Who

router = Router(prefix="/api/v1", tags=["rollouts"])


@router.post("/rollouts/{rollout_id}/retry")
def retry_rollout(
    ctx: Ctx, caller: Caller, rollout_id: str, wanted: Annotated[api.Retry, Depends(body(api.Retry))]
) -> Answer[api.Retried]:
    """Its failures count no more, and its devices' new outcomes do; a paused rollout stays paused."""
    with ctx.database.begin() as connection:
        rollout = _loaded(connection, caller, rollout_id)
        _check(connection, rollout)
        chosen = _chosen(rollout, wanted.devices)
        done = changes.retry(connection, ctx.issuer, rollout, chosen, now=ctx.time.now(), who=caller.who)
    ctx.wake()
    return answer(api.Retried(done))


@router.post("/devices/{device}/retry")
def retry_device(
    ctx: Ctx,
    caller: Caller,
    device: str,
    how: Annotated[api.RetryDevice, Depends(body_or(api.RetryDevice()))],
) -> Answer[api.Retried]:
    """What it holds against what it is ordered to run is forgotten, and the same order goes out once more."""
    now = ctx.time.now()
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        _check_frozen(connection)
        # Locks in everyone's order: rollouts before devices.
        mine = [found.id for found in rollouts.of_device(connection, device)]
        told: tuple[str, ...] = ()
        for number in mine:
            rollout = rollouts.load(connection, number)
            told += changes.retry(connection, ctx.issuer, rollout, [device], now=now, who=caller.who)
        if not told or how.despite_budget:
            _repeat(connection, ctx, device, caller.who, despite_budget=how.despite_budget)
    ctx.wake()
    return answer(api.Retried((device,)))


def _repeat(connection: Connection, ctx: Context, device: str, who: Who, *, despite_budget: bool) -> None:
    """It is in no rollout that counts it as failed. Raises: ConflictError if it is ordered nothing."""
    row = devices.get(connection, device, lock=True)
    wanted = orders.desired_of(connection, device)
    if not wanted or row.decommissioned_at is not None:
        raise ConflictError(
            f"nothing is ordered of {device}; 'edgekit fleet device explain {device}' says why"
        )
    before = orders.options_of(connection, device)
    is_forced = before.despite_budget or despite_budget
    options = msgspec.structs.replace(before, retry=True, despite_budget=is_forced)
    counter = orders.issue(connection, ctx.issuer, device, ctx.clock(), options)
    reported = devices.reported_of(row)
    said = {name: found.reason for name, found in (reported.deployments if reported else {}).items()}
    audit.append(
        connection,
        ctx.clock(),
        who,
        "device.retry",
        device,
        before={"order": row.order_counter, "reasons": said},
        after={"order": counter, **({"despite_budget": True} if despite_budget else {})},
    )


def _loaded(connection: Connection, caller: Principal, rollout_id: str) -> Rollout:
    return within(connection, caller, rollouts.load(connection, rollouts.parse_id(rollout_id)))


def _check_frozen(connection: Connection) -> None:
    if settings.is_frozen(connection):
        raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")


def _check(connection: Connection, rollout: Rollout) -> None:
    _check_frozen(connection)
    if rollout.status not in rules.RETRIES_IN:
        raise ConflictError(
            f"rollout {rollout.label} is {rollout.status}; only in one that runs or is paused devices are tried "
            "again; for a device by itself: edgekit fleet device retry DEVICE"
        )
    if not rules.failed(rollout):
        raise ConflictError(f"no device of rollout {rollout.label} has failed")


def _chosen(rollout: Rollout, named: tuple[str, ...]) -> list[str]:
    """Raises: UsageError for one that has not failed there."""
    failed = rules.failed(rollout)
    if others := sorted(set(named) - set(failed)):
        raise NotPossibleError(
            f"{others[0]} has not failed in rollout {rollout.label}; these have: {', '.join(failed[:10])}"
        )
    return list(named) or failed
