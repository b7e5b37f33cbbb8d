"""Which charts a rollout, a device and a release have, from what the history keeps. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from fleet.api import ArmPoint, DevicePoint, ReleasePoint
from fleet.rules.gates import Gate
from fleet.rules.rollout import Rollout
from fleet.server.web.chart import Chart, Mark, Point, Series

P = TypeVar("P", DevicePoint, ReleasePoint)
# Of a goal: what its difference is called, its unit, and what it is multiplied by.
_DIFFERENCES = {
    "latency_mean": ("B takes longer than A by", "%", 100.0),
    "error_rate": ("Errors of B less those of A", "percentage points", 100.0),
}


class Noted(Protocol):
    """What was known of an experiment's difference at a moment."""

    at: float
    difference: float
    low: float
    high: float


_ARMS = (("canary", "new release", "new"), ("control", "old release", "old"))
# The gates that are about what a chart shows.
_OF_ERRORS, _OF_LATENCY = ("error_rate",), ("latency_p95",)


def of_rollout(points: Sequence[ArmPoint], head: Rollout) -> list[Chart]:
    """Errors and latency of the devices on the new release against those on the old one, from `ArmPoint`s."""
    if not points:
        return []
    marks = _stage_marks(points)
    errors = _arms(points, lambda p: (p.error_share, p.error_low, p.error_high) if p.requests else None)
    latency = _arms(points, lambda p: (p.p95_ms, p.p95_low, p.p95_high) if p.p95_ms is not None else None)
    found = []
    for title, unit, scale, series, names in (
        ("Errors per request", "%", 100.0, errors, _OF_ERRORS),
        ("Engine time, 95th percentile", "ms", 1.0, latency, _OF_LATENCY),
    ):
        gates = [gate for gate in head.spec.gates if gate.metric in names and not gate.at_least]
        lines = (*series, *_moving_limits(gates, series))
        found.append(Chart(title, unit, lines, marks, _limits(gates), scale, is_log=False))
    return [chart for chart in found if not chart.is_empty]


def _arms(
    points: Sequence[ArmPoint], values: Callable[[ArmPoint], tuple[float, float | None, float | None] | None]
) -> tuple[Series, ...]:
    return tuple(
        Series(
            name,
            css,
            [
                Point(p.at, p.length_s, *found)
                for p in points
                if p.arm == arm and (found := values(p)) is not None
            ],
        )
        for arm, name, css in _ARMS
    )


def _stage_marks(points: Sequence[ArmPoint]) -> tuple[Mark, ...]:
    first: dict[int, float] = {}
    for point in sorted(points, key=lambda p: p.at):
        first.setdefault(point.stage, point.at)
    return tuple(Mark(at, f"stage {stage + 1}") for stage, at in first.items() if stage >= 0)


def _limits(gates: Sequence[Gate]) -> tuple[tuple[float, str], ...]:
    return tuple((gate.limit, gate.text) for gate in gates if not gate.reference)


def _moving_limits(gates: Sequence[Gate], arms: tuple[Series, ...]) -> list[Series]:
    """What a gate allows against control, as a line that follows it."""
    control = arms[1].points
    found = []
    for gate in gates:
        if gate.is_relative and control:
            allowed = [
                Point(p.at, p.length_s, p.value + gate.limit if gate.is_added else p.value * gate.limit)
                for p in control
            ]
            found.append(Series(f"limit ({gate.text})", "limit", allowed))
    return found


def of_device(points: Sequence[DevicePoint], deployment: str, titles: Mapping[str, str]) -> list[Chart]:
    """A day of a deployment of a device, from `DevicePoint`s; what it never reported has no chart. `titles` by digest."""
    mine = sorted((p for p in points if p.deployment == deployment), key=lambda p: p.at)
    marks = _release_marks(mine, titles)
    return _some(
        Chart("Engine time", "ms", _latency(mine), marks),
        Chart("Errors per request", "%", (_one("errors", "one", mine, _error_share),), marks, scale=100.0),
        Chart("Drift of inputs (PSI)", "PSI", (_one("drift", "one", mine, lambda p: p.drift_psi),), marks),
        Chart("Memory of the device", "MB", (_one("memory", "one", mine, lambda p: p.memory_mb),), marks),
        Chart("Temperature", "°C", (_one("temperature", "one", mine, lambda p: p.temperature_c),), marks),
    )


def of_release(points: Sequence[ReleasePoint]) -> list[Chart]:
    """A release over all devices that run it, from `ReleasePoint`s."""
    mine = sorted(points, key=lambda p: p.at)
    return _some(
        Chart("Engine time", "ms", _latency(mine)),
        Chart("Errors per request", "%", (_one("errors", "one", mine, _error_share),), scale=100.0),
        Chart("Drift of inputs (PSI)", "PSI", (_one("drift", "one", mine, lambda p: p.drift_psi),)),
    )


def of_experiment(noted: Sequence[Noted], goal: str) -> list[Chart]:
    """The difference of B to A as it was known over time, with its confidence sequence."""
    if len(noted) < 2:
        return []
    title, unit, scale = _DIFFERENCES.get(
        goal.rsplit(maxsplit=1)[-1], ("B less A", goal.rsplit(maxsplit=1)[-1].removeprefix("metric:"), 1.0)
    )
    ends = [*(point.at for point in noted[1:]), noted[-1].at + 60.0]
    points = [
        Point(one.at, end - one.at, one.difference, one.low, one.high)
        for one, end in zip(noted, ends, strict=True)
    ]
    return [Chart(title, unit, (Series("difference", "new", points),), scale=scale, is_signed=True)]


def _some(*charts: Chart) -> list[Chart]:
    return [chart for chart in charts if not chart.is_empty]


def _latency(points: Sequence[P]) -> tuple[Series, ...]:
    return (
        _one("95th percentile", "new", points, lambda p: p.p95_ms),
        _one("median", "old", points, lambda p: p.p50_ms),
    )


def _one(name: str, css: str, points: Sequence[P], value: Callable[[P], float | None]) -> Series:
    return Series(
        name, css, [Point(p.at, p.length_s, found) for p in points if (found := value(p)) is not None]
    )


def _error_share(point: DevicePoint | ReleasePoint) -> float | None:
    return point.errors / point.requests if point.requests else None


def _release_marks(points: Sequence[DevicePoint], titles: Mapping[str, str]) -> tuple[Mark, ...]:
    """When the bundle changed."""
    found, last = [], None
    for point in points:
        if last is not None and point.digest != last:
            found.append(Mark(point.at, titles.get(point.digest, point.digest[:8] or "nothing")))
        last = point.digest
    return tuple(found)
