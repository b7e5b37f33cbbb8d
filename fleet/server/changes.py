"""Carrying out what the rollout machine decided, in the caller's transaction.

Every way a rollout changes (a tick, a report, an operator) goes through `apply`: new state, desired rows, signed
orders and outbox rows commit together or not at all.
"""

from sqlalchemy import Connection

from edgekit.wire.messages import OrderOptions
from fleet.rules.rollout import (
    Assign,
    Command,
    Effect,
    Event,
    Move,
    Ordered,
    Rollout,
    Unassign,
    advance,
    start,
)
from fleet.server.store import audit, devices, orders, rollouts
from fleet.server.store.audit import Who
from fleet.server.store.orders import Issuer


def begin(connection: Connection, issuer: Issuer, rollout: Rollout, *, now: float, who: Who) -> Rollout:
    """Store a planned rollout and open its first stage."""
    rollouts.add(connection, rollout, now)
    detail = f"{rollout.spec.name}@{rollout.spec.version} to {rollout.spec.selector}, {len(rollout.members)} devices"
    audit.append(connection, now, who, "rollout.start", rollout.label, detail, after=rollout.spec)
    opened, effects = start(rollout, rollouts.moment(now))
    return _carry_out(connection, issuer, opened, effects, now=now)


def apply(
    connection: Connection,
    issuer: Issuer,
    rollout: Rollout,
    event: Event,
    *,
    now: float,
    who: Who = audit.FLEET,
) -> Rollout:
    """One step of a loaded rollout; stored only if it changed anything."""
    changed, effects = advance(rollout, event, rollouts.moment(now))
    if changed is rollout and not effects:
        return rollout
    if isinstance(event, Command) or changed.status is not rollout.status or changed.stage != rollout.stage:
        action = f"rollout.{event.verb}" if isinstance(event, Command) else "rollout.turn"
        audit.append(
            connection,
            now,
            who,
            action,
            rollout.label,
            changed.reason,
            before=_shown(rollout),
            after=_shown(changed),
        )
    return _carry_out(connection, issuer, changed, effects, now=now)


def _shown(rollout: Rollout) -> dict[str, object]:
    return {"status": rollout.status.value, "stage": rollout.stage + 1}


def _carry_out(
    connection: Connection, issuer: Issuer, rollout: Rollout, effects: list[Effect], *, now: float
) -> Rollout:
    options = OrderOptions(probation_s=rollout.spec.probation_s)
    because = f"rollout {rollout.label}"
    for effect in effects:
        match effect:
            case Move(device, sha256):
                if devices.get(connection, device).decommissioned_at is not None:
                    continue  # a completed rollout goes back, and keeps who it was about
                orders.set_desired(
                    connection, device, rollout.spec.deployment, sha256, because=because, now=now
                )
                counter = orders.issue(connection, issuer, device, now, options)
                rollout, _ = advance(rollout, Ordered(device, counter), rollouts.moment(now))
            case Assign():
                rollouts.assign(connection, rollout, now)
            case Unassign():
                rollouts.unassign(connection, rollout)
    rollouts.save(connection, rollout, now)
    return rollout
