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

import heapq
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from edgekit.wire.states import FleetState
from fleet.rules import stages
from fleet.rules.budget import Spent
from fleet.rules.evidence import StageEvidence
from fleet.rules.gates import Gate, Outcome, Verdict
from fleet.rules.judge import Judgement, judge
from fleet.rules.members import BAD, SETTLED, Member, Word, hear, is_settled, time_out
from fleet.rules.stages import Stage


class Status(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ABORTING = "aborting"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


ACTIVE = frozenset({Status.RUNNING, Status.PAUSED, Status.ROLLING_BACK, Status.ABORTING})
# Orders of one step, so of one transaction.
MOVES_AT_ONCE = 200
RETURNING = {Status.ROLLING_BACK: Status.ROLLED_BACK, Status.ABORTING: Status.ABORTED}


class Spec(msgspec.Struct, frozen=True):
    """What the operator asked for, parsed."""

    name: str
    version: str
    deployment: str
    selector: str
    stages: tuple[Stage, ...]
    gates: tuple[Gate, ...]
    soak_s: float
    on_violation: Literal["rollback", "pause", "abort"]
    deadline_s: float
    finish_by_s: float
    probation_s: float | None = None


class Rollout(msgspec.Struct, frozen=True):
    """`thresholds` are the open stage's, per profile; data counts from `judged_from`; `soak_from` is None until
    the stage's reachable devices have settled. `finish_from`: the operator gave it that much longer. `spent` is what
    closed stages have used of the rollout's error budget.
    """

    id: int
    spec: Spec
    members: dict[str, Member]
    created_at: datetime
    status: Status = Status.RUNNING
    stage: int = -1
    thresholds: dict[str, str] = {}
    stage_opened_at: datetime | None = None
    judged_from: datetime | None = None
    soak_from: datetime | None = None
    turned_at: datetime | None = None
    finish_from: datetime | None = None
    spent: Spent = Spent()
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""

    @property
    def label(self) -> str:
        return f"r{self.id}"

    @property
    def current(self) -> Stage:
        return self.spec.stages[max(0, self.stage)]


class Tick(msgspec.Struct, frozen=True):
    """Time passed; what the fleet knows of both arms. Not sent while the fleet is frozen or cannot hear."""

    data: StageEvidence


class Heard(msgspec.Struct, frozen=True):
    """What devices last said, and whether they are connected."""

    words: tuple[Word, ...]


class Due(msgspec.Struct, frozen=True):
    """Nothing happened, but more of the orders that are due may be given out."""


class Joined(msgspec.Struct, frozen=True):
    """Devices that became eligible after the start."""

    members: tuple[Member, ...]


class Left(msgspec.Struct, frozen=True):
    """Devices that were taken out of service."""

    devices: tuple[str, ...]


class Ordered(msgspec.Struct, frozen=True):
    """The order that an effect asked for is signed and stored, under this counter."""

    device: str
    counter: int


class Command(msgspec.Struct, frozen=True):
    """What an operator asks for."""

    verb: Literal["pause", "resume", "abort", "rollback"]
    reason: str = ""


class Move(msgspec.Struct, frozen=True):
    """Order this device to run `sha256` (None: no model)."""

    device: str
    sha256: str | None


class Assign(msgspec.Struct, frozen=True):
    """The rollout is complete: its release is what the selector's devices run from now on."""


class Unassign(msgspec.Struct, frozen=True):
    """A completed rollout goes back: what was assigned before it holds again."""


Event = Tick | Heard | Due | Joined | Left | Ordered | Command
Effect = Move | Assign | Unassign
Step = tuple[Rollout, list[Effect]]


def start(rollout: Rollout, now: datetime) -> Step:
    """Open the first stage."""
    return _with_due(_open(rollout, 0, now))


def advance(rollout: Rollout, event: Event, now: datetime) -> Step:
    """One step. Effects are to be carried out in the transaction that stores the new state, and each `Move`
    answered with `Ordered`.
    """
    match event:
        case Heard(words):
            return _replace_members(rollout, [_heard(rollout, word, now) for word in words]), []
        case Ordered(device, counter):
            return ordered(rollout, {device: counter}, now), []
        case Due():
            return _with_due((rollout, []))
        case Joined(members):
            return _with_due(_joined(rollout, members))
        case Left(devices):
            return _with_due(_left(rollout, devices, now))
        case Command(verb, reason):
            return _with_due(_COMMANDS[verb](rollout, reason, now))
        case Tick(data):
            return _with_due(_tick(rollout, data, now))


def is_allowed(rollout: Rollout, member: Member) -> bool:
    """Whether the open stage takes this device (rule 1)."""
    if rollout.stage < 0 or (member.is_held and not rollout.current.is_closing):
        return False
    return member.key <= rollout.thresholds.get(member.profile, "")


def _is_due(rollout: Rollout) -> Iterator[Member]:
    """Who is to get an order: forward into the open stage while it runs, back while the rollout turns back."""
    if rollout.status is Status.RUNNING:
        return (m for m in rollout.members.values() if not m.order_counter and is_allowed(rollout, m))
    if rollout.status in RETURNING:
        return (m for m in rollout.members.values() if m.is_leaving)
    return iter(())


def _with_due(step: Step) -> Step:
    """The step, and the next orders that are due after it, in the order in which devices move."""
    rollout, effects = step
    some = heapq.nsmallest(MOVES_AT_ONCE, _is_due(rollout), key=lambda m: m.key)
    moves = [Move(m.device, m.previous if m.is_leaving else m.target) for m in some]
    return rollout, [*moves, *effects]


def _tick(rollout: Rollout, data: StageEvidence, now: datetime) -> Step:
    if rollout.status in RETURNING:
        return _converge(rollout, now), []
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout, []
    late = [time_out(m, now, rollout.spec.deadline_s) for m in rollout.members.values() if not is_settled(m)]
    rollout = _replace_members(rollout, late)
    judgement = _judgement(rollout, data)
    rollout = msgspec.structs.replace(rollout, verdicts=judgement.verdicts)
    violated = [v for v in judgement.verdicts if v.outcome is Outcome.VIOLATED]
    if turning := next((v for v in violated if not v.is_weak), None):
        return _VIOLATION[rollout.spec.on_violation](rollout, f"{turning.gate}: {turning.words}", now)
    if rollout.status is Status.PAUSED:
        return rollout, []
    if violated:
        return _pause(rollout, f"{violated[0].gate}: {violated[0].words}", now)
    if now >= (rollout.finish_from or rollout.created_at) + timedelta(seconds=rollout.spec.finish_by_s):
        return _pause(
            rollout, "not finished within its time; resume to give it as long again, or roll back", now
        )
    stage = _with_stand_ins(rollout)
    if stage is not rollout:
        return stage, []
    return _soak(rollout, judgement, now)


def _with_stand_ins(rollout: Rollout) -> Rollout:
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
    has_settled = next(_is_due(rollout), None) is None and all(
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
        return _pause(rollout, f"{open_gate.gate}: inconclusive after twice the soak: {open_gate.words}", now)
    return rollout, []


def _settled(rollout: Rollout, now: datetime) -> Step:
    """All reachable devices of the stage have arrived or failed: the soak begins, if there is anything to soak."""
    moved = [m for m in rollout.members.values() if m.order_counter]
    if any(m.state is FleetState.SUCCEEDED for m in moved):
        return msgspec.structs.replace(rollout, soak_from=now), []
    if any(m.state in BAD for m in moved):
        return _pause(rollout, "no device of this stage runs the release; abort or roll back", now)
    opened = max(rollout.judged_from or now, rollout.turned_at or rollout.created_at)
    if now >= opened + timedelta(seconds=rollout.spec.deadline_s):
        return _pause(rollout, f"all {len(moved)} devices of this stage are offline", now)
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
    return _replace_members(rollout, changed)


def stays(rollout: Rollout, devices: Collection[str]) -> Rollout:
    """These could not be ordered back: there is nobody to tell."""
    return _replace_members(
        rollout, [msgspec.structs.replace(rollout.members[device], is_leaving=False) for device in devices]
    )


def _pause(rollout: Rollout, reason: str, now: datetime) -> Step:
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
        _replace_members(rollout, excused),
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
    turned = _replace_members(rollout, leaving)
    return msgspec.structs.replace(turned, status=status, turned_at=now, reason=reason), []


def _converge(rollout: Rollout, now: datetime) -> Rollout:
    """Done when every reachable device is back; one that does not answer keeps its order and follows later."""
    assert rollout.turned_at is not None
    if next(_is_due(rollout), None) is not None:
        return rollout
    is_late = now >= rollout.turned_at + timedelta(seconds=rollout.spec.deadline_s)
    if is_late or not any(m.is_returning and m.is_online for m in rollout.members.values()):
        return msgspec.structs.replace(rollout, status=RETURNING[rollout.status], turned_at=now)
    return rollout


def _replace_members(rollout: Rollout, members: "list[Member | None] | list[Member]") -> Rollout:
    changed = {m.device: m for m in members if m is not None and rollout.members[m.device] is not m}
    return msgspec.structs.replace(rollout, members=rollout.members | changed) if changed else rollout


_COMMANDS = {"pause": _pause, "resume": _resume, "abort": _abort, "rollback": _rollback}
_VIOLATION = {"pause": _pause, "abort": _abort, "rollback": _rollback}
