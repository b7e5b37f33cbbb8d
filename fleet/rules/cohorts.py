"""What gates are judged on: the windows of each device, canaries apart from control."""

import msgspec

from edgekit.sketch import Sketch


class Past(msgspec.Struct, frozen=True):
    """A device's own windows on the old release before the stage opened."""

    windows: int
    requests: int
    errors: int
    infer_ms: Sketch


class DeviceData(msgspec.Struct, frozen=True):
    """A device's windows since the stage opened, on the release it is judged for.

    `infer_ms` leaves out the windows of a cold start; `warm_windows` went into it.
    """

    device: str
    profile: str
    windows: int
    warm_windows: int
    requests: int
    errors: int
    infer_ms: Sketch
    past: Past | None = None


class Cohorts(msgspec.Struct, frozen=True):
    """Canaries, and control: eligible devices still on the old release. `silent` devices missed three windows."""

    canary: tuple[DeviceData, ...] = ()
    control: tuple[DeviceData, ...] = ()
    silent: frozenset[str] = frozenset()
    control_silent: int = 0
    control_total: int = 0
