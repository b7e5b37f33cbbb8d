"""Which devices something is new about: what a tick needs to look at.

Always true
 1. The note is written in the transaction that makes the news, so whoever reads it sees the news.
 2. However long nobody reads, the notes stay bounded: too many are replaced by one that says "anyone".
"""

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, delete, func, insert, select

from fleet.server.schema import changes

_MOST = 5_000
_LOOK_EVERY = 64


def note(connection: Connection, devices: Collection[str]) -> None:
    """Something is new about these devices."""
    if not devices:
        return
    text = msgspec.json.encode(sorted(devices)).decode()
    number = connection.execute(insert(changes).values(devices=text).returning(changes.c.id)).scalar_one()
    if number % _LOOK_EVERY == 0:
        count = connection.execute(select(func.count()).select_from(changes)).scalar_one()
        if count > _MOST:
            connection.execute(delete(changes).where(changes.c.id < number))
            connection.execute(insert(changes).values(devices="[]"))


def anyone(connection: Connection) -> None:
    """Something may be new about any device."""
    connection.execute(insert(changes).values(devices="[]"))


def take(connection: Connection) -> set[str] | None:
    """The devices of all notes, which are gone then; None if it may be any."""
    if connection.execute(select(changes.c.id).limit(1)).scalar() is None:
        return set()
    found: set[str] = set()
    is_anyone = False
    for text in connection.execute(delete(changes).returning(changes.c.devices)).scalars():
        some = msgspec.json.decode(text, type=list[str])
        is_anyone = is_anyone or not some
        found.update(some)
    return None if is_anyone else found
