"""Requests with an `Idempotency-Key`, and the sealed answers of those that succeeded (`fleet.server.api.repeats`)."""

from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from fleet.server.schema_api import repeats
from fleet.server.store.upsert import insert_into

LIFE_S = 86_400.0
# The newest that are kept in any case, and how often (one name in 256) it is looked whether there are more.
_KEPT = 10_000
_LOOK_IF = "00"


def begin(connection: Connection, name: str, request: str, now: float) -> Row[Any] | None:
    """Take a key for a request; what took it before (`request`, `sealed`), and None if nothing has."""
    connection.execute(delete(repeats).where(repeats.c.began_at < now - LIFE_S))
    if name.startswith(_LOOK_IF):
        newest = select(repeats.c.name).order_by(repeats.c.began_at.desc()).limit(_KEPT)
        connection.execute(delete(repeats).where(repeats.c.name.not_in(newest)))
    taken = insert_into(connection, repeats).values(name=name, request=request, began_at=now)
    if connection.execute(taken.on_conflict_do_nothing().returning(repeats.c.name)).scalar() is not None:
        return None
    return connection.execute(select(repeats).where(repeats.c.name == name)).one_or_none()


def keep(connection: Connection, name: str, sealed: bytes) -> None:
    connection.execute(update(repeats).where(repeats.c.name == name).values(sealed=sealed))


def forget(connection: Connection, name: str) -> None:
    connection.execute(delete(repeats).where(repeats.c.name == name))
