"""Which devices of a rollout are to get an order now, and what it means that they got one.

Always true
 1. A device is told to move to the release only if it was selected and its key lies within the open stage's threshold.
 2. Orders are given out a bounded number at a time (`MOVES_AT_ONCE`): what is due follows from the state alone, so that
    it goes on wherever it was interrupted.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

import msgspec

from fleet.rules.members import SETTLED, Member
from fleet.rules.rollout import RETURNING, Move, Rollout, Status, Step

# Orders of one step, so of one transaction.
MOVES_AT_ONCE = 200


def is_allowed(rollout: Rollout, member: Member) -> bool:
    """Whether the open stage takes this device (rule 1)."""
    if rollout.stage < 0 or (member.is_held and not rollout.current.is_closing):
        return False
    return member.key <= rollout.thresholds.get(member.profile, "")


def is_due(rollout: Rollout) -> Iterator[Member]:
    """Who is to get an order: forward into the open stage while it runs, back while the rollout turns back."""
    if rollout.status is Status.RUNNING:
        return (m for m in rollout.members.values() if not m.order_counter and is_allowed(rollout, m))
    if rollout.status in RETURNING:
        return (m for m in rollout.members.values() if m.is_leaving)
    return iter(())


def with_due(step: Step) -> Step:
    """The step, and the next orders that are due after it, in the order in which devices move."""
    rollout, effects = step
    some = heapq.nsmallest(MOVES_AT_ONCE, is_due(rollout), key=lambda m: m.key)
    moves = [Move(m.device, m.previous if m.is_leaving else m.target) for m in some]
    return rollout, [*moves, *effects]


def with_stand_ins(rollout: Rollout) -> Rollout:
    """Where all that a stage has of a profile is away, the next device in order that is there stands in (rule 1)."""
    if rollout.current.is_closing:
        return rollout
    asked: set[str] = set()
    nobody: set[str] = set()
    for member in rollout.members.values():
        if member.order_counter:
            is_there = member.is_online or member.state in SETTLED
            (asked if is_there else nobody).add(member.profile)
    grown = {}
    for profile in nobody - asked:
        keys = [
            m.key
            for m in rollout.members.values()
            if m.profile == profile and m.is_online and not m.order_counter and not m.is_held
        ]
        if keys:
            grown[profile] = max(min(keys), rollout.thresholds.get(profile, ""))
    return msgspec.structs.replace(rollout, thresholds=rollout.thresholds | grown) if grown else rollout


def ordered(rollout: Rollout, counters: Mapping[str, int], now: datetime) -> Rollout:
    """The orders that `Move`s asked for are signed and stored, device → counter."""
    is_returning = rollout.status in RETURNING
    changed: list[Member | None] = []
    for device, counter in counters.items():
        member = rollout.members[device]
        changed.append(
            msgspec.structs.replace(
                member,
                order_counter=counter,
                ordered_at=now,
                notified_at=None if not is_returning else member.notified_at,
                stage=member.stage if is_returning else rollout.stage,
                is_leaving=False,
                is_returning=is_returning,
            )
        )
    return replace_members(rollout, changed)


def stays(rollout: Rollout, devices: Collection[str]) -> Rollout:
    """These could not be ordered back: there is nobody to tell."""
    return replace_members(
        rollout, [msgspec.structs.replace(rollout.members[device], is_leaving=False) for device in devices]
    )


def replace_members(rollout: Rollout, members: "list[Member | None] | list[Member]") -> Rollout:
    changed = {m.device: m for m in members if m is not None and rollout.members[m.device] is not m}
    return msgspec.structs.replace(rollout, members=rollout.members | changed) if changed else rollout
