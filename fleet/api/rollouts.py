"""Bodies about rollouts, assignments and experiments."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet.api.common import (
    ApproveText,
    BandwidthText,
    DeploymentName,
    Duration,
    GateText,
    GoalText,
    HoldbackText,
    MaybeDuration,
    OnViolation,
    RateText,
    SelectorText,
    SplitText,
    StagesText,
    Text,
    TimeZone,
    Title,
    WindowText,
)


class NewAssignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /assignments`: what devices run from now on, all at once and judged by nobody."""

    release: Title
    to: SelectorText
    deployment: DeploymentName = ""
    probation: MaybeDuration = ""
    dry_run: bool = False


class AssignmentView(msgspec.Struct, frozen=True):
    """`because` is the rollout that left it, or `assigned`. Of those that match a device the newest holds."""

    id: str
    release: str
    to: str
    deployment: str
    because: str
    at: datetime


class Assigned(msgspec.Struct, frozen=True):
    """Who moves, by profile, who runs it already, and who does not follow and why. `id` is empty after a dry run."""

    id: str
    release: str
    deployment: str
    moves: dict[str, tuple[str, ...]]
    there: tuple[str, ...]
    others: "tuple[Ineligible, ...]"


class NewRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /rollouts`, and the file that `rollout start --file` reads and `rollout show --toml` writes.

    Empty `stages` and `holdback` mean the defaults that the plan then states in words; an empty or zero limit is none.
    """

    release: Title
    to: SelectorText
    stages: StagesText = ""
    soak: Duration = "30m"
    gates: tuple[GateText, ...] = ()
    on_violation: OnViolation = "rollback"
    deadline: Duration = "10m"
    finish_by: Duration = "2d"
    holdback: HoldbackText = ""
    deployment: DeploymentName = ""
    probation: MaybeDuration = ""
    approve: ApproveText = ""
    rate: RateText = ""
    at_once: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    per_site: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    windows: Annotated[tuple[WindowText, ...], Meta(max_length=32)] = ()
    time_zone: TimeZone = ""
    site_bandwidth: BandwidthText = ""
    jitter: MaybeDuration = ""
    queue: bool = False
    dry_run: bool = False


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /rollouts/ID/VERB`: `profile` for hold and release, `finish_by` (a duration) for resume."""

    profile: Text = ""
    finish_by: MaybeDuration = ""


class Ineligible(msgspec.Struct, frozen=True):
    device: str
    reason: str


class StageOutlook(msgspec.Struct, frozen=True):
    """What a stage will be able to see: its devices on the new release, those beside it, and a line per gate."""

    stage: str
    devices: int
    control: int
    sees: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """What a rollout would do, before it does anything."""

    release: str
    deployment: str
    eligible: dict[str, tuple[str, ...]]
    ineligible: tuple[Ineligible, ...]
    stages: tuple[str, ...]
    gates: tuple[str, ...]
    notes: tuple[str, ...]
    outlook: tuple[StageOutlook, ...] = ()


class GateView(msgspec.Struct, frozen=True):
    gate: str
    outcome: str
    words: str


class MemberView(msgspec.Struct, frozen=True):
    device: str
    profile: str
    stage: int | None
    state: str
    reason: str
    previous: str


class RolloutView(msgspec.Struct, frozen=True):
    """`awaits` is the stage (from 1) that waits for approval; `waiting` counts the devices of the open stage that are not
    told yet; orders for `held_profiles` are held. `members` are the first in the order in which devices move, and none
    in a list of rollouts; `GET /rollouts/ID/members` has them all. `tag` stands for what a person decides by.
    """

    id: str
    release: str
    deployment: str
    to: str
    status: str
    reason: str
    stage: int
    stages: tuple[str, ...]
    counts: dict[str, int]
    gates: tuple[GateView, ...]
    created: datetime
    soak_ends: datetime | None
    finish_by: datetime | None = None
    awaits: int | None = None
    held_profiles: tuple[str, ...] = ()
    waiting: int = 0
    members: tuple[MemberView, ...] = ()
    tag: str = ""


class RolloutAnswer(msgspec.Struct, frozen=True):
    """`rollout` is absent after a dry run."""

    plan: Plan
    rollout: RolloutView | None = None


class NewExperiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /experiments`: releases `a` and `b` on a fixed split of the devices."""

    a: Title
    b: Title
    to: SelectorText
    goal: GoalText
    split: SplitText = "50/50"
    deployment: DeploymentName = ""


class ArmView(msgspec.Struct, frozen=True):
    """`assigned` devices, those that report, those that reported the goal, and the mean of these."""

    release: str
    share: float
    assigned: int
    reporting: int
    measured: int
    mean: float | None
    error_rate: float | None


class ExperimentView(msgspec.Struct, frozen=True):
    """`outcome`: waiting, mismatch, open, A or B. `difference` is B - A, with its interval (of latency_mean: relative)."""

    id: str
    status: str
    reason: str
    deployment: str
    to: str
    goal: str
    outcome: str
    words: str
    a: ArmView
    b: ArmView
    difference: float | None
    low: float | None
    high: float | None
    created: datetime
