"""Devices by filter, in pages: what `fleet.rules.filters` asks for, as SQL.

Always true
 1. A page costs its own rows, and at most one pass over narrow columns of the others; no device outside of it is loaded.
 2. A page begins behind the (value, name) that the page before ended with, so devices that come, go or change between
    two pages neither repeat one that stayed where it was nor hide it.
"""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Integer,
    String,
    and_,
    asc,
    cast,
    desc,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB

from edgekit.errors import UsageError
from fleet.rules import facts, filters
from fleet.rules.boolean import Algebra, fold
from fleet.rules.filters import FieldHas, Filter, LabelHas, OfField, OfLabel, Seen, Sort
from fleet.server.schema import bundles, desired, devices, members
from fleet.server.store import devices as device_store
from fleet.server.store.devices import DeviceRow
from fleet.server.store.upsert import is_postgresql

Condition = ColumnElement[bool]
_BUILT_IN = {"device": devices.c.id, "profile": devices.c.profile}
_FACTS = ("state", "release", "model", "version", "condition")
_FLAGS: dict[str, ColumnElement[Any]] = {
    "online": devices.c.is_online,
    "enrolled": devices.c.enrolment > 0,
    "duplicate": devices.c.is_duplicate,
}


class Wanted(NamedTuple):
    """What is looked for, in which order; `now` is steady. `also` is what must hold besides."""

    where: Filter
    sort: Sort
    now: float
    also: Condition = true()


class Page(NamedTuple):
    """`after` is where the next page begins; empty where there is none."""

    rows: list[DeviceRow]
    after: str


def page(connection: Connection, wanted: Wanted, after: str, limit: int) -> Page:
    """Devices in service. Raises: UsageError if `after` is not what a page said."""
    sql = _Sql(connection, wanted.now)
    value = sql.value(wanted.sort)
    query = select(devices.c.id, value).where(sql.condition(wanted.where), wanted.also)
    if after:
        query = query.where(_behind(wanted.sort, value, after))
    turn = desc if wanted.sort.is_descending else asc
    some = connection.execute(query.order_by(turn(value), turn(devices.c.id)).limit(limit + 1)).all()
    found = some[:limit]
    # Whole rows only of these: a sort would carry them all along.
    whole = {row.id: row for row in device_store.some(connection, [name for name, _ in found])}
    last = _place(wanted.sort, found[-1][1], found[-1][0]) if len(some) > limit else ""
    return Page([whole[name] for name, _ in found], last)


def condition(connection: Connection, where: Filter, now: float = 0.0) -> Condition:
    """What holds of the devices in service that a filter finds; `now` is steady."""
    return _Sql(connection, now).condition(where)


def count(connection: Connection, wanted: Wanted) -> int:
    """How many there are in all pages."""
    query = select(func.count()).select_from(devices)
    found = connection.execute(query.where(_Sql(connection, wanted.now).condition(wanted.where)))
    return int(found.scalar_one())


def label_names(connection: Connection, within: Filter) -> Sequence[str]:
    """The labels that these devices carry."""
    if is_postgresql(connection):
        keys = func.json_object_keys(cast(devices.c.labels, JSON)).table_valued("key").render_derived()
    else:
        keys = func.json_each(devices.c.labels).table_valued("key")
    query = select(keys.c.key).distinct().select_from(devices).join(keys, true())
    return list(connection.execute(query.where(_Sql(connection, 0.0).condition(within))).scalars())


def _place(sort: Sort, value: Any, name: str) -> str:
    """Where a page ended: a name where the order is by name, else the value with it."""
    if sort.by == "device":
        return name
    return base64.urlsafe_b64encode(msgspec.json.encode((value, name))).decode().rstrip("=")


def _behind(sort: Sort, value: ColumnElement[Any], after: str) -> Condition:
    """Raises: UsageError."""
    if "\0" in after:
        # PostgreSQL takes none, and no name has one.
        raise UsageError(f"after: {after[:40]!r} is not where a page sorted by {sort.text} ended")
    if sort.by == "device":
        return devices.c.id < after if sort.is_descending else devices.c.id > after
    try:
        data = base64.b64decode(after + "=" * (-len(after) % 4), altchars=b"-_", validate=True)
        was, name = msgspec.json.decode(data, type=tuple[float | str, str])
    except ValueError as error:
        raise UsageError(f"after: {after[:40]!r} is not where a page sorted by {sort.text} ended") from error
    if isinstance(was, str) is not isinstance(value.type.python_type(), str) or "\0" in f"{was}{name}":
        raise UsageError(f"after: {after[:40]!r} is of another order than {sort.text}")
    here, there = tuple_(value, devices.c.id), tuple_(literal(was, value.type), literal(name))
    return here < there if sort.is_descending else here > there


class _Sql:
    """Conditions and values for one connection's dialect. None of them is ever NULL, so that `not` is its opposite."""

    def __init__(self, connection: Connection, now: float) -> None:
        self._is_postgresql = is_postgresql(connection)
        self._now = now

    def condition(self, where: Filter) -> Condition:
        means: Algebra[filters.Test, Condition] = Algebra(true(), self._test, not_, and_, or_)
        return and_(devices.c.decommissioned_at.is_(None), fold(where, means))

    def value(self, sort: Sort) -> ColumnElement[Any]:
        if sort.is_label:
            return self._label(sort.by)
        values: dict[str, ColumnElement[Any]] = {
            "device": devices.c.id,
            "profile": devices.c.profile,
            "online": cast(devices.c.is_online, Integer),
            "last_seen": func.coalesce(devices.c.last_seen_at, 0.0),
            "state": devices.c.gravity,
            "agent": devices.c.agent_version,
        }
        return values[sort.by]

    def _test(self, test: filters.Test) -> Condition:
        match test:
            case OfLabel(label, values):
                return self._label(label).in_(sorted(values))
            case LabelHas(label, text):
                return self._has(func.lower(self._label(label)), text.lower())
            case FieldHas(_, text):
                return self._has(func.lower(devices.c.trouble), text.lower())
            case Seen(than, seconds):
                seen = func.coalesce(devices.c.last_seen_at, 0.0)
                limit = self._now - seconds
                return seen >= limit if than == "<" else seen < limit
            case OfField(field, values):
                return or_(*(self._field(field, value) for value in sorted(values)))

    def _field(self, field: str, value: str) -> Condition:
        if field in _FACTS:
            return self._fact(field, value)
        if field in _FLAGS:
            return _FLAGS[field] == true()
        match field:
            case "refused":
                return self._fact("refused", "yes")
            case "agent":
                return devices.c.agent_version == value
            case "deployment":
                return self._has(devices.c.deployments, msgspec.json.encode(value).decode())
            case "rollout":
                of_it = members.c.device == devices.c.id, members.c.rollout == int(value.removeprefix("r"))
                return select(members.c.device).where(*of_it).exists()
            case "behind":
                it = literal("\nat=") + desired.c.deployment + " " + desired.c.sha256 + "\n"
                return self._desired(not_(self._has(devices.c.facts, it)))
            case "wanted":
                name, _, version = value.partition("@")
                bundle = select(bundles.c.sha256).where(bundles.c.name == name, bundles.c.version == version)
                return self._desired(desired.c.sha256.in_(bundle))
        raise AssertionError(field)

    def _desired(self, that: Condition) -> Condition:
        """Whether something is ordered of the device for which this holds."""
        return select(desired.c.device).where(desired.c.device == devices.c.id, that).exists()

    def _fact(self, key: str, value: str) -> Condition:
        return self._has(devices.c.facts, facts.line(key, value))

    def _has(self, text: ColumnElement[str], part: str | ColumnElement[str]) -> Condition:
        """Whether a text has this in it, letter by letter."""
        where = func.strpos(text, part) if self._is_postgresql else func.instr(text, part)
        return where > 0

    def _label(self, label: str) -> ColumnElement[Any]:
        """Its value, empty for a device that has no such label."""
        if label in _BUILT_IN:
            return _BUILT_IN[label]
        if self._is_postgresql:
            found: ColumnElement[Any] = cast(devices.c.labels, JSONB)[label].astext
        else:
            found = func.json_extract(devices.c.labels, f'$."{label}"')
        return type_coerce(func.coalesce(found, ""), String)
