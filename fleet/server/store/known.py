"""Device rows that a transaction has locked, and what it is about to change of them."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select

from fleet.server.schema import devices
from fleet.server.store.upsert import among, change


class Known:
    """One locked row; changes are kept in memory until `write`."""

    def __init__(self, row: Any) -> None:
        self.id: str = row.id
        self.row = row
        self._row: dict[str, Any] = row._asdict()
        self.changed: dict[str, Any] = {}

    def get(self, column: str) -> Any:
        """The value as it will be after `write`."""
        return self.changed[column] if column in self.changed else self._row[column]

    def was(self, column: str) -> Any:
        """The value as it was read."""
        return self._row[column]

    def change(self, **values: Any) -> None:
        self.changed |= values


def lock(connection: Connection, names: Iterable[str], columns: Sequence[str] = ()) -> dict[str, Known]:
    """The devices of these names that there are, locked in the order of their names; whole, or some columns of them.

    Whoever locks more than one device does it by this function, in one call: two that lock in one order never wait for
    each other in a circle.
    """
    wanted = [devices.c[name] for name in columns] if columns else [devices]
    query = select(*wanted).where(among(connection, devices.c.id, sorted(set(names))))
    rows = connection.execute(query.order_by(devices.c.id).with_for_update())
    return {row.id: Known(row) for row in rows}


def write(connection: Connection, known: Iterable[Known]) -> None:
    """Write what was changed; devices that change the same columns in one statement."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in known:
        if one.changed:
            names = tuple(sorted(one.changed))
            groups.setdefault(names, []).append({"id": one.id, **one.changed})
            one.changed = {}
    for rows in groups.values():
        change(connection, devices, "id", rows)
