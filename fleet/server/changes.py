"""Carrying out what the rollout machine decided, in the caller's transaction.

Always true
 1. Every way a rollout changes (a tick, a report, an operator) goes through `apply`: new state, desired rows, signed
    orders and outbox rows commit together or not at all.
 2. Locks are taken in one order by everyone: the rollout's row, then devices in the order of their names, the audit log
    last.
"""

from sqlalchemy import Connection

from edgekit.wire.messages import OrderOptions
from fleet.rules.machine import advance, start
from fleet.rules.moving import ordered, stays
from fleet.rules.rollout import Assign, Command, Effect, Event, Move, Rollout, Unassign
from fleet.server.clock import Now
from fleet.server.store import audit, orders, rollouts
from fleet.server.store.audit import Who
from fleet.server.store.orders import Issuer


def begin(connection: Connection, issuer: Issuer, rollout: Rollout, *, now: Now, who: Who) -> Rollout:
    """Store a planned rollout and open its first stage."""
    rollouts.add(connection, rollout, now.wall)
    opened, effects = start(rollout, rollouts.moment(now.steady))
    opened = _carry_out(connection, issuer, rollout, opened, effects, now=now)
    detail = f"{rollout.spec.name}@{rollout.spec.version} to {rollout.spec.selector}, {len(rollout.members)} devices"
    audit.append(connection, now.wall, who, "rollout.start", rollout.label, detail, after=rollout.spec)
    return opened


def apply(
    connection: Connection,
    issuer: Issuer,
    rollout: Rollout,
    event: Event,
    *,
    now: Now,
    who: Who = audit.FLEET,
) -> Rollout:
    """One step of a loaded rollout; stored only if it changed anything."""
    changed, effects = advance(rollout, event, rollouts.moment(now.steady))
    if changed is rollout and not effects:
        return rollout
    stored = _carry_out(connection, issuer, rollout, changed, effects, now=now)
    if isinstance(event, Command) or changed.status is not rollout.status or changed.stage != rollout.stage:
        action = f"rollout.{event.verb}" if isinstance(event, Command) else "rollout.turn"
        audit.append(
            connection,
            now.wall,
            who,
            action,
            rollout.label,
            changed.reason,
            before=_shown(rollout),
            after=_shown(changed),
        )
    return stored


def _shown(rollout: Rollout) -> dict[str, object]:
    return {"status": rollout.status.value, "stage": rollout.stage + 1}


def _carry_out(
    connection: Connection,
    issuer: Issuer,
    before: Rollout,
    rollout: Rollout,
    effects: list[Effect],
    *,
    now: Now,
) -> Rollout:
    spec = rollout.spec
    moves = {effect.device: effect.sha256 for effect in effects if isinstance(effect, Move)}
    if moves:
        options = OrderOptions(probation_s=spec.probation_s)
        because = f"rollout {rollout.label}"
        counters = orders.move(
            connection, issuer, spec.deployment, moves, because=because, now=now.wall, options=options
        )
        rollout = ordered(rollout, counters, rollouts.moment(now.steady))
        # Out of service: a completed rollout goes back, and keeps who it was about.
        rollout = stays(rollout, moves.keys() - counters.keys())
    for effect in effects:
        match effect:
            case Assign():
                rollouts.assign(connection, rollout, now.wall)
            case Unassign():
                rollouts.unassign(connection, rollout)
    rollouts.save(connection, rollout, before, now.wall)
    return rollout
