"""The audit log: append-only, each entry carrying the hash of the one before it.

Editing or removing an entry breaks every hash after it; `first_broken` finds where.
"""

import hashlib

import msgspec
from sqlalchemy import Connection, insert, select, text

from fleet.server.schema import audit

GENESIS = "0" * 64


def append(  # noqa: PLR0917  # who did what to what, in the order of the sentence
    connection: Connection, now: float, actor: str, action: str, subject: str, detail: str = ""
) -> None:
    """Record one change, in the same transaction as the change itself."""
    if connection.dialect.name == "postgresql":
        # Two appenders must not both follow the same entry.
        connection.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))
    last = connection.execute(select(audit.c.hash).order_by(audit.c.id.desc()).limit(1)).scalar()
    previous = last or GENESIS
    connection.execute(
        insert(audit).values(
            at=now,
            actor=actor,
            action=action,
            subject=subject,
            detail=detail,
            previous=previous,
            hash=_hash(previous, now, (actor, action, subject, detail)),
        )
    )


def first_broken(connection: Connection) -> int | None:
    """The id of the first entry that does not follow from the one before it; None if the chain holds."""
    previous = GENESIS
    for row in connection.execute(select(audit).order_by(audit.c.id)):
        expected = _hash(previous, row.at, (row.actor, row.action, row.subject, row.detail))
        if row.previous != previous or row.hash != expected:
            return int(row.id)
        previous = row.hash
    return None


def _hash(previous: str, at: float, words: tuple[str, str, str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode([previous, repr(at), *words])).hexdigest()
