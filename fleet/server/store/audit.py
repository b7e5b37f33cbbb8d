"""The audit log in the database: append-only, hash-chained, its newest hash signed from time to time (`fleet.audit`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, insert, select, text

from fleet import audit as rules
from fleet.audit import Head
from fleet.audit_entry import Entry
from fleet.server.schema_audit import audit, audit_heads
from fleet.server.store import events

_AT_ONCE = 1000


@dataclass(frozen=True)
class Who:
    """Who changes something: `user:NAME`, `token:NAME`, `device:NAME` or `fleet`, and the address they came from."""

    name: str
    origin: str = ""

    def __str__(self) -> str:
        return self.name


FLEET = Who("fleet")


def device(name: str, origin: str = "") -> Who:
    return Who(f"device:{name}", origin)


def append(  # noqa: PLR0917  # who did what to what, in the order of the sentence
    connection: Connection,
    now: float,
    who: Who,
    action: str,
    subject: str,
    detail: str = "",
    *,
    before: Any = None,
    after: Any = None,
) -> None:
    """Record one change, in the same transaction as the change itself. `before` and `after` are kept as JSON.

    A secret is never part of any of them.
    """
    if connection.dialect.name == "postgresql":
        # Two appenders must not both follow the same entry.
        connection.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))
    events.note_entry(connection, action, subject)
    last = connection.execute(select(audit.c.hash).order_by(audit.c.id.desc()).limit(1)).scalar()
    previous = last or rules.GENESIS
    was, is_now = _json(before), _json(after)
    words = (who.name, action, subject, detail)
    connection.execute(
        insert(audit).values(
            at=now,
            actor=who.name,
            action=action,
            subject=subject,
            detail=detail,
            before=was,
            after=is_now,
            origin=who.origin,
            previous=previous,
            hash=rules.digest(previous, now, words, (was, is_now, who.origin)),
        )
    )


def _json(value: Any) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()


def entries(connection: Connection, *, after: int = 0, limit: int | None = None) -> Iterator[Entry]:
    """Entries with an id above `after`, in order; read a page at a time."""
    left = limit
    while left is None or left > 0:
        page = _AT_ONCE if left is None else min(left, _AT_ONCE)
        query = select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(page)
        rows = connection.execute(query).all()
        yield from map(entry, rows)
        if len(rows) < page:
            return
        after = rows[-1].id
        left = None if left is None else left - page


def newest(connection: Connection, limit: int) -> list[Entry]:
    """The last entries, the newest first."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    return [entry(row) for row in connection.execute(query)]


def entry(row: Row[Any]) -> Entry:
    return Entry(
        row.id,
        row.at,
        row.actor,
        row.action,
        row.subject,
        row.detail,
        row.before,
        row.after,
        row.origin,
        row.previous,
        row.hash,
    )


def heads(connection: Connection) -> list[bytes]:
    """All signed heads, the oldest first."""
    return list(connection.execute(select(audit_heads.c.envelope).order_by(audit_heads.c.id)).scalars())


def newest_head(connection: Connection) -> bytes | None:
    query = select(audit_heads.c.envelope).order_by(audit_heads.c.id.desc()).limit(1)
    return connection.execute(query).scalar()


def add_head(connection: Connection, head: Head, envelope: bytes) -> None:
    connection.execute(
        insert(audit_heads).values(
            entry=head.entry, hash=head.hash, count=head.count, at=head.at, envelope=envelope
        )
    )
