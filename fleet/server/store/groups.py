"""Which devices belong together: their labels, and whether what follows from them is to be looked at again.

Always true
 1. Who changes what decides over a device's place (labels, deployments, hardware, an assignment) marks it in the same
    transaction; the mark goes only when the controller has placed the device, so a freeze or a restart loses none.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from edgekit.errors import ConflictError, NotFoundError
from fleet.rules import placing
from fleet.server.schema import devices, to_place
from fleet.server.store import audit, news
from fleet.server.store import devices as device_store
from fleet.server.store.audit import Who
from fleet.server.store.upsert import among

BUILT_IN = ("device", "profile")
MAX_LABELS = 64


class Mark(NamedTuple):
    id: int
    device: str
    deployment: str


def check_free(labels: Collection[str]) -> None:
    """Raises: ConflictError if a label is one of the built-in names."""
    for reserved in BUILT_IN:
        if reserved in labels:
            raise ConflictError(
                f"label {reserved!r} is built in (it is the device's own); choose another name"
            )


def relabel(
    connection: Connection,
    device: str,
    changes: Mapping[str, str],
    gone: Sequence[str],
    *,
    now: float,
    who: Who,
) -> bool:
    """Set some labels and take some away; whether that changed anything.

    Raises: NotFoundError for a device or a label that is not there; ConflictError for a built-in name, or too many.
    """
    check_free([*changes, *gone])
    row = device_store.get(connection, device, lock=True)
    before = msgspec.json.decode(row.labels, type=dict[str, str])
    if missing := [name for name in gone if name not in before]:
        has = ", ".join(sorted(before)) or "none"
        raise NotFoundError(f"{device} has no label {missing[0]!r}; it has {has}")
    after = placing.relabelled(before, changes, gone)
    if len(after) > MAX_LABELS:
        raise ConflictError(f"{device} would have {len(after)} labels; at most {MAX_LABELS} are kept")
    if after == before:
        return False
    text = msgspec.json.encode(after).decode()
    connection.execute(update(devices).where(devices.c.id == device).values(labels=text))
    mark(connection, [device], device_store.deployments_of(row))
    news.note(connection, [device])
    audit.append(connection, now, who, "device.label", device, before=before, after=after)
    return True


def mark(connection: Connection, names: Sequence[str], deployments: Collection[str]) -> None:
    """What these deployments of these devices are to run is to be looked at again."""
    of_these = among(connection, to_place.c.device, names) & to_place.c.deployment.in_(deployments)
    connection.execute(delete(to_place).where(of_these))
    # A new row each: whoever settles what it read before leaves this one.
    rows = [{"device": name, "deployment": one} for name in sorted(names) for one in sorted(deployments)]
    if rows:
        connection.execute(insert(to_place), rows)


def mark_new(connection: Connection, some: Collection[tuple[str, str]]) -> None:
    """Mark these (device, deployment) where they are not marked yet."""
    if not some:
        return
    query = select(to_place.c.device, to_place.c.deployment)
    query = query.where(among(connection, to_place.c.device, sorted({device for device, _ in some})))
    new = set(some) - {(row.device, row.deployment) for row in connection.execute(query)}
    if new:
        rows = [{"device": device, "deployment": deployment} for device, deployment in sorted(new)]
        connection.execute(insert(to_place), rows)


def marked(connection: Connection, after: tuple[str, int], limit: int) -> list[Mark]:
    """Marks behind one (device, id), in order."""
    device, number = after
    place = (to_place.c.device > device) | ((to_place.c.device == device) & (to_place.c.id > number))
    query = select(to_place).where(place).order_by(to_place.c.device, to_place.c.id).limit(limit)
    return [Mark(row.id, row.device, row.deployment) for row in connection.execute(query)]


def marked_of(connection: Connection, names: Sequence[str], deployments: Sequence[str]) -> list[str]:
    """Which of these devices are marked for one of these deployments."""
    if connection.execute(select(to_place.c.id).limit(1)).scalar() is None:
        return []
    query = select(to_place.c.device).where(to_place.c.deployment.in_(deployments))
    query = query.where(among(connection, to_place.c.device, names))
    return sorted(set(connection.execute(query).scalars()))


def settle(connection: Connection, marks: Sequence[Mark]) -> None:
    if marks:
        gone = delete(to_place).where(to_place.c.id == bindparam("the_id"))
        connection.execute(gone, [{"the_id": mark.id} for mark in marks])
