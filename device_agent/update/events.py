"""What happens to a deployment's update, and what the machine asks to be done about it. Values only."""

from typing import Literal

import msgspec

from edgekit.manifest import Sha256
from edgekit.sketch import Sketch
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step

SlotName = Literal["A", "B"]


class SlotRef(msgspec.Struct, frozen=True):
    """A bundle in a slot on this device."""

    slot: SlotName
    bundle: OrderedBundle


# -- events ------------------------------------------------------------------------------------------------------


class Resumed(msgspec.Struct, frozen=True):
    """The agent started. `current` is the slot that runs by the link; `stamp` names agent and engine versions."""

    current: SlotName | None
    stamp: str


class Ordered(msgspec.Struct, frozen=True):
    counter: int
    bundle: OrderedBundle | None
    options: OrderOptions = OrderOptions()


class Done(msgspec.Struct, frozen=True):
    """The effect of this step succeeded."""

    step: Step
    now: float = 0.0
    limit_ms: float | None = None


class Failed(msgspec.Struct, frozen=True):
    """The effect of this step failed. `blames_bundle` if the same bundle would fail again."""

    step: Step
    reason: str
    blames_bundle: bool = True


class Observed(msgspec.Struct, frozen=True):
    """What the candidate's worker counted since the last observation."""

    now: float
    requests: int = 0
    errors: int = 0
    deaths: int = 0
    infer_ms: Sketch = Sketch()


class Acknowledged(msgspec.Struct, frozen=True):
    """The fleet has a report that carried this digest as loaded."""

    digest: Sha256


class GaveUp(msgspec.Struct, frozen=True):
    """The running slot failed to start too often in a row."""

    reason: str


Event = Resumed | Ordered | Done | Failed | Observed | Acknowledged | GaveUp


# -- effects -----------------------------------------------------------------------------------------------------


class Fetch(msgspec.Struct, frozen=True):
    bundle: OrderedBundle


class Stage(msgspec.Struct, frozen=True):
    ref: SlotRef


class SelfTest(msgspec.Struct, frozen=True):
    ref: SlotRef


class Switch(msgspec.Struct, frozen=True):
    """Start a worker on the slot, point `current` at it, let it take over."""

    ref: SlotRef


class Restore(msgspec.Struct, frozen=True):
    """Make this slot run again and nothing else; None stops the model."""

    ref: SlotRef | None


class Halt(msgspec.Struct, frozen=True):
    """Stop whatever effect is under way."""


Effect = Fetch | Stage | SelfTest | Switch | Restore | Halt
