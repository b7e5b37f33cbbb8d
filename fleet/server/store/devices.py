"""Devices: who they are, and what they say of themselves. How one joins is `enrolments`'.

Always true
 1. What a device says is taken only if it comes from its present enrolment, and never an older message after a newer.
 2. One incarnation with two nonces is a cloned card: marked, and kept out of rollouts until it enrols again.
"""

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update

from edgekit.errors import AuthError, ConflictError, NotFoundError
from edgekit.wire.messages import Boot, Reported, Status
from fleet.server.schema import desired, devices, outbox
from fleet.server.store import audit
from fleet.server.store.audit import Who
from fleet.server.store.settings import secret_hash

DeviceRow = Row[Any]
MAX_DEPLOYMENTS = 32


def labels_of(row: DeviceRow) -> dict[str, str]:
    """The labels a selector sees: what the operator gave, and the built-in `device` and `profile`."""
    given = msgspec.json.decode(row.labels, type=dict[str, str])
    return {**given, "device": row.id, "profile": row.profile}


def deployments_of(row: DeviceRow) -> tuple[str, ...]:
    return msgspec.json.decode(row.deployments, type=tuple[str, ...])


def added_of(row: DeviceRow) -> tuple[str, ...]:
    """The deployments that an operator added after the device enrolled."""
    enrolled_for = msgspec.json.decode(row.enrolled_for, type=tuple[str, ...])
    return tuple(name for name in deployments_of(row) if name not in enrolled_for)


def reported_of(row: DeviceRow) -> Reported | None:
    return msgspec.json.decode(row.reported, type=Reported) if row.reported else None


def get(connection: Connection, device: str, *, lock: bool = False) -> DeviceRow:
    """One device; with `lock` nobody else changes it before this transaction ends. Raises: NotFoundError."""
    query = select(devices).where(devices.c.id == device)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no device {device!r} in this fleet; 'edgekit fleet devices' lists them"
        )
    return row


def find(connection: Connection, device: str) -> DeviceRow | None:
    return connection.execute(select(devices).where(devices.c.id == device)).one_or_none()


def everyone(connection: Connection) -> list[DeviceRow]:
    """All but those that were taken out of service."""
    query = select(devices).where(devices.c.decommissioned_at.is_(None))
    return list(connection.execute(query.order_by(devices.c.id)))


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


def saw(connection: Connection, row: DeviceRow, boot: Boot, now: float) -> bool:
    """Note a sign of life; False if it is to be ignored: from a run before the newest one, or from a clone."""
    if boot.incarnation < row.incarnation:
        return False
    values: dict[str, Any] = {"last_seen_at": now}
    is_clone = boot.incarnation == row.incarnation and boot.nonce != row.nonce
    if is_clone:
        values["is_duplicate"] = True
        if not row.is_duplicate:
            detail = f"incarnation {boot.incarnation} speaks with two nonces"
            audit.append(connection, now, audit.FLEET, "device.duplicate", row.id, detail)
    elif boot.incarnation > row.incarnation:
        values |= {"incarnation": boot.incarnation, "nonce": boot.nonce, "reported_seq": -1}
    connection.execute(update(devices).where(devices.c.id == row.id).values(**values))
    return not is_clone


def status(connection: Connection, row: DeviceRow, message: Status, now: float) -> bool:
    """Online or offline; the last will of an older run says nothing about the present one."""
    if not saw(connection, row, message.boot, now):
        return False
    connection.execute(update(devices).where(devices.c.id == row.id).values(is_online=message.online))
    return True


def reported(connection: Connection, row: DeviceRow, message: Reported, now: float) -> bool:
    """Keep the newest self-description; False if it is a repeat or older than what is known."""
    if not saw(connection, row, message.boot, now):
        return False
    is_new_run = message.boot.incarnation > row.incarnation
    if not is_new_run and message.seq <= row.reported_seq:
        return False
    values = {
        "reported": msgspec.json.encode(message).decode(),
        "reported_seq": message.seq,
        "agent_version": message.agent_version,
    }
    connection.execute(update(devices).where(devices.c.id == row.id).values(**values))
    return True


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
    connection.execute(
        update(devices).where(devices.c.id == device).values(decommissioned_at=now, is_online=False)
    )
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
