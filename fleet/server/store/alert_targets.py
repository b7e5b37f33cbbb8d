"""Whom alerts are told.

Always true
 1. What is secret about a target is kept sealed, and is in no answer, no log and no audit entry.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select

from edgekit.errors import ConflictError, NotFoundError
from fleet.api.alerts import NewTarget, TargetView
from fleet.server.schema_alerts import alert_targets, messages
from fleet.server.store import audit
from fleet.server.store.alerts import WAITING
from fleet.server.store.audit import Who

MAX_TARGETS = 20
TargetRow = Row[Any]
_EVENTS = msgspec.json.Decoder(tuple[str, ...])


def add(connection: Connection, wanted: NewTarget, shown: str, sealed: str, *, now: float, who: Who) -> None:
    """Raises: ConflictError for a name that is taken, or too many."""
    names = set(connection.execute(select(alert_targets.c.name)).scalars())
    if wanted.name in names:
        raise ConflictError(
            f"there is a target {wanted.name!r} already; remove it first: edgekit fleet alert-targets remove {wanted.name}"
        )
    if len(names) >= MAX_TARGETS:
        raise ConflictError(f"there are {len(names)} targets, which is as many as may be")
    connection.execute(
        insert(alert_targets).values(
            name=wanted.name,
            kind=wanted.kind,
            shown=shown,
            sealed=sealed,
            severity=wanted.severity,
            events=msgspec.json.encode(wanted.events).decode(),
            created_at=now,
            created_by=who.name,
            last_error="",
        )
    )
    after = {"kind": wanted.kind, "where": shown, "severity": wanted.severity, "events": wanted.events}
    audit.append(connection, now, who, "alert-target.add", wanted.name, after=after)


def get(connection: Connection, name: str) -> TargetRow:
    """Raises: NotFoundError."""
    row = connection.execute(select(alert_targets).where(alert_targets.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no target {name[:60]!r}; 'edgekit fleet alert-targets list' shows them"
        )
    return row


def everything(connection: Connection) -> list[TargetRow]:
    return list(connection.execute(select(alert_targets).order_by(alert_targets.c.name)))


def remove(connection: Connection, name: str, *, now: float, who: Who) -> None:
    """With what it was still to be told. Raises: NotFoundError."""
    row = get(connection, name)
    connection.execute(delete(messages).where(messages.c.target == name))
    connection.execute(delete(alert_targets).where(alert_targets.c.name == name))
    before = {
        "kind": row.kind,
        "where": row.shown,
        "severity": row.severity,
        "events": _EVENTS.decode(row.events),
    }
    audit.append(connection, now, who, "alert-target.remove", name, before=before)


def listing(connection: Connection) -> list[TargetView]:
    counted = (
        select(messages.c.target, func.count()).where(messages.c.state == WAITING).group_by(messages.c.target)
    )
    waiting: dict[str, int] = {key: int(count) for key, count in connection.execute(counted)}
    return [
        TargetView(
            name=row.name,
            kind=row.kind,
            where=row.shown,
            severity=row.severity,
            events=_EVENTS.decode(row.events),  # type: ignore[arg-type]  # only these were stored
            created=_moment(row.created_at),
            created_by=row.created_by,
            last_sent=None if row.last_sent_at is None else _moment(row.last_sent_at),
            waiting=waiting.get(row.name, 0),
            last_error=row.last_error,
        )
        for row in everything(connection)
    ]


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
