"""Adding windows up, so that nobody has to keep them: a device's recent past, and what it did in an open stage.

Pure. Times are the fleet's steady seconds unless they say wall.

Always true
 1. A recent past covers the last `BLOCK` windows at least, where there were so many, and less than twice that.
 2. What a device did before the stage is judged, and what it says it did then but sent later, is in none of the
    stage's sums; its past is what was known before its first window of the stage.
 3. A window of a doubtful clock is in none of the sums.
"""

from datetime import datetime

import msgspec

from edgekit.sketch import merge
from edgekit.wire.messages import MAX_METRICS, DeploymentWindow, Moments
from fleet.rules.evidence import COLD_WINDOWS, SILENT_AT_LEAST_S, SILENT_WINDOWS, USUAL_WINDOW_S, Sums
from fleet.rules.history import Minute

BLOCK = 60
# What the clock of a device that is in order may be ahead of the fleet's.
SLACK_S = 60.0

# A time in which the fleet heard nobody.
Deaf = tuple[float, float]
NOT_DEAF: Deaf = (0.0, 0.0)
_NONE = Moments()


class Recent(msgspec.Struct, frozen=True, gc=False):
    """A device's newest windows on one bundle, in two blocks: the older one is whole, or empty."""

    older: Sums = Sums()
    newer: Sums = Sums()

    def all(self) -> Sums:
        return added(self.older, self.newer)

    def grown(self, window: DeploymentWindow) -> "Recent":
        newer = added(self.newer, sums_of(window))
        return Recent(newer) if newer.windows >= BLOCK else Recent(self.older, newer)


class Side(msgspec.Struct, frozen=True, gc=False):
    """What a device did in a stage on one bundle: `seen` windows in all, the first ones cold; `since` when the first
    that counts began; `minute` is for the history.
    """

    seen: int = 0
    since: float | None = None
    sums: Sums = Sums()
    minute: Minute = Minute()

    def grown(self, window: DeploymentWindow, began: float, cold_for_latency: int) -> "Side":
        seen = self.seen + 1
        if seen <= COLD_WINDOWS:
            return Side(seen)
        return Side(
            seen,
            began if self.since is None else self.since,
            added(self.sums, sums_of(window, is_warm=seen > cold_for_latency)),
            self.minute,
        )


class StageSums(msgspec.Struct, frozen=True, gc=False):
    """One device's row of an open stage: `moved` is on the target, `stayed` on what it ran before.

    It belongs to `judged_from`: a stage that is judged afresh begins with none.
    """

    judged_from: float
    is_at_risk: bool
    past: Sums | None = None
    moved: Side = Side()
    stayed: Side = Side()
    fell_silent_at: float | None = None


def sums_of(window: DeploymentWindow, *, is_warm: bool = True) -> Sums:
    if not is_warm:
        return Sums(1, window.requests, window.errors, metrics=window.metrics)
    return Sums(1, window.requests, window.errors, 1, window.infer_ms, window.metrics)


def added(one: Sums, other: Sums) -> Sums:
    if not one.windows:
        return other
    if not other.windows:
        return one
    return Sums(
        one.windows + other.windows,
        one.requests + other.requests,
        one.errors + other.errors,
        one.warm_windows + other.warm_windows,
        merge((one.infer_ms, other.infer_ms)),
        {name: _together(one, other, name) for name in sorted({*one.metrics, *other.metrics})[:MAX_METRICS]},
    )


def _together(one: Sums, other: Sums, name: str) -> Moments:
    a, b = one.metrics.get(name, _NONE), other.metrics.get(name, _NONE)
    return Moments(a.count + b.count, a.total + b.total)


def filed_at(
    started: datetime, length_s: float, *, clock_ok: bool, walls: tuple[float, ...], steady: float
) -> float | None:
    """When a window that arrives now ended; None if its clock is in doubt.

    `walls` are what the fleet takes the time to be: its wall clock, and that as it would be without steps since the
    service started. A window is old only if by every one that makes sense of it it is.
    """
    if not clock_ok:
        return None
    end = started.timestamp() + length_s
    lags = [wall - end for wall in walls if wall - end >= -SLACK_S]
    return steady - max(0.0, min(lags)) if lags else None


def patience_s(window_s: float | None) -> float:
    """How long no report may come before a device is silent."""
    return max(SILENT_AT_LEAST_S, SILENT_WINDOWS * (window_s or USUAL_WINDOW_S))


def quiet_s(start: float, end: float, deaf: Deaf) -> float:
    """Seconds from `start` to `end` in which the fleet could hear."""
    overlap = min(end, deaf[1]) - max(start, deaf[0])
    return max(0.0, end - start - max(0.0, overlap))


def is_at_risk(
    last_report_at: float | None, judged_from: float, window_s: float | None, deaf: Deaf = NOT_DEAF
) -> bool:
    """Whether a device was there when the stage began to be judged, as a report of it is taken in.

    `last_report_at` is the newest before that report; None for a device that speaks for the first time, which is there
    from now on: boards that join and get their first release are all there is to judge it by.
    """
    if last_report_at is None:
        return True
    return quiet_s(last_report_at, judged_from, deaf) <= patience_s(window_s)


def heard_again(
    sums: StageSums, last_report_at: float | None, now: float, window_s: float | None, deaf: Deaf
) -> StageSums:
    """A report arrives: if it missed too many windows before it, that is kept (the first time)."""
    if sums.fell_silent_at is not None or last_report_at is None:
        return sums
    start = max(last_report_at, sums.judged_from)
    if quiet_s(start, now, deaf) <= patience_s(window_s):
        return sums
    return msgspec.structs.replace(sums, fell_silent_at=start + patience_s(window_s))
