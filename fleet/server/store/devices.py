"""Devices: who they are, and what they say of themselves. How one joins is `enrolments`'.

Always true
 1. What a device says is taken only if it comes from its present enrolment, and never an older message after a newer.
 2. One incarnation with two nonces is a cloned card: marked, and kept out of rollouts until it enrols again.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import JSON, Connection, Row, cast, delete, func, select, update

from edgekit.errors import AuthError, ConflictError, NotFoundError
from edgekit.wire.messages import Boot, Reported, Status
from fleet.rules import facts
from fleet.rules.links import Link
from fleet.server.schema import desired, devices, outbox, to_place
from fleet.server.store import audit, news
from fleet.server.store.audit import Who
from fleet.server.store.known import Known
from fleet.server.store.settings import secret_hash
from fleet.server.store.upsert import among

DeviceRow = Row[Any]
MAX_DEPLOYMENTS = 32
# By how much the incarnation of a device may jump: it goes up by two a start, and may have been away for long.
MAX_STARTS = 200_000
_LABELS = msgspec.json.Decoder(dict[str, str])
_NAMES = msgspec.json.Decoder(tuple[str, ...])


def labels_of(row: DeviceRow) -> dict[str, str]:
    """The labels a selector sees: what the operator gave, and the built-in `device` and `profile`."""
    given = _LABELS.decode(row.labels)
    return {**given, "device": row.id, "profile": row.profile}


def deployments_of(row: DeviceRow) -> tuple[str, ...]:
    return _NAMES.decode(row.deployments)


def added_of(row: DeviceRow) -> tuple[str, ...]:
    """The deployments that an operator added after the device enrolled."""
    enrolled_for = msgspec.json.decode(row.enrolled_for, type=tuple[str, ...])
    return tuple(name for name in deployments_of(row) if name not in enrolled_for)


def reported_of(row: DeviceRow) -> Reported | None:
    return msgspec.json.decode(row.reported, type=Reported) if row.reported else None


def link_of(kept: str) -> Link:
    """What its link has carried, of the column."""
    return msgspec.json.decode(kept, type=Link) if kept else Link()


def get(connection: Connection, device: str, *, lock: bool = False) -> DeviceRow:
    """One device; with `lock` nobody else changes it before this transaction ends. Raises: NotFoundError."""
    query = select(devices).where(devices.c.id == device)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None or row.deleted_at is not None:
        raise NotFoundError(
            f"there is no device {device!r} in this fleet; 'edgekit fleet devices' lists them"
        )
    return row


def find(connection: Connection, device: str) -> DeviceRow | None:
    """Also one that was deleted, whose row only counts."""
    return connection.execute(select(devices).where(devices.c.id == device)).one_or_none()


def everyone(connection: Connection) -> list[DeviceRow]:
    """All but those that were taken out of service."""
    query = select(devices).where(devices.c.decommissioned_at.is_(None))
    return list(connection.execute(query.order_by(devices.c.id)).all())


def lacking(connection: Connection, names: Sequence[str] | None = None) -> list[DeviceRow]:
    """Devices in service, of all or of these, that have a deployment for which nothing is desired."""
    if connection.dialect.name == "postgresql":
        given = func.json_array_elements_text(cast(devices.c.deployments, JSON))
        slots = given.table_valued("value").render_derived()
    else:
        slots = func.json_each(devices.c.deployments).table_valued("value")
    runs = select(desired.c.device).where(
        desired.c.device == devices.c.id, desired.c.deployment == slots.c.value
    )
    empty = select(slots.c.value).where(~runs.correlate(devices, slots).exists()).correlate(devices)
    query = select(devices).where(devices.c.decommissioned_at.is_(None), empty.exists())
    if names is not None:
        query = query.where(among(connection, devices.c.id, names))
    return list(connection.execute(query.order_by(devices.c.id)).all())


def counts(connection: Connection) -> tuple[int, int]:
    """(all, online)."""
    query = select(func.count(), func.count().filter(devices.c.is_online)).select_from(devices)
    query = query.where(devices.c.decommissioned_at.is_(None))
    total, online = connection.execute(query).one()
    return int(total), int(online)


def by_credential(connection: Connection, credential: str) -> DeviceRow:
    """The device that a credential belongs to. Raises: AuthError."""
    query = select(devices).where(
        devices.c.credential_hash == secret_hash(credential), devices.c.decommissioned_at.is_(None)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise AuthError("the device credential is not one of this fleet; the device must enrol again")
    return row


def saw(known: Known, boot: Boot, now: float) -> bool:
    """Note a sign of life; False if it is to be ignored: from a run before the newest one, from a clone, or from so
    many starts later that no device can have made them (believing it would lock the device itself out).
    """
    incarnation, nonce = known.get("incarnation"), known.get("nonce")
    if boot.incarnation < incarnation:
        return False
    if incarnation >= 0 and boot.incarnation > incarnation + MAX_STARTS:
        return False
    known.change(last_seen_at=now)
    is_clone = boot.incarnation == incarnation and boot.nonce != nonce
    if is_clone:
        known.change(is_duplicate=True)
    elif boot.incarnation > incarnation:
        known.change(incarnation=boot.incarnation, nonce=boot.nonce, reported_seq=-1)
    return not is_clone


def status(known: Known, message: Status, *, received: float, now: float) -> bool:
    """Online or offline; the last will of an older run says nothing about the present one."""
    if not saw(known, message.boot, now):
        return False
    known.change(is_online=message.online)
    if not message.online:
        known.change(offline_at=received)
    return True


def reported(known: Known, message: Reported, now: float) -> bool:
    """Keep the newest self-description; False if it is a repeat or older than what is known."""
    if not saw(known, message.boot, now):
        return False
    if message.seq <= known.get("reported_seq"):
        return False
    known.change(
        reported=msgspec.json.encode(message).decode(),
        **facts.kept(message)._asdict(),
        reported_seq=message.seq,
        reported_counter=message.order_counter,
        agent_version=message.agent_version,
    )
    return True


def note_clones(connection: Connection, known: Iterable[Known], now: float) -> None:
    """The audit entries of devices that turned out to be cloned; before `known.write`, and after every lock."""
    for one in known:
        if one.changed.get("is_duplicate") and not one.was("is_duplicate"):
            detail = f"incarnation {one.get('incarnation')} speaks with two nonces"
            audit.append(connection, now, audit.FLEET, "device.duplicate", one.id, detail)


class Newest(msgspec.Struct, frozen=True, gc=False):
    """What a tick looks at of a device, without what it said of itself."""

    id: str
    enrolment: int
    incarnation: int
    reported_seq: int
    is_online: bool
    last_report_at: float | None
    window_s: float | None


def newest(connection: Connection, names: Sequence[str] | None = None) -> list[Newest]:
    """Of all devices in service, or of some of them."""
    columns = [devices.c[name] for name in Newest.__struct_fields__]
    query = select(*columns).where(devices.c.decommissioned_at.is_(None))
    if names is not None:
        query = query.where(among(connection, devices.c.id, names))
    return [Newest(*row) for row in connection.execute(query).all()]


def some(connection: Connection, names: Sequence[str]) -> list[DeviceRow]:
    """Those of these devices that are in service, whole."""
    query = select(devices).where(devices.c.decommissioned_at.is_(None))
    return list(connection.execute(query.where(among(connection, devices.c.id, names))).all())


def all_offline(connection: Connection) -> None:
    """After the broker was away nothing is known; retained or fresh statuses say who is there."""
    connection.execute(update(devices).where(devices.c.is_online).values(is_online=False))


def decommission(connection: Connection, device: str, *, now: float, who: Who) -> None:
    """Take it out of service: nothing is ordered of it, and nothing it says is heard. Its history stays, and a new
    enrolment file brings it back. Its identity must be revoked in the same transaction. Raises: NotFoundError.
    """
    row = get(connection, device, lock=True)
    connection.execute(delete(desired).where(desired.c.device == device))
    connection.execute(delete(outbox).where(outbox.c.device == device))
    connection.execute(delete(to_place).where(to_place.c.device == device))
    connection.execute(
        update(devices).where(devices.c.id == device).values(decommissioned_at=now, is_online=False)
    )
    news.note(connection, [device])
    before = {"labels": labels_of(row), "deployments": deployments_of(row), "enrolment": row.enrolment}
    audit.append(connection, now, who, "device.decommission", device, before=before)


def add_deployment(connection: Connection, device: str, deployment: str, *, now: float, who: Who) -> bool:
    """Give an enrolled device one more model slot; False if it has it already. An order must follow, which tells it.

    Raises: NotFoundError; ConflictError beyond 32.
    """
    row = get(connection, device, lock=True)
    has = deployments_of(row)
    if deployment in has:
        return False
    if len(has) >= MAX_DEPLOYMENTS:
        raise ConflictError(
            f"{device} has {len(has)} deployments; more than that are not served by one board"
        )
    now_has = msgspec.json.encode((*has, deployment)).decode()
    connection.execute(update(devices).where(devices.c.id == device).values(deployments=now_has))
    audit.append(connection, now, who, "device.deployment", device, before=has, after=(*has, deployment))
    return True
