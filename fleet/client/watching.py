"""A rollout as it goes on: one look after another, and what each comes to in words.

Always true
 1. A service that is away for a while ends no watch: the figures stay, and it is said since when they stand.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from edgekit.errors import FleetError
from fleet import api
from fleet.api.history import ArmPoint
from fleet.client.rest import Client
from fleet.client.spans import span
from fleet.client.transport import AwayError
from fleet.client.views import counts

# A watch ends here.
ENDS = ("completed", "rolled_back", "aborted", "paused")
MOVING = ("notified", "fetching", "staged", "probation", "rolling_back")
AT_REST = ("pending", "succeeded", *MOVING)
_LOOK_S = 0.5
# Canary and control change by the minute.
_HISTORY_S = 10.0


@dataclass(frozen=True)
class Look:
    """`away_since` is when the service was last heard, where it does not answer now; `is_last` ends the watch."""

    rollout: api.RolloutView
    arms: tuple[ArmPoint, ...] = ()
    away_since: datetime | None = None
    is_last: bool = False


def looks(client: Client, rollout_id: str, timeout_s: float | None) -> Iterator[Look]:
    """The rollout every half second, until it ends or pauses, or the time is over."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    look, heard = Look(client.rollout(rollout_id)), datetime.now(UTC)
    asked_at = -_HISTORY_S
    while True:
        if look.away_since is None and time.monotonic() - asked_at >= _HISTORY_S:
            asked_at = time.monotonic()
            look = replace(look, arms=_arms(client, rollout_id, look))
        is_over = deadline is not None and time.monotonic() >= deadline
        look = replace(look, is_last=is_over or look.rollout.status in ENDS)
        yield look
        if look.is_last:
            return
        time.sleep(_LOOK_S)
        try:
            look, heard = (
                replace(look, rollout=client.rollout(rollout_id), away_since=None),
                datetime.now(UTC),
            )
        except AwayError:
            look = replace(look, away_since=heard)


def _arms(client: Client, rollout_id: str, look: Look) -> tuple[ArmPoint, ...]:
    """Of the newest stage that has some; what was known where the service does not say."""
    with contextlib.suppress(FleetError):
        points = client.rollout_history(rollout_id)
        newest = max((point.stage for point in points), default=0)
        return tuple(point for point in points if point.stage == newest)
    return look.arms


def elapsed(found: api.RolloutView, now: datetime) -> str:
    return span((now - found.created).total_seconds())


def waits(found: api.RolloutView, now: datetime, *, is_live: bool = True) -> list[str]:
    """What it waits for, the next thing first; where it `is_live` also how long still."""
    if found.status == "queued":
        return [found.reason or "waits for other rollouts of the same devices to end"]
    if found.status == "paused":
        why = found.reason or "by a person"
        resume, abort = (f"'edgekit fleet rollout {verb} {found.id}'" for verb in ("resume", "abort"))
        return [f"paused: {why}; go on with {resume}, or give up with {abort}"]
    if found.status in ("rolling_back", "aborting"):
        left = sum(found.counts.get(state, 0) for state in MOVING)
        return [f"{left} devices are on their way back"] if left else ["devices go back"]
    return _of_running(found, now, is_live=is_live) if found.status == "running" else []


def _of_running(found: api.RolloutView, now: datetime, *, is_live: bool) -> list[str]:
    told = []
    if found.awaits is not None:
        told.append(f"stage {found.awaits} waits for approval: edgekit fleet rollout approve {found.id}")
    moving = {state: found.counts[state] for state in MOVING if found.counts.get(state)}
    if moving:
        told.append(f"waits for {_devices(sum(moving.values()))} to settle: {counts(moving)}")
    if found.waiting:
        told.append(f"{_devices(found.waiting)} of this stage wait for their turn")
    if found.held_profiles:
        told.append(f"held: {', '.join(found.held_profiles)}")
    if found.soak_ends is not None:
        left_s = (found.soak_ends - now).total_seconds()
        word = "soaks until" if left_s > 0 else "has soaked since"
        left = f", another {span(left_s)}" if is_live and left_s > 0 else ""
        told.append(f"{word} {found.soak_ends:%H:%M:%S} UTC{left}")
    told += [f"gate {gate.gate}: {gate.words}" for gate in found.gates if gate.outcome != "satisfied"]
    return told or ([found.reason] if found.reason else ["waits for its devices' first reports"])


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def arm_lines(arms: tuple[ArmPoint, ...]) -> list[str]:
    """The newest interval of canary and of control, a line each."""
    newest = {point.arm: point for point in sorted(arms, key=lambda point: point.at)}
    return [
        f"{arm}: {errors(newest[arm])}, {p95(newest[arm])}" for arm in ("canary", "control") if arm in newest
    ]


def errors(point: ArmPoint) -> str:
    shares = f"{point.error_low:.2%} to {point.error_high:.2%}"
    return (
        f"errors {point.error_share:.2%} ({shares}) of {point.requests} requests on {_devices(point.devices)}"
    )


def p95(point: ArmPoint) -> str:
    if point.p95_ms is None:
        return "no latency yet"
    if point.p95_low is None or point.p95_high is None:
        return f"p95 {point.p95_ms:.3g} ms"
    return f"p95 {point.p95_ms:.3g} ms ({point.p95_low:.3g} to {point.p95_high:.3g})"
