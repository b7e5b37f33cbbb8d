"""Devices: inviting, enrolling, and what they say of themselves.

Always true
 1. An enrolment token works once; neither it nor the device's credential is kept in the clear.
 2. What a device says is taken only if it comes from its present enrolment, and never an older message after a newer.
 3. One incarnation with two nonces is a cloned card: marked, and kept out of rollouts until it enrols again.
"""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update

from edgekit.errors import AuthError, ConflictError, NotFoundError
from edgekit.wire.enrolment import EnrolAnswer, EnrolRequest
from edgekit.wire.messages import Boot, Reported, Status
from fleet.server.schema import devices
from fleet.server.store import audit
from fleet.server.store.settings import new_secret, secret_hash

DeviceRow = Row[Any]


def labels_of(row: DeviceRow) -> dict[str, str]:
    """The labels a selector sees: what the operator gave, and the built-in `device` and `profile`."""
    given = msgspec.json.decode(row.labels, type=dict[str, str])
    return {**given, "device": row.id, "profile": row.profile}


def deployments_of(row: DeviceRow) -> tuple[str, ...]:
    return msgspec.json.decode(row.deployments, type=tuple[str, ...])


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


def everyone(connection: Connection) -> list[DeviceRow]:
    return list(connection.execute(select(devices).order_by(devices.c.id)))


def counts(connection: Connection) -> tuple[int, int]:
    """(all, online)."""
    query = select(func.count(), func.count().filter(devices.c.is_online)).select_from(devices)
    total, online = connection.execute(query).one()
    return int(total), int(online)


def invite(
    connection: Connection,
    device: str,
    labels: dict[str, str],
    deployments: tuple[str, ...],
    *,
    now: float,
    actor: str,
) -> str:
    """Make or renew a device's one-time token and return it.

    A device that has enrolled already may be invited again (a re-flashed card): its old credential works until the
    new token is used.

    Raises: ConflictError if a label is one of the built-in names.
    """
    for reserved in ("device", "profile"):
        if reserved in labels:
            raise ConflictError(
                f"label {reserved!r} is built in (it is the device's own); choose another name"
            )
    token = new_secret()
    values = {
        "labels": msgspec.json.encode(labels).decode(),
        "deployments": msgspec.json.encode(deployments).decode(),
        "token_hash": secret_hash(token),
        "is_token_used": False,
    }
    known = connection.execute(select(devices.c.id).where(devices.c.id == device)).scalar()
    if known is None:
        connection.execute(insert(devices).values(id=device, created_at=now, **values))
    else:
        connection.execute(update(devices).where(devices.c.id == device).values(**values))
    audit.append(connection, now, actor, "device.invite", device, ", ".join(deployments))
    return token


def enrol(connection: Connection, request: EnrolRequest, now: float) -> EnrolAnswer:
    """Use the token up and give the device its identity.

    Raises: AuthError, with the same words whether the device or the token is wrong.
    """
    query = select(devices).where(devices.c.id == request.device).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or not hmac.compare_digest(row.token_hash, secret_hash(request.token)):
        raise AuthError(f"no such enrolment for {request.device!r}: check the device name and the token")
    if row.is_token_used:
        raise AuthError(
            f"the enrolment token of {request.device!r} was used already; "
            f"make a new file with 'edgekit fleet enroll {request.device}'"
        )
    credential = new_secret()
    enrolment = row.enrolment + 1
    connection.execute(
        update(devices)
        .where(devices.c.id == request.device)
        .values(
            is_token_used=True,
            enrolment=enrolment,
            enrolled_at=now,
            credential_hash=secret_hash(credential),
            public_key=hashlib.sha256(request.csr.encode()).hexdigest(),
            profile=request.profile,
            agent_version=request.agent_version,
            is_online=False,
            is_duplicate=False,
            incarnation=-1,
            nonce="",
            reported_seq=-1,
            reported=None,
        )
    )
    audit.append(connection, now, request.device, "device.enrol", request.device, request.profile)
    return EnrolAnswer(
        device=request.device,
        enrolment=enrolment,
        certificate="",
        not_after=datetime.fromtimestamp(now, UTC),
        credential=credential,
    )


def by_credential(connection: Connection, credential: str) -> DeviceRow:
    """The device that a credential belongs to. Raises: AuthError."""
    query = select(devices).where(devices.c.credential_hash == secret_hash(credential))
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
            audit.append(connection, now, "fleet", "device.duplicate", row.id, detail)
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
