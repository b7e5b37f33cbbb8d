"""The rollout machine: which device may move, and when the next stage opens.

Pure: state and event in, new state and effects out; the caller supplies the time, signs and sends.

Always true
 1. A device is told to move to the release only if it was selected and its key lies within the open stage's threshold.
    The threshold is the stage's share, and one device more for each of a profile that cannot be reached.
 2. A stage opens only after every gate of the stage before it is satisfied *and* its soak time is over.
 3. A device counts as succeeded only after it reported the release's digest as loaded and committed.
 4. Missing data never satisfies a gate: inconclusive waits for at most twice the soak, then the rollout pauses.
    A paused rollout is judged all the same, and still turns back.
 5. A device that is offline counts as neither success nor failure and holds nobody up.
 6. The same event twice, or an older report after a newer one, changes nothing.
 7. Orders are given out a bounded number at a time (`MOVES_AT_ONCE`): what is due follows from the state alone, so that
    it goes on wherever it was interrupted.
 8. A device that is taken out of service leaves: it counts for nothing, and nothing waits for it.
"""

from datetime import datetime, timedelta

import msgspec

from edgekit.wire.states import FleetState
from fleet.rules import stages
from fleet.rules.evidence import StageEvidence
from fleet.rules.gates import Outcome
from fleet.rules.judge import Judgement, judge
from fleet.rules.members import BAD, Member, Word, hear, is_settled, time_out
from fleet.rules.moving import is_due, ordered, replace_members, with_due, with_stand_ins
from fleet.rules.rollout import (
    ACTIVE,
    RETURNING,
    Assign,
    Command,
    Due,
    Event,
    Heard,
    Joined,
    Left,
    Ordered,
    Rollout,
    Status,
    Step,
    Tick,
)
from fleet.rules.turning import COMMANDS, VIOLATION, converge, pause


def start(rollout: Rollout, now: datetime) -> Step:
    """Open the first stage."""
    return with_due(_open(rollout, 0, now))


def advance(rollout: Rollout, event: Event, now: datetime) -> Step:
    """One step. Effects are to be carried out in the transaction that stores the new state, and each `Move`
    answered with `Ordered`.
    """
    match event:
        case Heard(words):
            return replace_members(rollout, [_heard(rollout, word, now) for word in words]), []
        case Ordered(device, counter):
            return ordered(rollout, {device: counter}, now), []
        case Due():
            return with_due((rollout, []))
        case Joined(members):
            return with_due(_joined(rollout, members))
        case Left(devices):
            return with_due(_left(rollout, devices, now))
        case Command(verb, reason):
            return with_due(COMMANDS[verb](rollout, reason, now))
        case Tick(data):
            return with_due(_tick(rollout, data, now))


def _tick(rollout: Rollout, data: StageEvidence, now: datetime) -> Step:
    if rollout.status in RETURNING:
        return converge(rollout, now), []
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout, []
    late = [time_out(m, now, rollout.spec.deadline_s) for m in rollout.members.values() if not is_settled(m)]
    rollout = replace_members(rollout, late)
    judgement = _judgement(rollout, data)
    rollout = msgspec.structs.replace(rollout, verdicts=judgement.verdicts)
    violated = [v for v in judgement.verdicts if v.outcome is Outcome.VIOLATED]
    if turning := next((v for v in violated if not v.is_weak), None):
        return VIOLATION[rollout.spec.on_violation](rollout, f"{turning.gate}: {turning.words}", now)
    if rollout.status is Status.PAUSED:
        return rollout, []
    if violated:
        return pause(rollout, f"{violated[0].gate}: {violated[0].words}", now)
    if now >= (rollout.finish_from or rollout.created_at) + timedelta(seconds=rollout.spec.finish_by_s):
        return pause(
            rollout, "not finished within its time; resume to give it as long again, or roll back", now
        )
    stage = with_stand_ins(rollout)
    if stage is not rollout:
        return stage, []
    return _soak(rollout, judgement, now)


def _judgement(rollout: Rollout, data: StageEvidence) -> Judgement:
    return judge(
        rollout.spec.gates,
        data,
        rollout.spent,
        stage=rollout.stage,
        stages=len(rollout.spec.stages),
        is_closing=rollout.current.is_closing,
    )


def _soak(rollout: Rollout, judgement: Judgement, now: datetime) -> Step:
    """Nothing stops the stage: it settles, soaks, and passes once every gate is satisfied."""
    soak = timedelta(seconds=rollout.spec.soak_s)
    has_settled = next(is_due(rollout), None) is None and all(
        is_settled(m) or not m.is_reachable for m in rollout.members.values() if m.order_counter
    )
    if not has_settled:
        return rollout, []
    if rollout.soak_from is None:
        return _settled(rollout, now)
    if now < rollout.soak_from + soak:
        return rollout, []
    open_gate = next((v for v in judgement.verdicts if v.outcome is not Outcome.SATISFIED), None)
    if open_gate is None:
        return _next(msgspec.structs.replace(rollout, spent=judgement.spent), now)
    if now >= rollout.soak_from + 2 * soak:
        return pause(rollout, f"{open_gate.gate}: inconclusive after twice the soak: {open_gate.words}", now)
    return rollout, []


def _settled(rollout: Rollout, now: datetime) -> Step:
    """All reachable devices of the stage have arrived or failed: the soak begins, if there is anything to soak."""
    moved = [m for m in rollout.members.values() if m.order_counter]
    if any(m.state is FleetState.SUCCEEDED for m in moved):
        return msgspec.structs.replace(rollout, soak_from=now), []
    if any(m.state in BAD for m in moved):
        return pause(rollout, "no device of this stage runs the release; abort or roll back", now)
    opened = max(rollout.judged_from or now, rollout.turned_at or rollout.created_at)
    if now >= opened + timedelta(seconds=rollout.spec.deadline_s):
        return pause(rollout, f"all {len(moved)} devices of this stage are offline", now)
    return rollout, []


def _next(rollout: Rollout, now: datetime) -> Step:
    if rollout.stage + 1 < len(rollout.spec.stages):
        return _open(rollout, rollout.stage + 1, now)
    done = msgspec.structs.replace(rollout, status=Status.COMPLETED, turned_at=now, reason="")
    return done, [Assign()]


def _open(rollout: Rollout, stage: int, now: datetime) -> Step:
    cut = rollout.spec.stages[stage]
    keys: dict[str, list[str]] = {}
    for member in rollout.members.values():
        if cut.is_closing or not member.is_held:
            keys.setdefault(member.profile, []).append(member.key)
    grown = {p: max(t, rollout.thresholds.get(p, "")) for p, t in stages.thresholds(cut, keys).items()}
    opened = msgspec.structs.replace(
        rollout,
        stage=stage,
        thresholds=rollout.thresholds | grown,
        stage_opened_at=now,
        judged_from=now,
        soak_from=None,
        verdicts=(),
    )
    return opened, []


def _joined(rollout: Rollout, members: tuple[Member, ...]) -> Step:
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout, []
    new = {m.device: m for m in members if m.device not in rollout.members}
    return msgspec.structs.replace(rollout, members=rollout.members | new), []


def _left(rollout: Rollout, devices: tuple[str, ...], now: datetime) -> Step:
    """Who is left goes on without them; a running stage that lost everybody it had moved takes the next ones."""
    rest = {device: member for device, member in rollout.members.items() if device not in devices}
    if rollout.status not in ACTIVE or len(rest) == len(rollout.members):
        return rollout, []
    rollout = msgspec.structs.replace(rollout, members=rest)
    if not rest:
        reason = "every device of it was taken out of service"
        return msgspec.structs.replace(rollout, status=Status.ABORTED, turned_at=now, reason=reason), []
    if rollout.status is not Status.RUNNING or any(m.order_counter for m in rest.values()):
        return rollout, []
    return _open(rollout, rollout.stage, now)


def _heard(rollout: Rollout, word: Word, now: datetime) -> Member | None:
    member = rollout.members.get(word.device)
    return None if member is None else hear(member, word, rollout.spec.deployment, now)
