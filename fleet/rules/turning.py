"""What operators and violated gates do to a rollout: pause, resume, abort, rollback."""

from datetime import datetime, timedelta

import msgspec

from edgekit.wire.states import FleetState
from fleet.rules.gates import Outcome
from fleet.rules.members import BAD, Member
from fleet.rules.moving import is_due, replace_members
from fleet.rules.rollout import RETURNING, Rollout, Status, Step, Unassign


def pause(rollout: Rollout, reason: str, now: datetime) -> Step:
    if rollout.status is not Status.RUNNING:
        return rollout, []
    return msgspec.structs.replace(rollout, status=Status.PAUSED, turned_at=now, reason=reason), []


def _resume(rollout: Rollout, _reason: str, now: datetime) -> Step:
    """Go on; failures so far are excused. What was seen stays in the budget, unless it is what the operator overrules:
    then counting begins anew, within half of what the stage may spend.
    """
    if rollout.status is not Status.PAUSED:
        return rollout, []
    excused = [
        msgspec.structs.replace(m, is_excused=True) for m in rollout.members.values() if m.state in BAD
    ]
    violated = [v for v in rollout.verdicts if v.outcome is Outcome.VIOLATED]
    spent = rollout.spent
    if any(not v.is_weak for v in violated):
        spent = msgspec.structs.replace(spent, resumed=spent.resumed + 1)
    is_late = now >= (rollout.finish_from or rollout.created_at) + timedelta(seconds=rollout.spec.finish_by_s)
    rollout = msgspec.structs.replace(
        replace_members(rollout, excused),
        status=Status.RUNNING,
        reason="",
        judged_from=now if violated else rollout.judged_from,
        soak_from=None,
        turned_at=now,
        finish_from=now if is_late else rollout.finish_from,
        spent=spent,
        verdicts=(),
    )
    return rollout, []


def _abort(rollout: Rollout, reason: str, now: datetime) -> Step:
    """Devices not yet committed go back, committed ones stay."""
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout, []
    back = [m for m in rollout.members.values() if m.order_counter and m.state is not FleetState.SUCCEEDED]
    return _turn_back(rollout, Status.ABORTING, back, reason, now)


def _rollback(rollout: Rollout, reason: str, now: datetime) -> Step:
    """All go back. A completed rollout may be rolled back too."""
    if rollout.status not in (Status.RUNNING, Status.PAUSED, Status.COMPLETED):
        return rollout, []
    was_complete = rollout.status is Status.COMPLETED
    back = [m for m in rollout.members.values() if m.order_counter]
    rollout, effects = _turn_back(rollout, Status.ROLLING_BACK, back, reason, now)
    return rollout, [*effects, Unassign()] if was_complete else effects


def _turn_back(rollout: Rollout, status: Status, back: list[Member], reason: str, now: datetime) -> Step:
    leaving = [msgspec.structs.replace(m, is_leaving=True) for m in back]
    turned = replace_members(rollout, leaving)
    return msgspec.structs.replace(turned, status=status, turned_at=now, reason=reason), []


def converge(rollout: Rollout, now: datetime) -> Rollout:
    """Done when every reachable device is back; one that does not answer keeps its order and follows later."""
    assert rollout.turned_at is not None
    if next(is_due(rollout), None) is not None:
        return rollout
    is_late = now >= rollout.turned_at + timedelta(seconds=rollout.spec.deadline_s)
    if is_late or not any(m.is_returning and m.is_online for m in rollout.members.values()):
        return msgspec.structs.replace(rollout, status=RETURNING[rollout.status], turned_at=now)
    return rollout


COMMANDS = {"pause": pause, "resume": _resume, "abort": _abort, "rollback": _rollback}
VIOLATION = {"pause": pause, "abort": _abort, "rollback": _rollback}
