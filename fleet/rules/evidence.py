"""What a stage is judged on: one small record per device, kept as running sums by ingest.

Times are the fleet's steady seconds (`fleet.server.clock`): they only go forward, whatever the wall clock does.

Always true
 1. The unit is the device: a record holds what one device did since the stage is judged, and nothing of another.
 2. Who is at risk is fixed when the stage opens: a device that was silent then, or that joined later and has not
    been heard yet, is at risk of nothing and counts in neither arm.
 3. `past` is the device's own last windows on the old release, as they were when the stage opened; it never changes.
 4. A window counts by its own trusted time: one that began before the stage is judged, or whose clock is in doubt, is
    in none of the sums, though it is a sign of life.
 5. A device about which nothing new is known keeps the very same object from tick to tick, so that what is worked out
    of one may be cached by its identity.

Records that are kept by the hundred thousand from tick to tick hold no reference to themselves, so the garbage collector
is told not to look at them (`gc=False`): its full round over them made a tick of 0.2 s one of 1.7 s.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from edgekit.sketch import Sketch
from edgekit.wire.messages import Moments

# A device is silent once this many of its windows are missing, and at least so many seconds.
SILENT_WINDOWS = 3
SILENT_AT_LEAST_S = 5.0
USUAL_WINDOW_S = 60.0
# Windows on the judged release that count in nothing, and further ones that are too cold for latency.
COLD_WINDOWS = 1
COLD_WINDOWS_LATENCY = 6


class Arm(StrEnum):
    """Canaries were ordered to move; control is eligible and runs what it ran before."""

    CANARY = "canary"
    CONTROL = "control"


class Sums(msgspec.Struct, frozen=True, gc=False):
    """Windows added up. `requests` and `errors` are of all of them, `infer_ms` of those that are warm enough.

    `metrics` are those that gates may name: `drift_psi` and `metric:NAME`.
    """

    windows: int = 0
    requests: int = 0
    errors: int = 0
    warm_windows: int = 0
    infer_ms: Sketch = Sketch()
    metrics: Mapping[str, Moments] = {}


class DeviceEvidence(msgspec.Struct, frozen=True, gc=False):
    """One device of one stage.

    `windows`, `requests`, `errors` leave out the first `COLD_WINDOWS` on the judged release; `sketch` (engine
    milliseconds of `warm_windows` windows) the first `COLD_WINDOWS_LATENCY` where the rollout compares with control, as
    many as `COLD_WINDOWS` otherwise. The judged release is the target for a canary, what it ran before for control.
    `since` is when the first of them began, None before it: canaries that are fresh have a later one than control.
    `installed`: True once it reported the target loaded and committed, False once it failed to or left it again (also
    timed out, rejected, diverged), None on the way. `order` is its place among all that were ordered (0 is the first);
    None for control. `is_excused`: it failed, and the operator resumed all the same.
    `is_fresh`: it was ordered in this stage, so that its past is of the same hours as that of control.
    `last_report_at` is the newest sign of life, 0 for none; `fell_silent_at` is when it first had missed
    `SILENT_WINDOWS` in this stage and was heard again later, None if that never was (see `silence_of`).
    """

    device: str
    profile: str
    arm: Arm
    at_risk: bool
    windows: int = 0
    requests: int = 0
    errors: int = 0
    warm_windows: int = 0
    sketch: Sketch = Sketch()
    metrics: Mapping[str, Moments] = {}
    past: Sums | None = None
    since: float | None = None
    last_report_at: float = 0.0
    window_s: float = USUAL_WINDOW_S
    fell_silent_at: float | None = None
    notified_at: float | None = None
    installed: bool | None = None
    reason: str = ""
    order: int | None = None
    is_excused: bool = False
    is_online: bool = False
    is_fresh: bool = True

    @property
    def patience_s(self) -> float:
        """How long no report may come before the device is silent."""
        return max(SILENT_AT_LEAST_S, SILENT_WINDOWS * self.window_s)


class StageEvidence(msgspec.Struct, frozen=True):
    """All devices of a stage that have a place in an arm, by name, as of `now`.

    `judged_from` is when counting began (the stage opened, or the operator resumed); before `heard_since` the fleet
    itself was deaf, which counts against nobody. `devices` are about the first deployment that moves; `beside` has the
    same devices' records of each further one, by its name.
    """

    devices: Mapping[str, DeviceEvidence] = {}
    now: float = 0.0
    judged_from: float = 0.0
    heard_since: float = 0.0
    beside: Mapping[str, Mapping[str, DeviceEvidence]] = {}

    def silent_s(self, device: DeviceEvidence) -> float:
        """Seconds for which a report of this device could have been heard and was not."""
        return max(0.0, self.now - max(device.last_report_at, self.heard_since, self.judged_from))

    def silence_of(self, device: DeviceEvidence) -> float | None:
        """When it fell silent in this stage, for a log-rank test: the moment its patience first ran out; else None."""
        if device.fell_silent_at is not None:
            return device.fell_silent_at
        silent_s = self.silent_s(device)
        return self.now - (silent_s - device.patience_s) if silent_s > device.patience_s else None
