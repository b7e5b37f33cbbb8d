"""Keeping the past bounded: minutes are drawn together to hours, hours to days, and days go in the end.

Always true
 1. Each call changes a bounded number of rows in the caller's transaction; what is left is for the next one.
 2. Drawing together loses and doubles nothing, wherever it stops and whatever comes late: sums are added to those that
    are there. Only the controller does it, so nobody adds to the same row meanwhile.
 3. Of a device's day stays what it had done by its end: what lies between is the difference of two days.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, insert, select, update

from fleet.rules import history as rules
from fleet.rules.history import Level
from fleet.rules.retention import Kept
from fleet.server.schema_history import arm_history, device_history, release_history
from fleet.server.store import history
from fleet.server.store.upsert import among

# Rows that one call draws together; devices whose day it thins; rows that it drops.
AT_ONCE, DEVICES_AT_ONCE, DROPPED_AT_ONCE = 1000, 500, 5000


@dataclass(frozen=True)
class _Kind:
    """A table whose rows are sums. `beside` adds two of one minute, `after` those that follow each other."""

    table: Table
    keys: tuple[str, ...]
    unpack: Callable[[bytes], Any]
    beside: Callable[[Any, Any], Any]
    after: Callable[[Any, Any], Any]


_KINDS = (
    _Kind(arm_history, ("rollout", "stage", "arm"), history.arm_sums, rules.beside, rules.after),
    _Kind(release_history, ("deployment", "digest"), history.release_sums, rules.together, rules.together),
)


def roll(connection: Connection, kept: Kept, now: float) -> bool:
    """Draw together what is old enough (`now` is wall time); whether there may be more."""
    edges = (
        (Level.PART, Level.MINUTE, Level.MINUTE.begin(now)),
        (Level.MINUTE, Level.HOUR, Level.HOUR.begin(now - kept.minutes_s)),
        (Level.HOUR, Level.DAY, Level.DAY.begin(now - kept.hours_s)),
    )
    has_more = False
    for kind in _KINDS:
        for level, into, edge in edges:
            has_more |= _draw(connection, kind, level, into, edge)
        has_more |= _drop(connection, kind.table, Level.DAY, Level.DAY.begin(now - kept.days_s))
    return has_more


def thin(connection: Connection, kept: Kept, now: float) -> bool:
    """Devices' hours of one old day become a day, for some of them; whether there may be more."""
    table, edge = device_history, Level.DAY.begin(now - kept.device_hours_s)
    is_old_hour = and_(table.c.level == Level.HOUR.value, table.c.at < edge)
    oldest = connection.execute(select(table.c.at).where(is_old_hour).order_by(table.c.at).limit(1)).scalar()
    has_more = oldest is not None
    if oldest is not None:
        day = Level.DAY.begin(oldest)
        is_of_day = and_(table.c.at >= day, table.c.at < day + Level.DAY.length_s)
        some = select(table.c.device).where(table.c.level == Level.HOUR.value, is_of_day)
        names = set(connection.execute(some.order_by(table.c.at).limit(DEVICES_AT_ONCE)).scalars())
        query = select(table.c.id, table.c.device, table.c.deployment, table.c.digest, table.c.level)
        query = query.where(among(connection, table.c.device, sorted(names)), is_of_day)
        # A day's row stands at its beginning, and yet is older than what came late.
        rows = connection.execute(query.order_by(table.c.at, table.c.id)).all()
        last = {(row.device, row.deployment, row.digest): row.id for row in rows}
        kept_ids = set(last.values())
        _delete(connection, table, [row.id for row in rows if row.id not in kept_ids])
        change = update(table).where(table.c.id == bindparam("the_id"))
        connection.execute(
            change.values(level=Level.DAY.value, at=day), [{"the_id": one} for one in sorted(kept_ids)]
        )
    return has_more | _drop(connection, table, Level.DAY, Level.DAY.begin(now - kept.device_days_s))


def _draw(connection: Connection, kind: _Kind, level: Level, into: Level, edge: float) -> bool:
    """Rows of `level` before `edge` go into rows of the level above; whether there may be more."""
    table = kind.table
    query = select(table).where(table.c.level == level.value, table.c.at < edge)
    rows = connection.execute(query.order_by(table.c.at).limit(AT_ONCE)).all()
    if not rows:
        return False
    add = kind.beside if level is Level.PART else kind.after
    drawn: dict[tuple[Any, ...], Any] = {}
    gone = [row.id for row in rows]
    places = {into.begin(row.at) for row in rows}
    there = select(table).where(table.c.level == into.value, table.c.at.in_(sorted(places)))
    wanted = {_place(kind, row, into) for row in rows}
    for row in connection.execute(there):
        if (place := _place(kind, row, into)) in wanted:
            drawn[place] = kind.unpack(row.sums)
            gone.append(row.id)
    for row in rows:
        place, sums = _place(kind, row, into), kind.unpack(row.sums)
        drawn[place] = add(drawn[place], sums) if place in drawn else sums
    _delete(connection, table, gone)
    made = [
        dict(zip(kind.keys, place[:-1], strict=True))
        | {"level": into.value, "at": place[-1], "sums": history.packed(sums)}
        for place, sums in drawn.items()
    ]
    connection.execute(insert(table), made)
    return len(rows) == AT_ONCE


def _place(kind: _Kind, row: Any, into: Level) -> tuple[Any, ...]:
    return (*(getattr(row, key) for key in kind.keys), into.begin(row.at))


def _drop(connection: Connection, table: Table, level: Level, edge: float) -> bool:
    """Rows of a level before `edge` are gone; whether there may be more."""
    is_old = and_(table.c.level == level.value, table.c.at < edge)
    ids = list(connection.execute(select(table.c.id).where(is_old).limit(DROPPED_AT_ONCE)).scalars())
    _delete(connection, table, ids)
    return len(ids) == DROPPED_AT_ONCE


def _delete(connection: Connection, table: Table, ids: Sequence[int]) -> None:
    for start in range(0, len(ids), AT_ONCE):
        connection.execute(delete(table).where(table.c.id.in_(ids[start : start + AT_ONCE])))
