"""The rollout machine: which device may move, and when the next stage opens.

Pure: state and event in, new state and effects out; the caller supplies the time, signs and sends.

Always true
 1. A device is told to move to the release only if it was selected and its key lies within the open stage's threshold.
    The threshold is the stage's share, and one device more for each that cannot be reached, or that failed and whose
    failure the operator has excused, where nothing else of its profile is there.
 2. A stage opens only after every gate of the stage before it is satisfied *and* its soak time is over, and where it asks
    for approval after an operator gave it.
 3. A device counts as succeeded only after it reported the release's digest as loaded and committed.
 4. Missing data never satisfies a gate: inconclusive waits for at most twice the soak, then the rollout pauses.
    A paused rollout is judged all the same, and still turns back.
 5. A device that is offline counts as neither success nor failure and holds nobody up.
 6. The same event twice, or an older report after a newer one, changes nothing.
 7. Orders are given out a bounded number at a time (`MOVES_AT_ONCE`), forward no faster than the pace allows: what is due
    follows from state and time alone, so that it goes on wherever it was interrupted.
 8. A device that is taken out of service leaves: it counts for nothing, and nothing waits for it.
"""

from datetime import datetime, timedelta

import msgspec

from edgekit.wire.states import FleetState
from fleet.rules import stages
from fleet.rules.budget import Spent
from fleet.rules.evidence import StageEvidence
from fleet.rules.gates import Outcome
from fleet.rules.judge import Judgement, judge
from fleet.rules.members import BAD, Member, Word, hear, time_out
from fleet.rules.moving import is_allowed, ordered, replace_members, waiting, with_due, with_stand_ins
from fleet.rules.rollout import (
    ACTIVE,
    RETURNING,
    Assign,
    Command,
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
from fleet.rules.turning import awaiting, converge, obey, pause


def start(rollout: Rollout, now: datetime, wall: datetime | None = None) -> Step:
    """Open the first stage, or wait for the word to open it. `wall` as for `advance`."""
    return with_due((_open_first(rollout, now), []), now, wall or now)


def advance(rollout: Rollout, event: Event, now: datetime, wall: datetime | None = None) -> Step:
    """One step. Effects are to be carried out in the transaction that stores the new state, and each `Move`
    answered with `Ordered`.

    `now` is what durations are measured by; `wall` what clocks on walls show, for maintenance windows.
    """
    match event:
        case Heard(words):
            return replace_members(rollout, [_heard(rollout, word, now) for word in words]), []
        case Ordered(device, counter):
            return ordered(rollout, {device: counter}, now), []
    return with_due(_stepped(rollout, event, now), now, wall or now)


def _stepped(rollout: Rollout, event: Event, now: datetime) -> Step:
    match event:
        case Joined(members):
            return _joined(rollout, members)
        case Left(devices):
            return _left(rollout, devices, now)
        case Command():
            return obey(rollout, event, now)
        case Tick(data):
            return _tick(rollout, data, now)
    return rollout, []


def _tick(rollout: Rollout, data: StageEvidence, now: datetime) -> Step:
    if rollout.status in RETURNING:
        return converge(rollout, now), []
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout, []
    if rollout.stage < 0:
        return _before_the_first(rollout, now)
    late = [time_out(m, now, rollout.spec.deadline_s) for m in rollout.roster.moving.values()]
    rollout = replace_members(rollout, late)
    judgement = _judgement(rollout, data)
    rollout = msgspec.structs.replace(rollout, verdicts=judgement.verdicts)
    violated = [v for v in judgement.verdicts if v.outcome is Outcome.VIOLATED]
    if turning := next((v for v in violated if not v.is_weak), None):
        why = f"{turning.gate}: {turning.words}"
        return obey(rollout, Command(rollout.spec.on_violation, why), now)
    if rollout.status is Status.PAUSED:
        return rollout, []
    if violated:
        return pause(rollout, f"{violated[0].gate}: {violated[0].words}", now)
    if now >= rollout.finish_at:
        return _out_of_time(rollout, now)
    stage = with_stand_ins(rollout)
    if stage is not rollout:
        return stage, []
    return _soak(rollout, judgement, now)


def _before_the_first(rollout: Rollout, now: datetime) -> Step:
    """It waits for approval, and has told nobody anything yet."""
    if rollout.status is not Status.RUNNING:
        return rollout, []
    if now >= rollout.finish_at:
        return _out_of_time(rollout, now)
    return _open_first(rollout, now), []


def _out_of_time(rollout: Rollout, now: datetime) -> Step:
    waits = sum(1 for _ in waiting(rollout))
    slow = f" ({waits} devices still wait for their turn: its rate, windows or limits)" if waits else ""
    if rollout.awaits is not None:
        slow = f" (stage {rollout.awaits + 1} still waits for approval)"
    what = f"not finished within its time{slow}; resume it with --finish-by and a new time, abort it or roll it back"
    return pause(rollout, what, now)


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
    has_settled = next(waiting(rollout), None) is None and not any(
        m.is_reachable for m in rollout.roster.moving.values()
    )
    if not has_settled:
        return rollout, []
    if rollout.soak_from is None:
        return _settled(rollout, now)
    if now < rollout.soak_from + soak:
        return rollout, []
    open_gate = next((v for v in judgement.verdicts if v.outcome is not Outcome.SATISFIED), None)
    if open_gate is None:
        return _next(rollout, judgement.spent, now)
    if now >= rollout.soak_from + 2 * soak and rollout.awaits is None:
        return pause(rollout, f"{open_gate.gate}: inconclusive after twice the soak: {open_gate.words}", now)
    return rollout, []


def _settled(rollout: Rollout, now: datetime) -> Step:
    """All reachable devices of the stage have arrived or failed: the soak begins, if there is anything to soak."""
    moved = [m for m in rollout.members.values() if m.order_counter]
    if any(m.state is FleetState.SUCCEEDED for m in moved):
        return msgspec.structs.replace(rollout, soak_from=now), []
    if any(m.state in BAD and not m.is_excused for m in moved):
        return pause(
            rollout,
            "no device of this stage runs the release; resume to try it on another one, abort or roll back",
            now,
        )
    opened = max(rollout.judged_from or now, rollout.turned_at or rollout.created_at)
    if now < opened + timedelta(seconds=rollout.spec.deadline_s):
        return rollout, []
    mine = [m for m in rollout.members.values() if is_allowed(rollout, m)]
    if mine and all(m.profile in rollout.stopped for m in mine):
        return rollout, []
    failed = sum(m.state in BAD for m in mine)
    told = f"{failed} failed and {len(mine) - failed} offline" if failed else "offline"
    return pause(
        rollout,
        f"all {len(mine)} devices of this stage are {told}, and no other one is online to stand in; bring one back and "
        "resume, take the dead ones out of service, or abort",
        now,
    )


def _next(rollout: Rollout, spent: Spent, now: datetime) -> Step:
    """The open stage has passed, and has spent so much with those before it."""
    following = rollout.stage + 1
    if following < len(rollout.spec.stages):
        if rollout.spec.stages[following].needs_approval and rollout.approved < following:
            return awaiting(rollout, following), []
        return _open(msgspec.structs.replace(rollout, spent=spent), following, now), []
    stopped = {
        m.profile for m in rollout.members.values() if not m.order_counter and m.profile in rollout.stopped
    }
    if stopped:
        names = ", ".join(sorted(stopped))
        reason = f"all but the profile {names}, which is held: release it, or abort and keep what is there"
        return (rollout if rollout.reason == reason else msgspec.structs.replace(rollout, reason=reason)), []
    done = msgspec.structs.replace(rollout, status=Status.COMPLETED, turned_at=now, reason="", spent=spent)
    return done, [Assign()]


def _open_first(rollout: Rollout, now: datetime) -> Rollout:
    if rollout.spec.stages[0].needs_approval and rollout.approved < 0:
        return awaiting(rollout, 0)
    return _open(rollout, 0, now)


def _open(rollout: Rollout, stage: int, now: datetime) -> Rollout:
    cut = rollout.spec.stages[stage]
    keys: dict[str, list[str]] = {}
    for member in rollout.members.values():
        if cut.is_closing or not member.is_held:
            keys.setdefault(member.profile, []).append(member.key)
    grown = {p: max(t, rollout.thresholds.get(p, "")) for p, t in stages.thresholds(cut, keys).items()}
    return msgspec.structs.replace(
        rollout,
        stage=stage,
        thresholds=rollout.thresholds | grown,
        stage_opened_at=now,
        judged_from=now,
        soak_from=None,
        verdicts=(),
        reason="",
    )


def _joined(rollout: Rollout, members: tuple[Member, ...]) -> Step:
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout, []
    new = {m.device: m for m in members if m.device not in rollout.members}
    return msgspec.structs.replace(rollout, members=rollout.members | new), []


def _left(rollout: Rollout, devices: tuple[str, ...], now: datetime) -> Step:
    """Who is left goes on without them; a running stage that lost everybody it had moved takes the next ones."""
    rest = rollout.roster.without(devices)
    if rollout.status not in ACTIVE or len(rest) == len(rollout.members):
        return rollout, []
    rollout = msgspec.structs.replace(rollout, members=rest)
    if not rest:
        reason = "every device of it was taken out of service"
        return msgspec.structs.replace(rollout, status=Status.ABORTED, turned_at=now, reason=reason), []
    has_moved = any(rest.asked.values())
    if rollout.status is not Status.RUNNING or rollout.stage < 0 or has_moved:
        return rollout, []
    return _open(rollout, rollout.stage, now), []


def _heard(rollout: Rollout, word: Word, now: datetime) -> Member | None:
    member = rollout.members.get(word.device)
    return None if member is None else hear(member, word, rollout.spec.deployments, now)
