"""Shadows and their devices.

Always true
 1. A window is added to a device's row in the transaction that takes its report, once; the device is locked meanwhile.
 2. What a device is to compare stands in each of its orders as it stands here then; a change of that stands in `is_due`
    until its order is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, select, update

from edgekit.errors import NotFoundError
from edgekit.wire.messages import OrderedBundle, OrderedShadow
from fleet.rules.shadowing import Sums, added
from fleet.server.schema import bundles, desired
from fleet.server.schema_shadows import shadow_devices, shadows
from fleet.server.store.upsert import among

RUNNING, STOPPED, SERVED = "running", "stopped", "served"
ShadowRow = Row[Any]
_NOTHING = msgspec.json.encode(Sums()).decode()


def label(number: int) -> str:
    return f"h{number}"


def parse_id(text: str) -> int:
    """`h7` or `7`. Raises: NotFoundError."""
    digits = text.removeprefix("h")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise NotFoundError(
            f"{text[:40]!r} is no shadow's id; 'edgekit fleet shadow status' shows them (h1, h2, …)"
        )
    return int(digits)


def add(connection: Connection, values: Mapping[str, Any], devices: Mapping[str, str]) -> int:
    """Its number; `devices` have the digest of their bundle. Their orders are due."""
    number = int(connection.execute(select(func.coalesce(func.max(shadows.c.id), 0))).scalar_one()) + 1
    connection.execute(insert(shadows).values(id=number, status=RUNNING, reason="", **values))
    none = {"is_due": True, "compared": 0, "dropped": 0, "failed": 0, "sums": _NOTHING}
    rows = [
        {"shadow": number, "device": name, "sha256": sha256} | none
        for name, sha256 in sorted(devices.items())
    ]
    connection.execute(insert(shadow_devices), rows)
    return number


def get(connection: Connection, number: int, *, lock: bool = False) -> ShadowRow:
    """Raises: NotFoundError."""
    query = select(shadows).where(shadows.c.id == number)
    found = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if found is None:
        raise NotFoundError(f"there is no shadow {label(number)}; 'edgekit fleet shadow status' shows them")
    return found


def everything(connection: Connection) -> list[ShadowRow]:
    """Newest first."""
    return list(connection.execute(select(shadows).order_by(shadows.c.id.desc())))


def running(connection: Connection) -> list[ShadowRow]:
    return list(connection.execute(select(shadows).where(shadows.c.status == RUNNING).order_by(shadows.c.id)))


def rows_of(connection: Connection, number: int) -> list[Row[Any]]:
    query = select(shadow_devices).where(shadow_devices.c.shadow == number)
    return list(connection.execute(query.order_by(shadow_devices.c.device)))


def of_device(connection: Connection, device: str, limit: int) -> list[tuple[ShadowRow, Row[Any]]]:
    """The shadows that name it, the newest first, each with the device's own row."""
    query = select(shadow_devices).where(shadow_devices.c.device == device)
    rows = connection.execute(query.order_by(shadow_devices.c.shadow.desc()).limit(limit)).all()
    return [(get(connection, row.shadow), row) for row in rows]


def sums_of(row: Row[Any]) -> Sums:
    return msgspec.json.decode(row.sums, type=Sums)


def end(connection: Connection, number: int, status: str, reason: str) -> None:
    """No order says it any more, as soon as those that do are written anew."""
    connection.execute(update(shadows).where(shadows.c.id == number).values(status=status, reason=reason))
    connection.execute(update(shadow_devices).where(shadow_devices.c.shadow == number).values(is_due=True))


def busy(connection: Connection, deployment: str, devices: Sequence[str]) -> dict[str, int]:
    """Device → the running shadow that it has of the deployment."""
    query = select(shadow_devices.c.device, shadows.c.id)
    query = query.join(shadows, shadows.c.id == shadow_devices.c.shadow)
    query = query.where(shadows.c.status == RUNNING, shadows.c.deployment == deployment)
    rows = connection.execute(query.where(among(connection, shadow_devices.c.device, devices)))
    return {row.device: row.id for row in rows}


def ordered(connection: Connection, devices: Sequence[str]) -> dict[str, dict[str, OrderedShadow]]:
    """Device → deployment → what its orders say from now on. Not where that is what the deployment is to run."""
    query = (
        select(shadow_devices.c.device, shadows.c.deployment, shadows.c.share, bundles)
        .join(shadows, shadows.c.id == shadow_devices.c.shadow)
        .join(bundles, bundles.c.sha256 == shadow_devices.c.sha256)
        .outerjoin(desired, _is_desired())
        .where(shadows.c.status == RUNNING, desired.c.device.is_(None))
        .where(among(connection, shadow_devices.c.device, devices))
    )
    found: dict[str, dict[str, OrderedShadow]] = {}
    for row in connection.execute(query):
        target = f"{row.name}/{row.version}/{row.profile}/{row.sha256}.edgekit"
        bundle = OrderedBundle(target, row.sha256, row.length, row.peak_memory_mb)
        found.setdefault(row.device, {})[row.deployment] = OrderedShadow(bundle, row.share)
    return found


def _is_desired() -> Any:
    """That a shadow's device is to run its very bundle."""
    return and_(
        desired.c.device == shadow_devices.c.device,
        desired.c.deployment == shadows.c.deployment,
        desired.c.sha256 == shadow_devices.c.sha256,
    )


def is_served_everywhere(connection: Connection, number: int) -> bool:
    """Whether each of its devices is to run its bundle by now."""
    query = (
        select(shadow_devices.c.device)
        .join(shadows, shadows.c.id == shadow_devices.c.shadow)
        .outerjoin(desired, _is_desired())
        .where(shadow_devices.c.shadow == number, desired.c.device.is_(None))
    )
    return connection.execute(query.limit(1)).first() is None


def due(connection: Connection, limit: int) -> list[str]:
    """Devices whose orders are to say something else."""
    query = select(shadow_devices.c.device).where(shadow_devices.c.is_due).distinct().limit(limit)
    return list(connection.execute(query).scalars())


def written(connection: Connection, devices: Sequence[str]) -> None:
    theirs = among(connection, shadow_devices.c.device, devices)
    connection.execute(update(shadow_devices).where(theirs).values(is_due=False))


def forget(connection: Connection, device: str) -> None:
    """A device is deleted."""
    connection.execute(delete(shadow_devices).where(shadow_devices.c.device == device))


def record(connection: Connection, new: Iterable[Any]) -> None:
    """Add what reports say of shadows. `new` are `telemetry.Arrived`, their devices locked."""
    windows = [
        (item.known.id, window.shadow)
        for item in new
        for window in item.report.deployments
        if window.shadow is not None
    ]
    if not windows:
        return
    names = sorted({device for device, _ in windows})
    query = select(shadow_devices).join(shadows, shadows.c.id == shadow_devices.c.shadow)
    query = query.where(shadows.c.status == RUNNING, among(connection, shadow_devices.c.device, names))
    changes = []
    for row in connection.execute(query).all():
        own = [window for device, window in windows if (device, window.digest) == (row.device, row.sha256)]
        if not own:
            continue
        sums = sums_of(row)
        for window in own:
            sums = added(sums, window)
        changes.append(
            {
                "s": row.shadow, "d": row.device, "json": msgspec.json.encode(sums).decode(),
                "c": sum(window.compared for window in own), "n": sum(window.dropped for window in own),
                "f": sum(window.failed for window in own),
            }
        )  # fmt: skip
    if changes:
        table = shadow_devices.c
        change = update(shadow_devices).where(table.shadow == bindparam("s"), table.device == bindparam("d"))
        values = {
            "compared": table.compared + bindparam("c"), "dropped": table.dropped + bindparam("n"),
            "failed": table.failed + bindparam("f"), "sums": bindparam("json"),
        }  # fmt: skip
        connection.execute(change.values(**values), changes)
