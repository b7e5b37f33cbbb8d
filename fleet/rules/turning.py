"""What operators and violated gates do to a rollout.

Always true
 1. Going back needs nothing but the word: no pace, no window, no approval holds it up.
 2. A resumed rollout keeps what it has spent of its error budget, and is not stopped at once by a time that had run out
    already: it gets a new one, or stays paused.
 3. What has begun to turn back does not turn again.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import msgspec

from edgekit.wire.states import FleetState
from fleet.rules.gates import Outcome
from fleet.rules.members import BAD, Member
from fleet.rules.moving import replace_members
from fleet.rules.rollout import RETURNING, Command, Rollout, Status, Step, Unassign, Verb

_UNDER_WAY = (Status.RUNNING, Status.PAUSED)


def obey(rollout: Rollout, command: Command, now: datetime) -> Step:
    """What is asked for at a time when it makes no sense changes nothing."""
    return _COMMANDS[command.verb](rollout, command, now)


def pause(rollout: Rollout, reason: str, now: datetime) -> Step:
    """No new orders; devices that are moving finish, and are judged."""
    if rollout.status is not Status.RUNNING:
        return rollout, []
    return msgspec.structs.replace(rollout, status=Status.PAUSED, turned_at=now, reason=reason), []


def awaiting(rollout: Rollout, stage: int) -> Rollout:
    """The rollout as it waits for an operator's word on `stage`; the very same if it does already."""
    if rollout.awaits == stage:
        return rollout
    return msgspec.structs.replace(rollout, awaits=stage, reason=_asks(rollout, stage))


def _asks(rollout: Rollout, stage: int) -> str:
    return (
        f"stage {stage + 1} of {len(rollout.spec.stages)} ({rollout.spec.stages[stage].words}) waits for approval: "
        f"edgekit fleet rollout approve {rollout.label}"
    )


def _pause(rollout: Rollout, command: Command, now: datetime) -> Step:
    return pause(rollout, command.reason, now)


def _resume(rollout: Rollout, command: Command, now: datetime) -> Step:
    """Go on; failures so far are excused. What was seen stays in the budget, unless it is what the operator overrules:
    then counting begins anew, within half of what the stage may spend.
    """
    is_late = now >= rollout.finish_at
    if rollout.status is not Status.PAUSED or (is_late and command.finish_by_s is None):
        return rollout, []
    excused = [
        msgspec.structs.replace(m, is_excused=True) for m in rollout.members.values() if m.state in BAD
    ]
    violated = [v for v in rollout.verdicts if v.outcome is Outcome.VIOLATED]
    spent = rollout.spent
    if any(not v.is_weak for v in violated):
        spent = msgspec.structs.replace(spent, resumed=spent.resumed + 1)
    rollout = msgspec.structs.replace(
        replace_members(rollout, excused),
        status=Status.RUNNING,
        reason="" if rollout.awaits is None else _asks(rollout, rollout.awaits),
        judged_from=now if violated else rollout.judged_from,
        soak_from=None,
        turned_at=now,
        spent=spent,
        verdicts=(),
    )
    if command.finish_by_s is not None:
        rollout = msgspec.structs.replace(rollout, finish_from=now, finish_s=command.finish_by_s)
    return rollout, []


def _approve(rollout: Rollout, _command: Command, _now: datetime) -> Step:
    """The stage that waits may begin, once its gates are (still) satisfied."""
    if rollout.status not in _UNDER_WAY or rollout.awaits is None:
        return rollout, []
    reason = "" if rollout.status is Status.RUNNING else rollout.reason
    return msgspec.structs.replace(rollout, approved=rollout.awaits, awaits=None, reason=reason), []


def _hold(rollout: Rollout, command: Command, _now: datetime) -> Step:
    """No more orders for devices of a profile; the others go on, but the rollout does not complete without them."""
    if rollout.status not in _UNDER_WAY or command.profile in rollout.stopped:
        return rollout, []
    return msgspec.structs.replace(rollout, stopped=tuple(sorted((*rollout.stopped, command.profile)))), []


def _release(rollout: Rollout, command: Command, _now: datetime) -> Step:
    if command.profile not in rollout.stopped:
        return rollout, []
    stopped = tuple(profile for profile in rollout.stopped if profile != command.profile)
    is_why = rollout.status is Status.RUNNING and rollout.awaits is None
    return msgspec.structs.replace(rollout, stopped=stopped, reason="" if is_why else rollout.reason), []


def _abort(rollout: Rollout, command: Command, now: datetime) -> Step:
    """Devices not yet committed go back, committed ones stay; where all have committed, all stay."""
    if rollout.status is Status.QUEUED:
        return msgspec.structs.replace(
            rollout, status=Status.ABORTED, turned_at=now, reason=command.reason
        ), []
    if rollout.status not in _UNDER_WAY:
        return rollout, []
    back = [m for m in rollout.members.values() if m.order_counter and m.state is not FleetState.SUCCEEDED]
    return _turn_back(rollout, Status.ABORTING, back, command.reason, now)


def _rollback(rollout: Rollout, command: Command, now: datetime) -> Step:
    """All go back. A completed rollout may be rolled back too: what was assigned before holds again, also for devices
    that came since.
    """
    if rollout.status not in (*_UNDER_WAY, Status.COMPLETED):
        return rollout, []
    was_complete = rollout.status is Status.COMPLETED
    back = [m for m in rollout.members.values() if m.order_counter]
    rollout, effects = _turn_back(rollout, Status.ROLLING_BACK, back, command.reason, now)
    return rollout, [*effects, Unassign()] if was_complete else effects


def _turn_back(rollout: Rollout, status: Status, back: list[Member], reason: str, now: datetime) -> Step:
    leaving = [msgspec.structs.replace(m, is_leaving=True) for m in back]
    turned = replace_members(rollout, leaving)
    return msgspec.structs.replace(turned, status=status, turned_at=now, reason=reason, awaits=None), []


def converge(rollout: Rollout, now: datetime) -> Rollout:
    """Done when every reachable device is back; one that does not answer keeps its order and follows later."""
    assert rollout.turned_at is not None
    if rollout.roster.leaving:
        return rollout
    is_late = now >= rollout.turned_at + timedelta(seconds=rollout.spec.deadline_s)
    if is_late or not any(m.is_online for m in rollout.roster.returning.values()):
        return msgspec.structs.replace(rollout, status=RETURNING[rollout.status], turned_at=now)
    return rollout


_COMMANDS: Mapping[Verb, Callable[[Rollout, Command, datetime], Step]] = {
    "pause": _pause,
    "resume": _resume,
    "abort": _abort,
    "rollback": _rollback,
    "approve": _approve,
    "hold": _hold,
    "release": _release,
}
