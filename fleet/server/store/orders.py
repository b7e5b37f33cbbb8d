"""Orders: the signed desired state of one device, and the outbox that carries the newest to the broker.

Always true
 1. A change of `desired`, the order that says so and its outbox row commit in one transaction.
 2. counter = max(last + 1, unix milliseconds): a restored database cannot fall behind what devices accepted.
 3. No bundle that is blocked becomes desired.
 4. The outbox holds one row per device, the newest; publishing it twice does no harm.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgekit.trust.dsse import ORDER_TYPE
from edgekit.wire.messages import Order, OrderedBundle, OrderOptions, encode
from fleet.publish import SigningKey, sign
from fleet.server.schema import bundles, desired, devices, orders, outbox
from fleet.server.store import blocked
from fleet.server.store import devices as device_store

LIFETIME_S = 30 * 86_400.0
DesiredRow = Row[Any]


@dataclass
class Issuer:
    """Who signs orders: the fleet's id and its online order key, which another one takes the place of while it runs."""

    fleet: str
    key: SigningKey


def desired_of(connection: Connection, device: str | None = None) -> dict[tuple[str, str], DesiredRow]:
    """(device, deployment) → what it is to run, with the bundle's own columns."""
    of_bundle = (
        bundles.c.name,
        bundles.c.version,
        bundles.c.profile,
        bundles.c.length,
        bundles.c.peak_memory_mb,
    )
    query = select(desired, *of_bundle).join(bundles, bundles.c.sha256 == desired.c.sha256)
    if device is not None:
        query = query.where(desired.c.device == device)
    return {(row.device, row.deployment): row for row in connection.execute(query)}


def has_any(connection: Connection, device: str) -> bool:
    """Whether the device was ever ordered anything."""
    query = select(devices.c.order_counter).where(devices.c.id == device)
    return bool(connection.execute(query).scalar())


def target_path(row: DesiredRow) -> str:
    return f"{row.name}/{row.version}/{row.profile}/{row.sha256}.edgekit"


def set_desired(
    connection: Connection, device: str, deployment: str, sha256: str | None, *, because: str, now: float
) -> None:
    """Change what one deployment is to run; None is no model. `issue` must follow in the same transaction.

    Raises: BlockedError for a bundle that is blocked.
    """
    if sha256 is not None:
        blocked.check(connection, sha256)
    connection.execute(delete(desired).where(desired.c.device == device, desired.c.deployment == deployment))
    if sha256 is not None:
        values = {"device": device, "deployment": deployment, "sha256": sha256}
        connection.execute(insert(desired).values(**values, because=because, set_at=now))


def issue(
    connection: Connection, issuer: Issuer, device: str, now: float, options: OrderOptions | None = None
) -> int:
    """Sign the device's present desired state as a new order, put it in the outbox, and return its counter."""
    row = device_store.get(connection, device, lock=True)
    counter = max(int(row.order_counter) + 1, int(now * 1000))
    issued = datetime.fromtimestamp(now, UTC)
    wanted = desired_of(connection, device)
    order = Order(
        fleet=issuer.fleet,
        device=device,
        enrolment=row.enrolment,
        deployments={deployment: _ordered(found) for (_, deployment), found in wanted.items()},
        counter=counter,
        issued=issued,
        expires=issued + timedelta(seconds=LIFETIME_S),
        options=options or OrderOptions(),
        added=device_store.added_of(row),
    )
    envelope = sign(encode(order), ORDER_TYPE, issuer.key)
    connection.execute(
        insert(orders).values(
            device=device,
            counter=counter,
            envelope=envelope,
            issued_at=now,
            expires_at=now + LIFETIME_S,
            keyid=issuer.key.keyid,
        )
    )
    connection.execute(delete(outbox).where(outbox.c.device == device))
    connection.execute(insert(outbox).values(device=device, counter=counter, payload=envelope))
    connection.execute(update(devices).where(devices.c.id == device).values(order_counter=counter))
    return counter


def _ordered(row: DesiredRow) -> OrderedBundle:
    return OrderedBundle(target_path(row), row.sha256, row.length, row.peak_memory_mb)


def unpublished(connection: Connection, limit: int) -> list[Row[Any]]:
    """Outbox rows that wait for the broker, oldest order first."""
    query = select(outbox).where(outbox.c.published_at.is_(None)).order_by(outbox.c.counter).limit(limit)
    return list(connection.execute(query))


def published(connection: Connection, counters: Mapping[str, int], now: float) -> None:
    """The broker has these; a row that a newer order replaced meanwhile stays unpublished."""
    for device, counter in counters.items():
        connection.execute(
            update(outbox)
            .where(outbox.c.device == device, outbox.c.counter == counter)
            .values(published_at=now)
        )


def publish_again(connection: Connection, devices_behind: Iterable[str] | None = None) -> None:
    """Put orders back into the outbox: those of some devices, or of all after the broker was away."""
    change = update(outbox).values(published_at=None)
    if devices_behind is None:
        connection.execute(change)
        return
    for device in devices_behind:
        connection.execute(change.where(outbox.c.device == device))


def published_before(connection: Connection, moment: float) -> set[str]:
    """Devices whose newest order went out before `moment`."""
    query = select(outbox.c.device).where(outbox.c.published_at < moment)
    return set(connection.execute(query).scalars())


def due_for_renewal(connection: Connection, now: float, limit: int) -> list[str]:
    """Devices whose newest order is past half its life, give or take a day so that they do not all come at once."""
    jitter_s = random.uniform(-0.5, 0.5) * 86_400  # noqa: S311  # spreads load, protects nothing
    query = (
        select(orders.c.device)
        .join(devices, (devices.c.id == orders.c.device) & (devices.c.order_counter == orders.c.counter))
        .where(orders.c.issued_at < now - LIFETIME_S / 2 + jitter_s)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def signed_by_another(connection: Connection, keyid: str, limit: int) -> list[str]:
    """Devices whose newest order another key has signed: their orders are to be signed again."""
    query = (
        select(orders.c.device)
        .join(devices, (devices.c.id == orders.c.device) & (devices.c.order_counter == orders.c.counter))
        .where(orders.c.keyid != keyid)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())
