"""Reports and their windows.

Always true
 1. A report counts once: its unique key is inserted in the same transaction as its windows.
 2. Idle windows are kept too, so that no traffic differs from no device.
"""

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.sketch import Sketch, merge
from edgekit.wire.messages import DeploymentWindow, Report
from fleet.server.schema import devices, reports, totals, windows
from fleet.server.store.devices import DeviceRow

KEEP_S = 14 * 86_400.0


class Window(msgspec.Struct, frozen=True):
    """One stored window of one deployment, `infer_ms` merged or not by the reader."""

    device: str
    digest: str
    received_at: float
    length_s: float
    requests: int
    errors: int
    infer_ms: Sketch


def record(connection: Connection, row: DeviceRow, report: Report, now: float) -> bool:
    """Store a report of this device; False if it was stored before (it is to be acknowledged all the same)."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = upsert(reports).values(
        device=row.id,
        enrolment=report.boot.enrolment,
        incarnation=report.boot.incarnation,
        nonce=report.boot.nonce,
        seq=report.seq,
        received_at=now,
    )
    # RETURNING, because a driver may leave the row count of ON CONFLICT unset (psycopg 3.3 does).
    is_new = (
        connection.execute(statement.on_conflict_do_nothing().returning(reports.c.seq)).scalar() is not None
    )
    if not is_new:
        return False
    values = [
        {
            "device": row.id,
            "deployment": window.deployment,
            "digest": window.digest,
            "received_at": now,
            "length_s": report.length_s,
            "is_clock_ok": report.clock_ok,
            "requests": window.requests,
            "errors": window.errors,
            "rejected_inputs": window.rejected_inputs,
            "worker_deaths": window.worker_deaths,
            "infer_ms": msgspec.json.encode(window.infer_ms).decode(),
        }
        for window in report.deployments
        if window.digest is not None
    ]
    if values:
        connection.execute(insert(windows), values)
    for window in report.deployments:
        if window.digest is not None:
            _add_up(connection, row.id, window, window.digest)
    connection.execute(
        update(devices)
        .where(devices.c.id == row.id)
        .values(last_report_at=now, last_seen_at=now, window_s=report.length_s)
    )
    return True


def _add_up(connection: Connection, device: str, window: DeploymentWindow, digest: str) -> None:
    key = (
        (totals.c.device == device) & (totals.c.deployment == window.deployment) & (totals.c.digest == digest)
    )
    before = connection.execute(select(totals).where(key)).one_or_none()
    if before is None:
        empty = {"device": device, "deployment": window.deployment, "digest": digest}
        sums = {"windows": 1, "requests": window.requests, "errors": window.errors}
        sketch = msgspec.json.encode(window.infer_ms).decode()
        connection.execute(insert(totals).values(**empty, **sums, infer_ms=sketch))
        return
    merged = merge((msgspec.json.decode(before.infer_ms, type=Sketch), window.infer_ms))
    connection.execute(
        update(totals)
        .where(key)
        .values(
            windows=totals.c.windows + 1,
            requests=totals.c.requests + window.requests,
            errors=totals.c.errors + window.errors,
            infer_ms=msgspec.json.encode(merged).decode(),
        )
    )


def totals_of(connection: Connection, device: str | None = None) -> dict[tuple[str, str, str], Row[Any]]:
    """(device, deployment, digest) → everything that was ever reported of it."""
    query = select(totals) if device is None else select(totals).where(totals.c.device == device)
    return {(row.device, row.deployment, row.digest): row for row in connection.execute(query)}


def since(connection: Connection, deployment: str, moment: float) -> list[Window]:
    """All windows of a deployment received after `moment`, oldest first."""
    query = (
        select(windows)
        .where(windows.c.received_at > moment, windows.c.deployment == deployment)
        .order_by(windows.c.id)
    )
    return [_window(row) for row in connection.execute(query)]


def last_before(
    connection: Connection, device: str, deployment: str, digest: str, *, moment: float, limit: int
) -> list[Window]:
    """The device's newest windows on `digest` up to `moment`."""
    query = (
        select(windows)
        .where(
            windows.c.device == device,
            windows.c.deployment == deployment,
            windows.c.received_at <= moment,
            windows.c.digest == digest,
        )
        .order_by(windows.c.received_at.desc())
        .limit(limit)
    )
    return [_window(row) for row in connection.execute(query)]


def prune(connection: Connection, now: float) -> None:
    """Drop what is older than two weeks: gates look back hours. The unique keys go too; spools are shorter."""
    connection.execute(delete(windows).where(windows.c.received_at < now - KEEP_S))
    connection.execute(delete(reports).where(reports.c.received_at < now - KEEP_S))


def _window(row: Row[Any]) -> Window:
    return Window(
        device=row.device,
        digest=row.digest,
        received_at=row.received_at,
        length_s=row.length_s,
        requests=row.requests,
        errors=row.errors,
        infer_ms=msgspec.json.decode(row.infer_ms, type=Sketch),
    )
