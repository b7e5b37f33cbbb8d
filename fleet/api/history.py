"""What was, by the minute, the hour and the day: bodies of the history routes.

`at` is when an interval began (unix seconds of the fleet's wall clock), `length_s` how long it is: intervals of one
answer may differ in length, because older ones are kept as hours and days. An interval in which nothing was reported
is not there.
"""

from typing import Literal

import msgspec

ArmName = Literal["canary", "control"]


class ArmPoint(msgspec.Struct, frozen=True):
    """One arm of an open stage. The unit is the device: intervals (95 %) say how much devices differ, not requests.

    `p50_ms` and `p95_ms` are means over devices of each one's own (by logarithm, weighted as the gates weight them).
    With one device there is no interval: the share may be anything, the latency's bounds are None.
    """

    at: float
    length_s: float
    stage: int
    arm: ArmName
    devices: int
    requests: int
    errors: int
    error_share: float
    error_low: float
    error_high: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p95_low: float | None = None
    p95_high: float | None = None


class DevicePoint(msgspec.Struct, frozen=True):
    """What one device did with one bundle. Quantiles are over its requests; the others are means over its windows."""

    at: float
    length_s: float
    deployment: str
    digest: str
    requests: int
    errors: int
    p50_ms: float | None = None
    p95_ms: float | None = None
    drift_psi: float | None = None
    memory_mb: float | None = None
    temperature_c: float | None = None


class ReleasePoint(msgspec.Struct, frozen=True):
    """What all devices did with a bundle, or with all bundles of a release. Quantiles are over their requests together."""

    at: float
    length_s: float
    devices: int
    requests: int
    errors: int
    p50_ms: float | None = None
    p95_ms: float | None = None
    drift_psi: float | None = None
