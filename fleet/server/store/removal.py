"""Taking a device's identity away, and deleting it: what the fleet knew of it goes, and its name is free.

Always true
 1. A name that had an identity keeps what its identities and orders counted up to: whoever gets the name next never has
    the number of an enrolment, a credential or an order that was given out before.
 2. Certificates that were given out stay, revoked, for as long as they would be good.
 3. The audit log, and what ended rollouts did, stay as they are.
"""

from sqlalchemy import Connection, delete, select, update

from fleet.rules import facts
from fleet.server.schema import (
    certificates,
    desired,
    devices,
    enrolment_tokens,
    enrolment_uses,
    orders,
    outbox,
    reports,
    stage_sums,
    to_place,
    totals,
)
from fleet.server.schema_commands import commands
from fleet.server.schema_history import device_history
from fleet.server.schema_samples import collection_devices, samples
from fleet.server.schema_shadows import shadow_devices
from fleet.server.store import audit, experiments, news
from fleet.server.store import certificates as certificate_store
from fleet.server.store import devices as device_store
from fleet.server.store.audit import Who

_OF_DEVICE = (
    commands,
    to_place,
    desired,
    outbox,
    orders,
    totals,
    stage_sums,
    reports,
    enrolment_uses,
    device_history,
    collection_devices,
    samples,
    shadow_devices,
)
# As a row that was never used has it, but for what counts.
_EMPTY = {
    "labels": "{}",
    "deployments": "[]",
    "enrolled_for": "[]",
    "fingerprint": "",
    "profile": "",
    "agent_version": "",
    "nonce": "",
    "reported": None,
    **facts.NOTHING._asdict(),
    "last_seen_at": None,
    "last_report_at": None,
    "offline_at": None,
    "window_s": None,
    "traffic": "",
    "is_duplicate": False,
    "former_enrolment": 0,
    "former_at": None,
}


def revoke(connection: Connection, device: str, *, reason: str, now: float, who: Who) -> int:
    """Take the device's identity away: certificates, credential, tokens that were not used. How many certificates.

    It stays in the registry; with a new enrolment file it joins again. Raises: NotFoundError.
    """
    device_store.get(connection, device, lock=True)
    count = certificate_store.revoke(connection, device, reason[:64] or "revoked", now)
    connection.execute(
        update(devices)
        .where(devices.c.id == device)
        .values(credential_hash=None, is_confirmed=True, is_online=False)
    )
    connection.execute(
        update(enrolment_tokens)
        .where(enrolment_tokens.c.device == device, enrolment_tokens.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    audit.append(
        connection, now, who, "device.revoke", device, reason, before={"certificates": count}, after={}
    )
    return count


def forget(connection: Connection, device: str, reason: str, *, now: float, who: Who) -> None:
    """Delete a device whose identity was revoked in the same transaction. Raises: NotFoundError."""
    row = device_store.get(connection, device, lock=True)
    for table in _OF_DEVICE:
        connection.execute(delete(table).where(table.c.device == device))
    experiments.forget(connection, device)
    connection.execute(
        update(enrolment_tokens)
        .where(enrolment_tokens.c.device == device, enrolment_tokens.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    has_history = (
        row.enrolment
        or connection.execute(
            select(certificates.c.serial).where(certificates.c.device == device).limit(1)
        ).scalar()
    )
    if has_history:
        gone = {
            "deleted_at": now,
            "decommissioned_at": row.decommissioned_at or now,
            "is_online": False,
            "credential_hash": None,
        }
        connection.execute(update(devices).where(devices.c.id == device).values(**_EMPTY, **gone))
    else:
        connection.execute(delete(devices).where(devices.c.id == device))
    news.note(connection, [device])
    before = {
        "labels": device_store.labels_of(row),
        "deployments": device_store.deployments_of(row),
        "enrolment": row.enrolment,
    }
    audit.append(connection, now, who, "device.delete", device, reason, before=before)
