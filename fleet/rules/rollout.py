"""What a rollout is: what was asked for, where it stands, what can happen to it, and what follows from that."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from fleet.rules.budget import Spent
from fleet.rules.evidence import StageEvidence
from fleet.rules.gates import Gate, Verdict
from fleet.rules.members import Member, Word
from fleet.rules.pace import Given, Pace
from fleet.rules.roster import Roster
from fleet.rules.stages import Stage


class Status(StrEnum):
    """A queued one waits until others that it shares devices with have ended, and is planned afresh then."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ABORTING = "aborting"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


ACTIVE = frozenset({Status.RUNNING, Status.PAUSED, Status.ROLLING_BACK, Status.ABORTING})
Verb = Literal["pause", "resume", "abort", "rollback", "approve", "hold", "release"]
RETURNING = {Status.ROLLING_BACK: Status.ROLLED_BACK, Status.ABORTING: Status.ABORTED}


class Release(msgspec.Struct, frozen=True):
    """What one deployment moves to."""

    name: str
    version: str
    deployment: str

    @property
    def title(self) -> str:
        return f"{self.name}@{self.version}"


class Spec(msgspec.Struct, frozen=True):
    """What the operator asked for, parsed. `beside` are further releases, that move together with the first one."""

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
    pace: Pace = Pace()
    beside: tuple[Release, ...] = ()

    @property
    def parts(self) -> tuple[Release, ...]:
        """All that moves."""
        return (Release(self.name, self.version, self.deployment), *self.beside)

    @property
    def deployments(self) -> tuple[str, ...]:
        """The order in which members, orders and sums speak of several."""
        return (self.deployment, *(part.deployment for part in self.beside))

    @property
    def title(self) -> str:
        return " ".join(part.title for part in self.parts)


class Rollout(msgspec.Struct, frozen=True):
    """`thresholds` are the open stage's, per profile; data counts from `judged_from`; `soak_from` is None until
    the stage's reachable devices have settled. `finish_from`: the operator gave it that much longer. `spent` is what
    closed stages have used of the rollout's error budget.

    `finish_s` is the time that an operator gave it instead of the spec's. `given` are the latest orders forward, for the
    rate. `approved` is the last stage that an operator let begin, `awaits` the one that waits for it. Devices of
    `stopped` profiles get no orders.
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
    finish_s: float | None = None
    spent: Spent = Spent()
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    given: tuple[Given, ...] = ()
    approved: int = -1
    awaits: int | None = None
    stopped: tuple[str, ...] = ()

    @property
    def finish_at(self) -> datetime:
        """When it pauses if it is not done."""
        seconds = self.spec.finish_by_s if self.finish_s is None else self.finish_s
        return (self.finish_from or self.created_at) + timedelta(seconds=seconds)

    def __post_init__(self) -> None:
        if not isinstance(self.members, Roster):
            msgspec.structs.force_setattr(self, "members", Roster(self.members))

    @property
    def roster(self) -> Roster:
        """The members, and who of them stands where."""
        assert isinstance(self.members, Roster)
        return self.members

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
    """What an operator asks for. `profile` is whom a hold or release is about; `finish_by_s` goes with resume."""

    verb: Verb
    reason: str = ""
    profile: str = ""
    finish_by_s: float | None = None


class Move(msgspec.Struct, frozen=True):
    """Order this device to run `sha256` (None: no model), and `beside` in the further deployments: one order says all."""

    device: str
    sha256: str | None
    beside: tuple[str | None, ...] = ()

    @property
    def wanted(self) -> tuple[str | None, ...]:
        """In the order of the spec's deployments."""
        return (self.sha256, *self.beside)


class Assign(msgspec.Struct, frozen=True):
    """The rollout is complete: its release is what the selector's devices run from now on."""


class Unassign(msgspec.Struct, frozen=True):
    """A completed rollout goes back: what was assigned before it holds again."""


Event = Tick | Heard | Due | Joined | Left | Ordered | Command
Effect = Move | Assign | Unassign
Step = tuple[Rollout, list[Effect]]
