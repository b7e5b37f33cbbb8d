"""Carrying out what the rollout machine decided, in the caller's transaction.

Always true
 1. Every way a rollout changes (a tick, a report, an operator) goes through `apply`: new state, desired rows, signed
    orders and outbox rows commit together or not at all.
 2. Locks are taken in one order by everyone: the rollout's row, then devices in the order of their names, the audit log
    last.
"""

from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection

from edgekit.wire.messages import OrderOptions
from fleet.api import NewRollout
from fleet.rules import pace
from fleet.rules import retry as rules
from fleet.rules.machine import advance, start
from fleet.rules.moving import ordered, stays
from fleet.rules.rollout import RETURNING, Assign, Command, Effect, Event, Move, Rollout, Status, Unassign
from fleet.server.clock import Now
from fleet.server.store import audit, orders, rollouts
from fleet.server.store.audit import Who
from fleet.server.store.orders import Issuer


def begin(
    connection: Connection,
    issuer: Issuer,
    rollout: Rollout,
    *,
    now: Now,
    who: Who,
    wanted: NewRollout | None = None,
) -> Rollout:
    """Store a planned rollout and open its first stage; one that is to wait for others is only stored."""
    rollouts.add(connection, rollout, now.wall, wanted)
    if rollout.status is Status.QUEUED:
        audit.append(
            connection, now.wall, who, "rollout.queue", rollout.label, _about(rollout), after=rollout.spec
        )
        return rollout
    return _open(connection, issuer, rollout, now=now, who=who)


def leave_queue(connection: Connection, issuer: Issuer, rollout: Rollout, *, now: Now) -> Rollout:
    """Begin with a rollout that waited, as it was planned just now."""
    rollouts.replan(connection, rollout, now.wall)
    return _open(connection, issuer, rollout, now=now, who=audit.FLEET)


def _open(connection: Connection, issuer: Issuer, rollout: Rollout, *, now: Now, who: Who) -> Rollout:
    opened, effects = start(rollout, rollouts.moment(now.steady), rollouts.moment(now.wall))
    opened = _carry_out(connection, issuer, rollout, opened, effects, now=now)
    audit.append(
        connection, now.wall, who, "rollout.start", rollout.label, _about(rollout), after=rollout.spec
    )
    return opened


def _about(rollout: Rollout) -> str:
    return f"{rollout.spec.title} to {rollout.spec.selector}, {len(rollout.members)} devices"


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
    changed, effects = advance(rollout, event, rollouts.moment(now.steady), rollouts.moment(now.wall))
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


def retry(
    connection: Connection,
    issuer: Issuer,
    rollout: Rollout,
    devices: Collection[str],
    *,
    now: Now,
    who: Who,
) -> tuple[str, ...]:
    """Order those of `devices` that failed in a loaded rollout to try again; who was told."""
    tried = {name: rollout.members[name] for name in rules.failed(rollout) if name in devices}
    after, moves = rules.again(rollout, tried)
    if not moves:
        return ()
    options = OrderOptions(probation_s=rollout.spec.probation_s, retry=True)
    counters = orders.move(
        connection,
        issuer,
        rollout.spec.deployments,
        {move.device: move.wanted for move in moves},
        because=f"rollout {rollout.label}",
        now=now.wall,
        options=dict.fromkeys((move.device for move in moves), options),
    )
    after = ordered(after, counters, rollouts.moment(now.steady))
    rollouts.save(connection, after, rollout, now.wall)
    before = {name: {"state": member.state, "reason": member.reason} for name, member in tried.items()}
    shown = {name: {"state": after.members[name].state, "order": counters[name]} for name in counters}
    audit.append(connection, now.wall, who, "rollout.retry", rollout.label, before=before, after=shown)
    return tuple(sorted(counters))


def _shown(rollout: Rollout) -> dict[str, object]:
    shown: dict[str, object] = {"status": rollout.status.value, "stage": rollout.stage + 1}
    if rollout.stopped:
        shown["held profiles"] = rollout.stopped
    if rollout.approved >= 0:
        shown["approved"] = rollout.approved + 1
    return shown


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
    moves = {effect.device: effect.wanted for effect in effects if isinstance(effect, Move)}
    if moves:
        options = _options(rollout, moves)
        because = f"rollout {rollout.label}"
        counters = orders.move(
            connection, issuer, spec.deployments, moves, because=because, now=now.wall, options=options
        )
        rollout = ordered(rollout, counters, rollouts.moment(now.steady))
        # Out of service: a completed rollout goes back, and keeps who it was about.
        rollout = stays(rollout, moves.keys() - counters.keys())
    for effect in effects:
        match effect:
            case Assign():
                rollouts.assign(connection, rollout, now.wall)
                back = [member.device for member in rollout.members.values() if member.was_sent_back]
                orders.keep(connection, spec.deployments, back, now.wall)
            case Unassign():
                rollouts.unassign(connection, rollout)
    rollouts.save(connection, rollout, before, now.wall)
    return rollout


def _options(rollout: Rollout, moves: Collection[str]) -> dict[str, OrderOptions]:
    """How each device goes about its order; on the way back nothing waits."""
    spec = rollout.spec
    if rollout.status in RETURNING or not (spec.pace.site_bytes_s or spec.pace.jitter_s):
        return dict.fromkeys(moves, OrderOptions(probation_s=spec.probation_s))
    sites = Counter(member.site for member in rollout.members.values())
    # Each is fetched by itself, at the same time as the others.
    downloads = len(spec.parts)
    found: dict[str, OrderOptions] = {}
    for device in moves:
        member = rollout.members[device]
        if member.is_leaving:
            found[device] = OrderOptions(probation_s=spec.probation_s)
            continue
        bytes_s = pace.fetch_bytes_s(spec.pace, sites[member.site])
        found[device] = OrderOptions(
            probation_s=spec.probation_s,
            fetch_after_s=pace.fetch_after_s(spec.pace, member.key),
            fetch_bytes_s=bytes_s / downloads if bytes_s is not None else None,
        )
    return found
