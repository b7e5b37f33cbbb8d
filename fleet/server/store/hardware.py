"""On which hardware a device's identity is used, as far as the device says it (`EnrolRequest.fingerprint`).

Always true
 1. Another hardware is said, in the audit log and to whoever asks about the device; it is never refused here: a board
    was exchanged, or an identity was copied, and only a person can tell. The agent itself refuses a copied folder.
 2. Where one side does not know its hardware, nothing is said.
"""

import logging

from sqlalchemy import Connection, select, update

from fleet.server.schema import devices
from fleet.server.schema_audit import audit as audit_table
from fleet.server.store import audit

log = logging.getLogger(__name__)

ACTION = "device.hardware"


def compare(
    connection: Connection, device: str, kept: str, shown: str, *, verb: str, now: float, origin: str
) -> None:
    """Note it if the hardware is another than the one before, and keep the new one; `verb` is what the device did."""
    if not shown or shown == kept:
        return
    connection.execute(update(devices).where(devices.c.id == device).values(fingerprint=shown))
    if kept:
        log.warning("%s %s on other hardware than before", device, verb)
        detail = f"{verb} on other hardware: {kept[:12]} before, {shown[:12]} now"
        audit.append(connection, now, audit.device(device, origin), ACTION, device, detail)


def told(connection: Connection, device: str, since: float) -> str:
    """What was noted last of this device since then (unix seconds); empty if nothing."""
    query = (
        select(audit_table.c.detail)
        .where(audit_table.c.action == ACTION, audit_table.c.subject == device, audit_table.c.at >= since)
        .order_by(audit_table.c.id.desc())
        .limit(1)
    )
    return connection.execute(query).scalar() or ""
