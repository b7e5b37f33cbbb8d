"""What is kept of the past: sums that go together in any order, and the points that are drawn from them.

Pure. Moments are unix seconds of the fleet's wall clock.

Always true
 1. Sums of parts are the sums of the whole: adding them up by minutes, hours and days, or by several writers, loses and
    doubles nothing.
 2. A device counts once in each interval, however many windows it sent, and its windows of one minute are one value:
    the unit is the device, as for the gates.
 3. An interval drawn from several minutes is never narrower than if the same devices had said the same all the time.
"""

import math
from enum import IntEnum

import msgspec

from edgekit.sketch import Sketch, merge
from edgekit.wire.messages import DeploymentWindow, Report
from fleet.api.history import ArmName, ArmPoint, DevicePoint, ReleasePoint
from fleet.rules import seen, telling
from fleet.rules.evalues import NORMAL
from fleet.rules.scores import HALF_WEIGHT_REQUESTS
from fleet.rules.seen import Seen
from fleet.rules.telling import Anomalies

_Z = NORMAL.inv_cdf(0.975)
# What a sketch cannot tell apart (`edgekit.sketch.ACCURACY`), as a standard deviation of the logarithm.
_RESOLUTION = 0.01
# Student's t, 97.5 %, where the approximation is far off.
_FEW = {1: 12.706, 2: 4.303, 3: 3.182}
PSI = "drift_psi"


class Level(IntEnum):
    """A part is what one transaction added to a minute; the others are whole, until something late comes."""

    PART = 0
    MINUTE = 1
    HOUR = 2
    DAY = 3

    @property
    def length_s(self) -> int:
        return _LENGTHS[self]

    def begin(self, moment: float) -> float:
        """When the interval began that this moment lies in."""
        return moment // self.length_s * self.length_s


_LENGTHS = {Level.PART: 60, Level.MINUTE: 60, Level.HOUR: 3600, Level.DAY: 86_400}


# --- arms of a rollout ---------------------------------------------------------------------------------------------


class Minute(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one device did in its newest minute: `at` in minutes; logarithms weighted by the requests that were timed."""

    at: int = 0
    requests: int = 0
    errors: int = 0
    timed: int = 0
    log_p50: float = 0.0
    log_p95: float = 0.0

    def grown(self, window: DeploymentWindow, *, is_warm: bool) -> "Minute":
        requests, errors = self.requests + window.requests, self.errors + window.errors
        p50, p95 = window.infer_ms.quantile(0.5), window.infer_ms.quantile(0.95)
        if not is_warm or not p50 or not p95:
            return Minute(self.at, requests, errors, self.timed, self.log_p50, self.log_p95)
        timed = window.infer_ms.count
        logs = self.log_p50 + timed * math.log(p50), self.log_p95 + timed * math.log(p95)
        return Minute(self.at, requests, errors, self.timed + timed, *logs)


class ArmSums(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One arm in an interval, over devices: of errors E and requests R their sums and products, of the logarithm of each
    one's latency l with its weight w those sums that a mean and its error need.

    `minutes` is how many minutes were drawn together; then `devices` and `timed` are of the fullest of them.
    """

    minutes: int = 1
    devices: int = 0
    timed: int = 0
    requests: int = 0
    errors: int = 0
    ee: float = 0.0
    er: float = 0.0
    rr: float = 0.0
    w: float = 0.0
    ww: float = 0.0
    w_p50: float = 0.0
    w_p95: float = 0.0
    ww_p95: float = 0.0
    ww_p95_p95: float = 0.0


def step(minute: Minute, window: DeploymentWindow, moment: float, *, is_warm: bool) -> tuple[Minute, ArmSums]:
    """A device's minute after one more window, and what that adds to its arm's.

    A window of a minute that is over already counts as that of one more device: what it was is not kept.
    """
    at = int(moment // 60)
    before = minute if minute.at == at else Minute(at)
    after = before.grown(window, is_warm=is_warm)
    added = _of_minute(after)
    if before is minute and before.at:
        added = _difference(added, _of_minute(before))
    return (after if at >= minute.at else minute), added


def _of_minute(one: Minute) -> ArmSums:
    e, r = float(one.errors), float(one.requests)
    if not one.timed:
        return ArmSums(1, 1, 0, one.requests, one.errors, e * e, e * r, r * r)
    w = one.timed / (one.timed + HALF_WEIGHT_REQUESTS)
    p50, p95 = one.log_p50 / one.timed, one.log_p95 / one.timed
    ww = w * w
    return ArmSums(
        1, 1, 1, one.requests, one.errors, e * e, e * r, r * r,
        w, ww, w * p50, w * p95, ww * p95, ww * p95 * p95,
    )  # fmt: skip


def _difference(after: ArmSums, before: ArmSums) -> ArmSums:
    pairs = zip(msgspec.structs.astuple(after)[1:], msgspec.structs.astuple(before)[1:], strict=True)
    return ArmSums(1, *(a - b for a, b in pairs))


def beside(one: ArmSums, other: ArmSums) -> ArmSums:
    """Two parts of one minute."""
    pairs = zip(msgspec.structs.astuple(one)[1:], msgspec.structs.astuple(other)[1:], strict=True)
    return ArmSums(max(one.minutes, other.minutes), *(a + b for a, b in pairs))


def after(one: ArmSums, other: ArmSums) -> ArmSums:
    """Two minutes (or hours) of one arm: the same devices are in both (rule 3)."""
    minutes = one.minutes + other.minutes
    fullest = max(one.devices, other.devices), max(one.timed, other.timed)
    pairs = zip(msgspec.structs.astuple(one)[3:], msgspec.structs.astuple(other)[3:], strict=True)
    return ArmSums(minutes, *fullest, *(a + b for a, b in pairs))


def arm_point(sums: ArmSums, *, at: float, level: Level, stage: int, arm: ArmName) -> ArmPoint:
    share = sums.errors / sums.requests if sums.requests else 0.0
    low, high = _share_interval(sums, share)
    p50 = p95 = p95_low = p95_high = None
    if sums.w > 0:
        p50, middle = math.exp(sums.w_p50 / sums.w), sums.w_p95 / sums.w
        p95 = math.exp(middle)
        if sums.timed > 1:
            reach = _t(sums.timed - 1) * _latency_error(sums, middle)
            p95_low, p95_high = math.exp(middle - reach), math.exp(middle + reach)
    return ArmPoint(
        at, float(level.length_s), stage, arm, sums.devices, sums.requests, sums.errors, share, low, high,
        p50, p95, p95_low, p95_high,
    )  # fmt: skip


def _share_interval(sums: ArmSums, share: float) -> tuple[float, float]:
    """Of errors per request: Wilson's interval, with as many requests as their devices are worth.

    Devices differ, so R requests of n devices tell less than R of one: the variance of a ratio over devices, in units of
    the variance of independent requests, is the design effect, and no smaller than one.
    Sources: Kish (1965), "Survey Sampling", 8.2; Korn and Graubard (1998), "Confidence intervals for proportions with
    small expected number of positive counts estimated from survey data"; Wilson (1927).
    """
    if not sums.requests or sums.devices < 2:
        return 0.0, 1.0
    n, requests = sums.devices, float(sums.requests)
    squares = max(0.0, sums.ee - 2 * share * sums.er + share * share * sums.rr)
    variance = sums.minutes * n / (n - 1) * squares / requests**2
    alone = share * (1 - share) / requests
    effect = max(1.0, variance / alone) if alone > 0 else 1.0
    worth, t = requests / effect, _t(n - 1)
    middle = (share + t * t / (2 * worth)) / (1 + t * t / worth)
    reach = t / (1 + t * t / worth) * math.sqrt(share * (1 - share) / worth + t * t / (4 * worth * worth))
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))


def _latency_error(sums: ArmSums, middle: float) -> float:
    """The standard error of the weighted mean logarithm over devices."""
    n = sums.timed
    squares = max(0.0, sums.ww_p95_p95 - 2 * middle * sums.ww_p95 + middle * middle * sums.ww)
    spread = sums.minutes * n / (n - 1) * squares / sums.w**2
    return math.sqrt(spread + _RESOLUTION**2 / n)


def _t(freedom: int) -> float:
    """The 97.5 % point of Student's t: the inverse of `evalues.normal_score` (Wallace 1959)."""
    if freedom in _FEW:
        return _FEW[freedom]
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return math.sqrt(freedom * math.expm1((_Z / shrink) ** 2 / freedom))


# --- releases ------------------------------------------------------------------------------------------------------


class ReleaseSums(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """All devices on one bundle. `devices` are those whose first window in their minute is among these, `devices_hour`
    and `devices_day` those whose first one in the hour, in the day is: so each adds up to what its level needs. `seen` are counts over the bins of the bundle's reference; `anomalies`
    are what windows said of inputs, by kind.
    """

    windows: int = 0
    devices: int = 0
    devices_hour: int = 0
    devices_day: int = 0
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()
    psi_count: int = 0
    psi_total: float = 0.0
    seen: Seen = {}
    # Rows that an earlier fleet wrote have it; the place stays, for the next one's sake.
    moved: dict[str, tuple[int, float]] = {}
    anomalies: Anomalies = {}


def together(one: ReleaseSums, other: ReleaseSums) -> ReleaseSums:
    return ReleaseSums(
        one.windows + other.windows,
        one.devices + other.devices,
        one.devices_hour + other.devices_hour,
        one.devices_day + other.devices_day,
        one.requests + other.requests,
        one.errors + other.errors,
        merge((one.infer_ms, other.infer_ms)),
        one.psi_count + other.psi_count,
        one.psi_total + other.psi_total,
        seen.together(one.seen, other.seen),
        {},
        telling.added(one.anomalies, other.anomalies),
    )


def release_point(sums: ReleaseSums, *, at: float, level: Level) -> ReleasePoint:
    devices = {Level.HOUR: sums.devices_hour, Level.DAY: sums.devices_day}.get(level, sums.devices)
    return ReleasePoint(
        at,
        float(level.length_s),
        devices,
        sums.requests,
        sums.errors,
        sums.infer_ms.quantile(0.5),
        sums.infer_ms.quantile(0.95),
        _mean(sums.psi_count, sums.psi_total),
    )


def _mean(count: int, total: float) -> float | None:
    return total / count if count else None


# --- devices -------------------------------------------------------------------------------------------------------


class Gauges(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a device's windows on one bundle said besides their counts, added up since ever; `filed` is when the newest
    of them ended, `drift` the newest that was said of it, `guarded` the inputs that a guard found unfamiliar.
    """

    filed: float | None = None
    psi_count: int = 0
    psi_total: float = 0.0
    memory_count: int = 0
    memory_total: float = 0.0
    temperature_count: int = 0
    temperature_total: float = 0.0
    drift: dict[str, float] = {}
    anomalies: Anomalies = {}
    guarded: int = 0

    def grown(self, window: DeploymentWindow, report: Report, moment: float) -> "Gauges":
        psi = window.metrics.get(PSI)
        memory, temperature = report.memory_mb, report.temperature_c
        return Gauges(
            moment if self.filed is None else max(self.filed, moment),
            self.psi_count + (psi.count if psi else 0),
            self.psi_total + (psi.total if psi else 0.0),
            self.memory_count + (memory is not None),
            self.memory_total + (memory or 0.0),
            self.temperature_count + (temperature is not None),
            self.temperature_total + (temperature or 0.0),
            window.drift or self.drift,
            telling.added(self.anomalies, window.anomalies),
            self.guarded + window.guarded,
        )

    def is_first(self, level: Level, moment: float) -> bool:
        """Whether a window at `moment` is the first of its interval."""
        return self.filed is None or level.begin(self.filed) < level.begin(moment)


class DeviceSums(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Everything that a device did with a bundle until a moment: what it did between two is the difference."""

    windows: int = 0
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()
    gauges: Gauges = Gauges()


def device_point(
    now: DeviceSums, before: DeviceSums, *, at: float, level: Level, deployment: str, digest: str
) -> DevicePoint:
    had, has = before.infer_ms, now.infer_ms
    bins = {index: left for index, n in has.bins.items() if (left := n - had.bins.get(index, 0)) > 0}
    # The largest is of all time, which only means that the highest bin is not cut off at it.
    times = Sketch(bins, max(0, has.zeros - had.zeros), max(0.0, has.total - had.total), has.largest)
    a, b = now.gauges, before.gauges
    return DevicePoint(
        at,
        float(level.length_s),
        deployment,
        digest,
        now.requests - before.requests,
        now.errors - before.errors,
        times.quantile(0.5),
        times.quantile(0.95),
        _mean(a.psi_count - b.psi_count, a.psi_total - b.psi_total),
        _mean(a.memory_count - b.memory_count, a.memory_total - b.memory_total),
        _mean(a.temperature_count - b.temperature_count, a.temperature_total - b.temperature_total),
    )
