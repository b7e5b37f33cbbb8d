"""What a rollout is: what was asked for, where it stands, what can happen to it, and what follows from that."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

import msgspec

from fleet.rules.budget import Spent
from fleet.rules.evidence import StageEvidence
from fleet.rules.gates import Gate, Verdict
from fleet.rules.members import Member, Word
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
