"""What changed, for whoever watches: rows that say of which kind and which ones, never how (`fleet.server.events`).

Always true
 1. A row is written in the transaction that makes the change: whoever reads it sees the change.
 2. Their number is bounded, however much changes and however few watch.
"""

from collections.abc import Collection, Mapping

import msgspec
from sqlalchemy import Connection, delete, func, insert, select

from fleet.api.events import MOST_IDS, EventKind
from fleet.server.schema_api import events

_KEPT = 8192
_LOOK_EVERY = 256
# What an entry of the audit log is about, by the first word of its action; the others concern nobody who watches.
_KINDS: Mapping[str, EventKind] = {
    "alert": "alert",
    "assignment": "fleet",
    "batch": "device",
    "bundle": "release",
    "device": "device",
    "experiment": "experiment",
    "fleet": "fleet",
    "metadata": "release",
    "release": "release",
    "rollout": "rollout",
    "token": "fleet",
    "user": "fleet",
}
# Kinds whose ids are what the log calls the subject.
_NAMED = ("device.", "rollout.", "experiment.", "alert.")


def note(connection: Connection, kind: EventKind, ids: Collection[str] = ()) -> None:
    """Something changed about these; with none, or too many to name, about any of that kind."""
    named = sorted(set(ids)) if len(ids) <= MOST_IDS else []
    text = msgspec.json.encode(named).decode()
    number = connection.execute(
        insert(events).values(kind=kind, ids=text).returning(events.c.id)
    ).scalar_one()
    if number % _LOOK_EVERY == 0:
        connection.execute(delete(events).where(events.c.id <= number - _KEPT))


def note_entry(connection: Connection, action: str, subject: str) -> None:
    """The same for what the audit log says."""
    kind = _KINDS.get(action.partition(".")[0])
    if kind is not None:
        note(connection, kind, [subject] if action.startswith(_NAMED) else ())


def bounds(connection: Connection) -> tuple[int, int]:
    """(oldest, newest) number; (1, 0) while there is none."""
    oldest, newest = connection.execute(select(func.min(events.c.id), func.max(events.c.id))).one()
    return (int(oldest), int(newest)) if newest is not None else (1, 0)


def after(connection: Connection, number: int, limit: int) -> list[tuple[int, str, str]]:
    """(id, kind, ids) of the rows above a number, in order."""
    query = select(events.c.id, events.c.kind, events.c.ids).where(events.c.id > number)
    rows = connection.execute(query.order_by(events.c.id).limit(limit))
    return [(row.id, row.kind, row.ids) for row in rows]
