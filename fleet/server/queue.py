"""Rollouts that wait for others, with which they share devices: each begins, planned afresh, once it can.

Always true
 1. Of two that share devices the one that came first begins first.
 2. One that cannot begin any more (nobody is left to move, its release was blocked) ends, and says why.
"""

import msgspec
from sqlalchemy import Connection

from edgekit.errors import EdgeKitError
from fleet.rules.rollout import Command, Status
from fleet.server import changes, planning
from fleet.server.clock import Now
from fleet.server.store import rollouts
from fleet.server.store.orders import Issuer


def leave(connection: Connection, issuer: Issuer, rollout_id: int, now: Now) -> bool:
    """Begin with a queued rollout if nothing is in its way; whether it did."""
    rollout = rollouts.load(connection, rollout_id)
    if rollout.status is not Status.QUEUED:
        return False
    try:
        planned, _ = planning.plan(connection, rollouts.wanted(connection, rollout_id), now, rollout_id)
    except EdgeKitError as error:
        changes.apply(
            connection, issuer, rollout, Command("abort", f"could not begin after its wait: {error}"), now=now
        )
        return False
    if planned.status is Status.QUEUED:
        if planned.reason != rollout.reason:
            waits = msgspec.structs.replace(rollout, reason=planned.reason)
            rollouts.save(connection, waits, rollout, now.wall)
        return False
    changes.leave_queue(connection, issuer, planned, now=now)
    return True
