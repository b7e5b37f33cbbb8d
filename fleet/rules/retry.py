"""Trying again what failed for a passing reason: a full disk, a broken link, a board without power.

Pure.

Always true
 1. Only a member that failed is tried again, and only in a rollout that still moves forward: running or paused.
 2. It stands as if it had just been told: its failure counts no more, and its new outcome does. Its stage soaks anew.
"""

from collections.abc import Collection

import msgspec

from edgekit.wire.states import FleetState
from fleet.rules.members import BAD, Member
from fleet.rules.moving import move_of
from fleet.rules.rollout import Move, Rollout, Status

RETRIES_IN = frozenset({Status.RUNNING, Status.PAUSED})


def failed(rollout: Rollout) -> list[str]:
    """Who may be tried again."""
    if rollout.status not in RETRIES_IN:
        return []
    return sorted(member.device for member in rollout.members.values() if member.state in BAD)


def again(rollout: Rollout, devices: Collection[str]) -> tuple[Rollout, list[Move]]:
    """The rollout with these of its failed members told anew; each `Move` is to be answered as in `machine.advance`,
    with an order that says `retry`.
    """
    chosen = [rollout.members[device] for device in failed(rollout) if device in devices]
    if not chosen:
        return rollout, []
    fresh = {member.device: _fresh(member) for member in chosen}
    after = msgspec.structs.replace(rollout, members=rollout.members | fresh, soak_from=None)
    return after, [move_of(member) for member in chosen]


def _fresh(member: Member) -> Member:
    # What it refused then is not its answer to the order that follows.
    refused = member.reason if member.state is FleetState.REJECTED else member.refused_before
    return msgspec.structs.replace(
        member,
        state=FleetState.PENDING,
        reason="",
        notified_at=None,
        refused_before=refused,
        is_excused=False,
        is_leaving=False,
        is_returning=False,
    )
