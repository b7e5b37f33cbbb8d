"""Gathering what a rollout's gates are judged on from the stored windows."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from edgekit.sketch import merge
from fleet.rules.cohorts import Cohorts, DeviceData, Past
from fleet.rules.members import Member
from fleet.rules.rollout import Rollout
from fleet.server.store import telemetry
from fleet.server.store.devices import DeviceRow
from fleet.server.store.telemetry import Window

PAST_WINDOWS = 60
# Windows after a stage opens whose latency is that of a cold start; a comparison with control can afford to wait.
COLD_WINDOWS = 1
COLD_WINDOWS_COMPARED = 6
SILENT_WINDOWS = 3
_SILENT_AT_LEAST_S = 5.0
_USUAL_WINDOW_S = 60.0

Pasts = dict[str, Past]


def gather(
    connection: Connection,
    rollout: Rollout,
    rows: Mapping[str, DeviceRow],
    pasts: Pasts,
    *,
    heard_since: float,
    now: float,
) -> Cohorts:
    """Both cohorts since the stage opened. `heard_since`: before it the fleet itself was deaf. `pasts` is a cache."""
    assert rollout.judged_from is not None
    by_device: dict[str, list[Window]] = defaultdict(list)
    for window in telemetry.since(connection, rollout.spec.deployment, rollout.judged_from.timestamp()):
        by_device[window.device].append(window)
    canary = [m for m in rollout.members.values() if m.order_counter]
    control = [m for m in rollout.members.values() if not m.order_counter and m.previous]
    compares = any(gate.is_relative for gate in rollout.spec.gates)
    if compares:
        _look_back(connection, rollout, (*canary, *control), pasts)
    cold = COLD_WINDOWS_COMPARED if compares else COLD_WINDOWS
    heard = [m for m in canary if m.notified_at is not None]
    quiet = {device for device, row in rows.items() if _is_silent(row, rollout, heard_since, now)}
    return Cohorts(
        canary=tuple(_data(m, m.target, by_device[m.device], cold, pasts) for m in canary),
        control=tuple(_data(m, m.previous, by_device[m.device], cold, pasts) for m in control),
        silent=frozenset(m.device for m in heard if m.device in quiet),
        control_silent=sum(m.device in quiet for m in control),
        control_total=len(control),
    )


def _data(member: Member, digest: str | None, found: Iterable[Window], cold: int, pasts: Pasts) -> DeviceData:
    own = [window for window in found if window.digest == digest]
    return DeviceData(
        device=member.device,
        profile=member.profile,
        windows=len(own),
        warm_windows=max(0, len(own) - cold),
        requests=sum(window.requests for window in own),
        errors=sum(window.errors for window in own),
        infer_ms=merge(window.infer_ms for window in own[cold:]),
        past=pasts.get(member.device),
    )


def _look_back(connection: Connection, rollout: Rollout, members: Iterable[Member], pasts: Pasts) -> None:
    """Fill in the past of devices that have one: it ends where the stage opened, so it never changes after."""
    assert rollout.stage_opened_at is not None
    moment = rollout.stage_opened_at.timestamp()
    for member in members:
        if member.device in pasts or member.previous is None:
            continue
        found = telemetry.last_before(
            connection,
            member.device,
            rollout.spec.deployment,
            member.previous,
            moment=moment,
            limit=PAST_WINDOWS,
        )
        pasts[member.device] = Past(
            windows=len(found),
            requests=sum(window.requests for window in found),
            errors=sum(window.errors for window in found),
            infer_ms=merge(window.infer_ms for window in found),
        )


def _is_silent(row: DeviceRow, rollout: Rollout, heard_since: float, now: float) -> bool:
    """No report for three of its windows, counted from when a report could have been heard."""
    assert rollout.stage_opened_at is not None
    patience = max(_SILENT_AT_LEAST_S, SILENT_WINDOWS * (row.window_s or _USUAL_WINDOW_S))
    last = max(row.last_report_at or 0.0, heard_since, rollout.stage_opened_at.timestamp())
    return bool(now - last > patience)
