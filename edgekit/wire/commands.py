"""What a fleet asks of a device once, beside what it orders it to run: commands, and what came of them.

A command is signed like an order, with a type of its own. It has a life of its own too: it is not retained, it expires,
and a device does it once. Results are bounded like every message, and say nothing of an input.
"""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.manifest import Sha256
from edgekit.wire.messages import (
    VERSION,
    Boot,
    Count,
    DeviceName,
    Finite,
    Megabytes,
    Moment,
    OrderedBundle,
    Plain,
    Small,
    Text,
    Word,
)

LONGEST_LIFE = timedelta(days=7)
MAX_BUNDLES = 6
MAX_ROUNDS = 240
MAX_DIGESTS = 64

CommandId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
Level = Literal["debug", "info", "warning"]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
# Of the device, or empty for all of them.
Slot = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")]


# -- what is asked -------------------------------------------------------------------------------------------------


class SelfTest(msgspec.Struct, frozen=True, tag="self-test", tag_field="kind"):
    """Run the golden inputs of what serves, in one deployment or all."""

    deployment: Slot = ""


class Measure(msgspec.Struct, frozen=True, tag="measure", tag_field="kind"):
    """Time bundles on this board, call by call in turn; with `deployment` what serves there too. None of them serves for
    it. `budget_s` is how long the timing may take, beside bringing, testing and loading them.
    """

    bundles: Annotated[tuple[OrderedBundle, ...], Meta(min_length=1, max_length=MAX_BUNDLES)]
    deployment: Slot = ""
    budget_s: Annotated[float, Meta(ge=0.5, le=600)] = 10.0


class ClearRefused(msgspec.Struct, frozen=True, tag="clear-refused", tag_field="kind"):
    """Forget what was held against these bundles, or against all."""

    digests: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_DIGESTS)] = ()


class Restart(msgspec.Struct, frozen=True, tag="restart", tag_field="kind"):
    """Start the worker of a deployment anew, or with none the agent itself."""

    deployment: Slot = ""


class LogLevel(msgspec.Struct, frozen=True, tag="log-level", tag_field="kind"):
    """Log more, or less, for so long; an agent that restarts logs as usual."""

    level: Level
    seconds: Annotated[float, Meta(ge=1, le=86_400)] = 900.0


Action = SelfTest | Measure | ClearRefused | Restart | LogLevel


def kind_of(action: Action) -> str:
    """The action's name on the wire."""
    return str(action.__struct_config__.tag)


class Command(msgspec.Struct, frozen=True):
    """The signed payload: one action, once, until `expires`."""

    fleet: str
    device: str
    enrolment: Count
    id: CommandId
    issued: Moment
    expires: Moment
    action: Action
    version: int = VERSION


# -- what came of it -----------------------------------------------------------------------------------------------


class CommandState(StrEnum):
    """Where a command stands, as the device says it; the last three are for good."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"


OVER = frozenset({CommandState.DONE, CommandState.FAILED, CommandState.REFUSED})


class Tested(msgspec.Struct, frozen=True):
    """A self-test's figures: `agreement` with the float source in answers (0 to 1), the largest absolute difference of each
    output to what this artifact gave at build, milliseconds of engine calls. `reason` is empty where it passed.
    """

    sha256: Sha256
    passed: bool
    deployment: Slot = ""
    reason: Text = ""
    agreement: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_error: Annotated[dict[Plain, Finite | None], Meta(max_length=64)] = {}
    latency_p50_ms: Milliseconds = 0.0
    latency_p95_ms: Milliseconds = 0.0


class SelfTested(msgspec.Struct, frozen=True, tag="self-test", tag_field="kind"):
    """One entry for each deployment that serves."""

    tests: Annotated[tuple[Tested, ...], Meta(max_length=32)]


class Timed(msgspec.Struct, frozen=True):
    """One bundle, timed. `rounds_ms` are the medians of each round, and pair with those of the others by their place; the
    interval is of the median, at 95 %. A bundle that failed its self-test was not timed, and has none.

    `memory_mb` is the most that a process of its own took with it.
    """

    test: Tested
    engine: Word
    engine_version: Plain
    threads: Small
    serves: bool = False
    p50_ms: Milliseconds = 0.0
    p50_low_ms: Milliseconds = 0.0
    p50_high_ms: Milliseconds = 0.0
    p95_ms: Milliseconds = 0.0
    rounds_ms: Annotated[tuple[Milliseconds, ...], Meta(max_length=MAX_ROUNDS)] = ()
    memory_mb: Megabytes | None = None


class Measured(msgspec.Struct, frozen=True, tag="measure", tag_field="kind"):
    """In the order of the command, what serves last. `load` is the machine's load average over the timing, per core."""

    bundles: Annotated[tuple[Timed, ...], Meta(max_length=MAX_BUNDLES + 1)]
    cpu: Plain
    isa: Annotated[tuple[Word, ...], Meta(max_length=64)] = ()
    load: Annotated[float, Meta(ge=0, le=1e6)] = 0.0


class Cleared(msgspec.Struct, frozen=True, tag="clear-refused", tag_field="kind"):
    """What was held against which bundle, and is not any more."""

    digests: Annotated[dict[Sha256, Text], Meta(max_length=32 * MAX_DIGESTS)]


Payload = SelfTested | Measured | Cleared


class Result(msgspec.Struct, frozen=True):
    """Where a command stands. It is sent again until an `ack` names its (boot, seq)."""

    device: DeviceName
    boot: Boot
    seq: Count
    id: CommandId
    state: CommandState
    reason: Text = ""
    payload: Payload | None = None
    version: int = VERSION
