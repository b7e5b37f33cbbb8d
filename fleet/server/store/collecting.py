"""Collections of samples: what is asked of which devices, what came.

Always true
 1. What a device may keep stands in its orders alone (`policies`); a change of that stands in `is_due` until its order is
    written.
 2. A sample counts once, against its device's and its collection's bounds, in the transaction that takes it; its file is
    on the disk before.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from edgekit.errors import ConflictError, EndedError, NotFoundError
from edgekit.wire.samples import MAX_POLICIES, SampleAbout, SamplePolicy
from fleet.rules import collecting as rules
from fleet.rules.collecting import Reasons
from fleet.server.schema_samples import collection_devices, collections, samples
from fleet.server.store.upsert import among

STOPPED, FULL = "stopped", "full"
# Active at once, of one deployment or of several: what an order can say.
MOST_AT_ONCE = MAX_POLICIES
_PRUNED_AT_ONCE = 500
CollectionRow = Row[Any]


def label(number: int) -> str:
    return f"s{number}"


def parse_id(text: str) -> int:
    """`s7` or `7`. Raises: NotFoundError."""
    digits = text.removeprefix("s")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise NotFoundError(
            f"{text[:40]!r} is no collection's id; 'edgekit fleet samples list' shows them (s1, s2, …)"
        )
    return int(digits)


def reasons_of(row: CollectionRow) -> Reasons:
    return msgspec.json.decode(row.reasons, type=Reasons)


def is_active(row: CollectionRow, now: float) -> bool:
    return not row.ended and now < row.until_at


def state_of(row: CollectionRow, now: float) -> str:
    return row.ended or ("active" if now < row.until_at else "over")


# -- collections -----------------------------------------------------------------------------------------------------


def add(connection: Connection, values: dict[str, Any], devices: Sequence[str]) -> int:
    """Its number; the devices' orders are due. Raises: ConflictError where orders could not say more."""
    query = select(func.count()).where(
        collections.c.ended == "", collections.c.until_at > values["created_at"]
    )
    if connection.execute(query).scalar_one() >= MOST_AT_ONCE:
        raise ConflictError(
            f"{MOST_AT_ONCE} collections are active, and an order takes no more; stop one:"
            " 'edgekit fleet samples stop ID'"
        )
    made = connection.execute(insert(collections).values(**values, ended="", is_due=False, taken=0))
    number = int(made.inserted_primary_key[0])  # type: ignore[index]  # it has one
    rows = [{"collection": number, "device": name, "taken": 0, "is_due": True} for name in devices]
    connection.execute(insert(collection_devices), rows)
    return number


def get(connection: Connection, number: int, *, lock: bool = False) -> CollectionRow:
    """Raises: NotFoundError."""
    query = select(collections).where(collections.c.id == number)
    found = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if found is None:
        raise NotFoundError(
            f"there is no collection {label(number)}; 'edgekit fleet samples list' shows them"
        )
    return found


def everything(connection: Connection) -> list[CollectionRow]:
    """Newest first."""
    return list(connection.execute(select(collections).order_by(collections.c.id.desc())))


def of_device(connection: Connection, device: str, limit: int) -> list[CollectionRow]:
    """Those that name it, the newest first."""
    query = select(collections).join(collection_devices, collection_devices.c.collection == collections.c.id)
    query = query.where(collection_devices.c.device == device).order_by(collections.c.id.desc()).limit(limit)
    return list(connection.execute(query))


def devices_of(connection: Connection, number: int) -> list[str]:
    query = select(collection_devices.c.device).where(collection_devices.c.collection == number)
    return list(connection.execute(query.order_by(collection_devices.c.device)).scalars())


def sizes(connection: Connection, devices: Iterable[str] | None = None) -> dict[int, tuple[int, int]]:
    """Collection → how many samples are kept, and their bytes; of all devices or of these."""
    query = select(samples.c.collection, func.count(), func.sum(samples.c.length))
    if devices is not None:
        query = query.where(among(connection, samples.c.device, sorted(devices)))
    return {row[0]: (row[1], int(row[2])) for row in connection.execute(query.group_by(samples.c.collection))}


def end(connection: Connection, number: int, how: str) -> None:
    """No order says it any more, as soon as those that do are written anew."""
    change = update(collections).where(collections.c.id == number)
    connection.execute(change.values(ended=how, is_due=True))


def remove(connection: Connection, number: int) -> int:
    """Forget a collection that has ended, with its samples; how many."""
    gone = connection.execute(delete(samples).where(samples.c.collection == number)).rowcount
    connection.execute(delete(collection_devices).where(collection_devices.c.collection == number))
    connection.execute(delete(collections).where(collections.c.id == number))
    return gone


# -- orders ----------------------------------------------------------------------------------------------------------


def policies(
    connection: Connection, devices: Sequence[str], now: float
) -> dict[str, tuple[SamplePolicy, ...]]:
    """Device → what its orders say from now on; the newest first. A device that nothing is asked of is not named."""
    query = (
        select(collection_devices.c.device, collections)
        .join(collections, collections.c.id == collection_devices.c.collection)
        .where(collections.c.ended == "", collections.c.until_at > now)
        .where(among(connection, collection_devices.c.device, devices))
        .order_by(collections.c.id.desc())
    )
    found: dict[str, tuple[SamplePolicy, ...]] = {}
    for row in connection.execute(query):
        if len(found.get(row.device, ())) < MAX_POLICIES:
            found[row.device] = (*found.get(row.device, ()), policy_of(row))
    return found


def policy_of(row: CollectionRow) -> SamplePolicy:
    """Of a row that has a collection's columns."""
    most = min(row.most, row.per_device or row.most)
    return rules.policy(label(row.id), row.deployment, row.until_at, most, row.bytes_a_day, reasons_of(row))


def mark_ended(connection: Connection) -> bool:
    """The devices of collections that have ended are due; whether there was one. A transaction of its own: it waits for
    uploads, and nothing that they wait for is held.
    """
    query = select(collections.c.id).where(collections.c.is_due).with_for_update()
    numbers = list(connection.execute(query).scalars())
    theirs = collection_devices.c.collection.in_(numbers)
    connection.execute(update(collection_devices).where(theirs).values(is_due=True))
    connection.execute(update(collections).where(collections.c.id.in_(numbers)).values(is_due=False))
    return bool(numbers)


def is_told(connection: Connection, row: CollectionRow) -> bool:
    """Whether the orders of all its devices say how it stands."""
    query = select(collection_devices.c.device).where(
        collection_devices.c.collection == row.id, collection_devices.c.is_due
    )
    return not row.is_due and connection.execute(query.limit(1)).first() is None


def due(connection: Connection, limit: int) -> list[str]:
    """Devices whose orders are to say something else."""
    query = select(collection_devices.c.device).where(collection_devices.c.is_due).distinct().limit(limit)
    return list(connection.execute(query).scalars())


def written(connection: Connection, devices: Sequence[str]) -> None:
    """Their orders say it."""
    theirs = among(connection, collection_devices.c.device, devices)
    connection.execute(update(collection_devices).where(theirs).values(is_due=False))


# -- samples ---------------------------------------------------------------------------------------------------------


def is_here(connection: Connection, sha256: str) -> bool:
    return connection.execute(select(samples.c.sha256).where(samples.c.sha256 == sha256)).first() is not None


def check(
    connection: Connection, device: str, about: SampleAbout, now: float, *, lock: bool = False
) -> CollectionRow:
    """The collection that a device's sample is for.

    Raises: NotFoundError if none asked this device for it, EndedError if that is over or has what it asked for.
    """
    row = get(connection, parse_id(about.policy), lock=lock)
    query = select(collection_devices.c.taken).where(
        collection_devices.c.collection == row.id, collection_devices.c.device == device
    )
    taken = connection.execute(query).scalar()
    if taken is None or row.deployment != about.deployment:
        raise NotFoundError(f"nobody asked {device} for samples of {about.deployment} by {about.policy}")
    if not is_active(row, now):
        raise EndedError(f"{about.policy} is {state_of(row, now)}: no more samples are taken")
    if taken >= policy_of(row).most or row.taken >= row.most:
        raise EndedError(f"{about.policy} has all the samples of {device} that it takes")
    return row


def take(
    connection: Connection, device: str, about: SampleAbout, sha256: str, length: int, *, now: float
) -> None:
    """Count a sample whose file is there. Raises: as `check`."""
    row = check(connection, device, about, now, lock=True)
    connection.execute(
        insert(samples).values(
            sha256=sha256,
            collection=row.id,
            device=device,
            deployment=about.deployment,
            digest=about.digest,
            reason=about.reason,
            kind=about.kind,
            confidence=about.confidence,
            label=about.label,
            taken_at=about.taken.timestamp(),
            received_at=now,
            length=length,
        )
    )
    theirs = (collection_devices.c.collection == row.id) & (collection_devices.c.device == device)
    one_more = collection_devices.c.taken + 1
    connection.execute(update(collection_devices).where(theirs).values(taken=one_more))
    connection.execute(update(collections).where(collections.c.id == row.id).values(taken=row.taken + 1))
    if row.taken + 1 >= row.most:
        end(connection, row.id, FULL)


def items(
    connection: Connection, number: int, devices: Iterable[str] | None, after: str, limit: int
) -> list[Row[Any]]:
    """Samples of a collection in the order in which they came, behind the one called `after`.

    Raises: NotFoundError if that is gone.
    """
    query = select(samples).where(samples.c.collection == number)
    if devices is not None:
        query = query.where(among(connection, samples.c.device, sorted(devices)))
    if after:
        last = connection.execute(select(samples).where(samples.c.sha256 == after)).one_or_none()
        if last is None:
            raise NotFoundError(f"{after[:80]!r} is not in this list any more; begin at its start")
        later = samples.c.received_at > last.received_at
        beside = (samples.c.received_at == last.received_at) & (samples.c.sha256 > after)
        query = query.where(later | beside)
    return list(connection.execute(query.order_by(samples.c.received_at, samples.c.sha256).limit(limit)))


def find(connection: Connection, number: int, sha256: str) -> Row[Any]:
    """Raises: NotFoundError."""
    query = select(samples).where(samples.c.collection == number, samples.c.sha256 == sha256)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise NotFoundError(f"there is no sample {sha256[:12]} in {label(number)}")
    return found


def known(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Of these samples those that a row is of."""
    query = select(samples.c.sha256).where(among(connection, samples.c.sha256, digests))
    return set(connection.execute(query).scalars())


def prune(connection: Connection, before: float) -> bool:
    """Forget samples that came before that; whether there may be more."""
    old = select(samples.c.sha256).where(samples.c.received_at < before).limit(_PRUNED_AT_ONCE)
    gone = list(connection.execute(old).scalars())
    connection.execute(delete(samples).where(among(connection, samples.c.sha256, gone)))
    return len(gone) == _PRUNED_AT_ONCE
