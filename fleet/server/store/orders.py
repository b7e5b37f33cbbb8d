"""Orders: the signed desired state of one device, and the outbox that carries the newest to the broker.

Always true
 1. A change of `desired`, the order that says so and its outbox row commit in one transaction.
 2. counter = max(last + 1, unix milliseconds, what a restore says): a restored database cannot fall behind what devices
    accepted, even by a clock that is slow.
 3. No bundle that is blocked becomes desired.
 4. The outbox holds one row per device, the newest; publishing it twice does no harm.
 5. What a device may keep of its inputs, and what it compares with what it serves, stands in each of its orders as it stands in the database then.
 6. An order that is only said again (renewed, signed by another key, for a new enrolment) asks for the same way of going
    about it as the one before; a retry is asked for once.
"""

import base64
import binascii
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, bindparam, delete, insert, select, update

from edgekit.errors import MessageError
from edgekit.trust.dsse import ORDER_TYPE, Envelope
from edgekit.wire.messages import Order, OrderedBundle, OrderedShadow, OrderOptions, decode, encode
from edgekit.wire.samples import SamplePolicy
from fleet.publish import SigningKey, sign
from fleet.server.schema import bundles, desired, devices, orders, outbox
from fleet.server.store import blocked, collecting, known, shadows
from fleet.server.store import devices as device_store
from fleet.server.store.known import Known
from fleet.server.store.upsert import among, upsert

LIFETIME_S = 30 * 86_400.0
DesiredRow = Row[Any]


@dataclass
class Issuer:
    """Who signs orders: the fleet's id and its online order key, which another one takes the place of while it runs.

    No counter is below `above`.
    """

    fleet: str
    key: SigningKey
    above: int = 0


def desired_of(
    connection: Connection, device: str | None = None, devices: Sequence[str] | None = None
) -> dict[tuple[str, str], DesiredRow]:
    """(device, deployment) → what it is to run, with the bundle's own columns: of all, of one, or of some devices."""
    query = _desired_query()
    names = [device] if device is not None else devices
    if names is not None:
        query = query.where(among(connection, desired.c.device, names))
    return {(row.device, row.deployment): row for row in connection.execute(query).all()}


def _desired_query() -> Select[Any]:
    of_bundle = (
        bundles.c.name,
        bundles.c.version,
        bundles.c.profile,
        bundles.c.length,
        bundles.c.peak_memory_mb,
    )
    return select(desired, *of_bundle).join(bundles, bundles.c.sha256 == desired.c.sha256)


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


def move(
    connection: Connection,
    issuer: Issuer,
    deployments: Sequence[str],
    wanted: Mapping[str, Sequence[str | None]],
    *,
    because: str,
    now: float,
    options: Mapping[str, OrderOptions] | None = None,
) -> dict[str, int]:
    """Change what these deployments of many devices are to run (device → a digest of each, None is no model), and order
    it, with one order a device; device → its counter. Those out of service get none. `options` as in `issue_all`.

    Raises: BlockedError for a bundle that is blocked.
    """
    for digest in sorted({sha256 for those in wanted.values() for sha256 in those if sha256 is not None}):
        blocked.check(connection, digest)
    found = known.lock(connection, wanted)
    rows = {device: row for device, row in found.items() if row.get("decommissioned_at") is None}
    theirs = among(connection, desired.c.device, sorted(rows))
    connection.execute(delete(desired).where(theirs, desired.c.deployment.in_(deployments)))
    values = [
        {"device": device, "deployment": deployment, "sha256": sha256, "because": because, "set_at": now}
        for device in rows
        for deployment, sha256 in zip(deployments, wanted[device], strict=True)
        if sha256 is not None
    ]
    if values:
        connection.execute(insert(desired), values)
    return issue_all(connection, issuer, rows, now, options)


def keep(connection: Connection, deployments: Sequence[str], names: Sequence[str], now: float) -> None:
    """These devices have what they have on purpose: nothing that was assigned until now takes its place."""
    if names:
        theirs = among(connection, desired.c.device, sorted(names))
        change = update(desired).where(theirs, desired.c.deployment.in_(deployments))
        connection.execute(change.values(set_at=now))


def issue(
    connection: Connection, issuer: Issuer, device: str, now: float, options: OrderOptions | None = None
) -> int:
    """Sign the device's present desired state as a new order, put it in the outbox, and return its counter.

    Raises: NotFoundError.
    """
    rows = known.lock(connection, [device])
    if not rows:
        device_store.get(connection, device)
    return issue_all(connection, issuer, rows, now, {device: options} if options else None)[device]


def issue_all(
    connection: Connection,
    issuer: Issuer,
    rows: Mapping[str, Known],
    now: float,
    options: Mapping[str, OrderOptions] | None = None,
) -> dict[str, int]:
    """The same for devices whose rows are locked; device → counter. A device that `options` does not name goes about it
    as it was told before.
    """
    if not rows:
        return {}
    wanted: dict[str, dict[str, OrderedBundle]] = {device: {} for device in rows}
    for found in connection.execute(
        _desired_query().where(among(connection, desired.c.device, sorted(rows)))
    ):
        wanted[found.device][found.deployment] = _ordered(found)
    counters: dict[str, int] = {}
    signed: list[dict[str, Any]] = []
    named = options or {}
    as_before = _options_of(connection, sorted(rows.keys() - named.keys()))
    kept = collecting.policies(connection, sorted(rows), now)
    compared = shadows.ordered(connection, sorted(rows))
    for device, row in rows.items():
        counter = max(int(row.get("order_counter")) + 1, int(now * 1000), issuer.above)
        how = named.get(device) or as_before.get(device, OrderOptions())
        envelope = _signed(
            issuer, row, wanted[device], counter, now, how, kept.get(device, ()), compared.get(device, {})
        )
        counters[device] = counter
        signed.append({"device": device, "counter": counter, "envelope": envelope})
        row.change(order_counter=counter)
    times = {"issued_at": now, "expires_at": now + LIFETIME_S, "keyid": issuer.key.keyid}
    connection.execute(insert(orders), [row | times for row in signed])
    waiting = [
        {"device": row["device"], "counter": row["counter"], "payload": row["envelope"], "published_at": None}
        for row in signed
    ]
    upsert(connection, outbox, waiting)
    known.write(connection, rows.values())
    return counters


def _signed(  # noqa: PLR0917  # what an order says, in its order
    issuer: Issuer,
    row: Known,
    deployments: dict[str, OrderedBundle],
    counter: int,
    now: float,
    options: OrderOptions,
    samples: tuple[SamplePolicy, ...],
    beside: dict[str, OrderedShadow],
) -> bytes:
    issued = datetime.fromtimestamp(now, UTC)
    order = Order(
        fleet=issuer.fleet,
        device=row.id,
        enrolment=row.get("enrolment"),
        deployments=deployments,
        counter=counter,
        issued=issued,
        expires=issued + timedelta(seconds=LIFETIME_S),
        options=options,
        added=device_store.added_of(row.row),
        samples=samples,
        shadows=beside,
    )
    return sign(encode(order), ORDER_TYPE, issuer.key)


def options_of(connection: Connection, device: str) -> OrderOptions:
    """How the device was last told to go about an order."""
    return _options_of(connection, [device]).get(device, OrderOptions())


def _options_of(connection: Connection, names: Sequence[str]) -> dict[str, OrderOptions]:
    query = select(outbox.c.device, outbox.c.payload).where(among(connection, outbox.c.device, names))
    found: dict[str, OrderOptions] = {}
    for row in connection.execute(query) if names else ():
        # An order of an older format is said again without them.
        with contextlib.suppress(msgspec.DecodeError, binascii.Error, MessageError):
            envelope = msgspec.json.decode(row.payload, type=Envelope)
            options = decode(base64.b64decode(envelope.payload), Order).options
            found[row.device] = msgspec.structs.replace(options, retry=False)
    return found


def _ordered(row: DesiredRow) -> OrderedBundle:
    return OrderedBundle(target_path(row), row.sha256, row.length, row.peak_memory_mb)


def unpublished(connection: Connection, limit: int) -> list[Row[Any]]:
    """Outbox rows that wait for the broker, oldest order first."""
    query = select(outbox).where(outbox.c.published_at.is_(None)).order_by(outbox.c.counter).limit(limit)
    return list(connection.execute(query))


def published(connection: Connection, counters: Mapping[str, int], now: float) -> None:
    """The broker has these (`now` is steady); a row that a newer order replaced meanwhile stays unpublished."""
    if not counters:
        return
    change = update(outbox).where(
        outbox.c.device == bindparam("the_device"), outbox.c.counter == bindparam("the_counter")
    )
    rows = [{"the_device": d, "the_counter": c} for d, c in sorted(counters.items())]
    connection.execute(change.values(published_at=now), rows)


def publish_again(connection: Connection, devices_behind: Sequence[str] | None = None) -> None:
    """Put orders back into the outbox: those of some devices, or of all after the broker was away."""
    change = update(outbox).values(published_at=None)
    if devices_behind is None:
        connection.execute(change)
        return
    connection.execute(change.where(among(connection, outbox.c.device, sorted(devices_behind))))


def behind(connection: Connection, moment: float, limit: int) -> list[str]:
    """Devices that are online and whose newest order went out before `moment` (steady), but that have not said that they
    accepted it.
    """
    query = (
        select(outbox.c.device)
        .join(devices, devices.c.id == outbox.c.device)
        .where(
            outbox.c.published_at < moment,
            devices.c.is_online,
            devices.c.reported_counter < devices.c.order_counter,
        )
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


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
