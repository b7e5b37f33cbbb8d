"""Which devices of a rollout are to get an order now, and what it means that they got one.

Always true
 1. A device is told to move to the release only if it was selected and its key lies within the open stage's threshold.
 2. Orders are given out a bounded number at a time (`MOVES_AT_ONCE`), and forward no faster than the rollout's pace
    allows: what is due follows from the state and the time alone, so that it goes on wherever it was interrupted.
 3. Nothing holds back an order to go back.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from itertools import islice

import msgspec

from fleet.rules import pace, windows
from fleet.rules.members import Member
from fleet.rules.pace import Pace
from fleet.rules.rollout import RETURNING, Move, Rollout, Status, Step

# Orders of one step, so of one transaction.
MOVES_AT_ONCE = 200
_ANY_PACE = Pace()


def is_allowed(rollout: Rollout, member: Member) -> bool:
    """Whether the open stage takes this device (rule 1)."""
    if rollout.stage < 0 or (member.is_held and not rollout.current.is_closing):
        return False
    return member.key <= rollout.thresholds.get(member.profile, "")


def waiting(rollout: Rollout) -> Iterator[Member]:
    """Who is to get an order, now or as soon as the pace allows, in the order in which devices move: forward into the open
    stage while the rollout runs, back while it turns back.

    Where only devices that are online are told, one that is away is not waited for; nor is one of a stopped profile.
    """
    if rollout.status is Status.RUNNING and rollout.stage >= 0:
        queues = [
            rollout.roster.waiting(profile, is_held=is_held, until=threshold)
            for profile, threshold in rollout.thresholds.items()
            if profile not in rollout.stopped
            for is_held in ((False, True) if rollout.current.is_closing else (False,))
        ]
        found = heapq.merge(*queues, key=lambda m: m.key)
        return (m for m in found if m.is_online) if rollout.spec.pace.needs_presence else found
    if rollout.status in RETURNING:
        return _leaving(rollout)
    return iter(())


def waits_for(rollout: Rollout, member: Member, wall: datetime) -> str:
    """Why a device was not told to move yet, in words."""
    limits = rollout.spec.pace
    if not is_allowed(rollout, member):
        return "its stage has not come yet"
    if rollout.status is not Status.RUNNING:
        return f"the rollout is {rollout.status}"
    if member.profile in rollout.stopped:
        return f"the profile {member.profile} is held"
    if limits.needs_presence and not member.is_online:
        return "it is offline, and only devices that are online are told"
    zone = member.zone or limits.zone
    if windows.left_s(limits.windows, zone, wall) < rollout.spec.deadline_s:
        return f"its maintenance window is closed, or nearly over ({zone})"
    return "others are before it: the rate, or as many devices as may move at once"


def with_due(step: Step, now: datetime, wall: datetime) -> Step:
    """The step, and the next orders that are due after it, in the order in which devices move."""
    rollout, effects = step
    moves = [move_of(m, is_back=m.is_leaving) for m in _due(rollout, now, wall)]
    return rollout, [*moves, *effects]


def move_of(member: Member, *, is_back: bool = False) -> Move:
    """The one order that moves all of its deployments, to the releases or back."""
    digests = [part.previous if is_back else part.target for part in member.parts]
    return Move(member.device, digests[0], tuple(digests[1:]))


def _due(rollout: Rollout, now: datetime, wall: datetime) -> list[Member]:
    if rollout.status in RETURNING or not rollout.roster.leaving:
        return _forward(rollout, now, wall)
    # Who failed in one of several deployments goes back by itself; forward it goes on with the next step.
    return list(islice(_leaving(rollout), MOVES_AT_ONCE))


def _leaving(rollout: Rollout) -> Iterator[Member]:
    return iter(sorted(rollout.roster.leaving.values(), key=lambda m: m.key))


def _forward(rollout: Rollout, now: datetime, wall: datetime) -> list[Member]:
    spec = rollout.spec
    if rollout.status is not Status.RUNNING or spec.pace == _ANY_PACE:
        return list(islice(waiting(rollout), MOVES_AT_ONCE))
    return pace.admit(
        spec.pace,
        waiting(rollout),
        rollout.roster.moving.values(),
        rollout.given,
        MOVES_AT_ONCE,
        deadline_s=spec.deadline_s,
        now=now,
        wall=wall,
    )


def with_stand_ins(rollout: Rollout) -> Rollout:
    """Where nothing that a stage has of a profile can show the release, the next device in order that is there stands in:
    all are away, or failed and the operator went on all the same.
    """
    if rollout.current.is_closing:
        return rollout
    roster, grown = rollout.roster, {}
    for profile in {profile for profile, _ in roster.queues} - set(rollout.stopped):
        threshold = rollout.thresholds.get(profile, "")
        if roster.there.get(profile) or not _has_only_absent(rollout, profile, threshold):
            continue
        found = next((m.key for m in roster.waiting(profile, is_held=False) if m.is_online), None)
        if found is not None:
            grown[profile] = max(found, threshold)
    return msgspec.structs.replace(rollout, thresholds=rollout.thresholds | grown) if grown else rollout


def _has_only_absent(rollout: Rollout, profile: str, threshold: str) -> bool:
    """Whether the stage has devices of a profile, and those that were not told yet are all away."""
    untold = [m.is_online for m in rollout.roster.waiting(profile, is_held=False, until=threshold)]
    return bool(untold or rollout.roster.asked.get(profile)) and not any(untold)


def ordered(rollout: Rollout, counters: Mapping[str, int], now: datetime) -> Rollout:
    """The orders that `Move`s asked for are signed and stored, device → counter."""
    changed: list[Member | None] = []
    forward = 0
    for device, counter in counters.items():
        member = rollout.members[device]
        is_returning = member.is_leaving or member.is_returning
        forward += not is_returning
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
    given = pace.note(rollout.given, rollout.spec.pace.rate, forward, now) if forward else rollout.given
    if given is not rollout.given:
        rollout = msgspec.structs.replace(rollout, given=given)
    return replace_members(rollout, changed)


def stays(rollout: Rollout, devices: Collection[str]) -> Rollout:
    """These could not be ordered back: there is nobody to tell."""
    return replace_members(
        rollout, [msgspec.structs.replace(rollout.members[device], is_leaving=False) for device in devices]
    )


def replace_members(rollout: Rollout, members: "list[Member | None] | list[Member]") -> Rollout:
    changed = {m.device: m for m in members if m is not None and rollout.members[m.device] is not m}
    return msgspec.structs.replace(rollout, members=rollout.members | changed) if changed else rollout
