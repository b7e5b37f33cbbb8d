"""What happens to a deployment, and the jobs that its update machine wants done. Values only."""

from enum import StrEnum
from typing import Literal

import msgspec

from edgekit.manifest import Sha256
from edgekit.sketch import Sketch
from edgekit.wire.messages import OrderedBundle, OrderOptions

SlotName = Literal["A", "B"]


# What runs bundles here: "edgekit" and each engine → its version.
Stamp = dict[str, str]


class SlotRef(msgspec.Struct, frozen=True):
    """A bundle in a slot on this device."""

    slot: SlotName
    bundle: OrderedBundle


class Cause(StrEnum):
    """Whose a failure is, and so what follows from it."""

    PASSING = "passing"
    """Nobody's: a link, a server, a disk, the machine. The step stays and is tried again."""
    DOUBT = "doubt"
    """Perhaps the bundle's, perhaps not: tried again, and the bundle's when it repeats `MAX_DOUBTS` times in a row."""
    BUNDLE = "bundle"
    """The bundle's: the same bytes would fail again."""
    ORDER = "order"
    """The order's: it contradicts what the publisher signed. Nothing is tried until the next one."""
    LOST = "lost"
    """The disk's: what an earlier step left there is gone or damaged, and has to be fetched again."""


# -- events ------------------------------------------------------------------------------------------------------
#
# `id` is the job's; `generation` the placement's whose worker it was. What is not about the present ones is dropped.


class Resumed(msgspec.Struct, frozen=True):
    """The agent started. `held` are the finished bundles on disk; `stamp` names agent and engine versions.

    `serves_despite`: what is committed serves even if it fails its golden data under other versions than before.
    """

    held: dict[SlotName, OrderedBundle]
    stamp: Stamp
    serves_despite: bool = False


class Stopped(msgspec.Struct, frozen=True):
    """The agent is about to end because it was told to."""


class Ordered(msgspec.Struct, frozen=True):
    counter: int
    bundle: OrderedBundle | None
    options: OrderOptions = OrderOptions()


class Pardoned(msgspec.Struct, frozen=True):
    """An operator wants these bundles tried again, or, with none named, all that were refused here."""

    digests: tuple[Sha256, ...] = ()


class Done(msgspec.Struct, frozen=True):
    """The job succeeded."""

    id: int


class Failed(msgspec.Struct, frozen=True):
    """The job failed."""

    id: int
    reason: str
    cause: Cause = Cause.PASSING


class Started(msgspec.Struct, frozen=True):
    """A worker serves; `limit_ms` is its contract's latency."""

    generation: int
    now: float
    limit_ms: float | None = None


class StartFailed(msgspec.Struct, frozen=True):
    generation: int
    reason: str
    cause: Cause = Cause.PASSING


class Died(msgspec.Struct, frozen=True):
    """A worker that served ended, or did not answer any more."""

    generation: int
    reason: str


class Steady(msgspec.Struct, frozen=True):
    """The worker has lived for `STEADY_S`."""

    generation: int


class Observed(msgspec.Struct, frozen=True):
    """What the serving worker counted since the last observation."""

    generation: int
    now: float
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()


class LinkUp(msgspec.Struct, frozen=True):
    """The device is connected to its fleet."""

    now: float


class LinkDown(msgspec.Struct, frozen=True):
    now: float


class Acknowledged(msgspec.Struct, frozen=True):
    """The fleet has a report that carried this digest as loaded."""

    digest: Sha256


Event = (
    Resumed
    | Stopped
    | Ordered
    | Pardoned
    | Done
    | Failed
    | Started
    | StartFailed
    | Died
    | Steady
    | Observed
    | LinkUp
    | LinkDown
    | Acknowledged
)


# -- jobs --------------------------------------------------------------------------------------------------------
#
# Each is begun after `pause_s`, with jitter, and ends with a `Done` or `Failed` of its id unless it is no longer wanted.


class Fetch(msgspec.Struct, frozen=True):
    """It takes at most `bytes_s` of the line, if that is set."""

    id: int
    pause_s: float
    bundle: OrderedBundle
    bytes_s: float | None = None


class Stage(msgspec.Struct, frozen=True):
    id: int
    pause_s: float
    ref: SlotRef


class SelfTest(msgspec.Struct, frozen=True):
    id: int
    pause_s: float
    ref: SlotRef


class Recheck(msgspec.Struct, frozen=True):
    """The golden data of a bundle that was committed under other versions, before it serves under these."""

    id: int
    pause_s: float
    ref: SlotRef


class Wait(msgspec.Struct, frozen=True):
    """Only the pause: the candidate is tried again after it."""

    id: int
    pause_s: float


Job = Fetch | Stage | SelfTest | Recheck | Wait
