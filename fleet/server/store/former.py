"""Older boards: machines that come with an identity of this name that another enrolment has taken the place of.

Always true
 1. What such a board says changes nothing of the device but the mark that says so; the new board is told from it by the
    number of its enrolment, which its certificate and every message of it carry.
 2. It is said once an enrolment in the audit log, and for as long as it comes to whoever asks about the device.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import Connection, update

from fleet.server.schema import devices
from fleet.server.store import audit
from fleet.server.store.devices import DeviceRow
from fleet.server.store.known import Known

log = logging.getLogger(__name__)

# The mark is a time for people: it need not be written for every message.
_AGAIN_S = 60.0


def heard(known: Known, enrolment: int, received: float) -> None:
    """A report of another enrolment came at `received` (wall clock).

    One of before the new board was there may have waited somewhere: it says nothing about the present.
    """
    if not 0 < enrolment < known.get("enrolment") or not known.get("is_confirmed"):
        return
    if received <= (known.get("enrolled_at") or 0.0) or received < (known.get("former_at") or 0.0) + _AGAIN_S:
        return
    known.change(former_enrolment=enrolment, former_at=received)


def note(connection: Connection, known: Iterable[Known], now: float) -> None:
    """The audit entries of what `heard` found; before `known.write`, and after every lock."""
    for one in known:
        if "former_at" in one.changed and one.was("former_at") is None:
            _tell(connection, one.id, one.get("former_enrolment"), one.get("enrolment"), now)


def asked(connection: Connection, row: DeviceRow, enrolment: int, now: float, origin: str) -> None:
    """It showed its certificate to this service."""
    if not 0 < enrolment < row.enrolment:
        return
    if row.former_at is not None and now < row.former_at + _AGAIN_S:
        return
    values = {"former_enrolment": enrolment, "former_at": now}
    connection.execute(update(devices).where(devices.c.id == row.id).values(**values))
    if row.former_at is None:
        _tell(connection, row.id, enrolment, row.enrolment, now, origin)


def _tell(  # noqa: PLR0917  # who, what it was, what it is
    connection: Connection, device: str, enrolment: int, present: int, now: float, origin: str = ""
) -> None:
    log.warning("an older board comes as %s, with the identity of enrolment %d", device, enrolment)
    detail = f"an older board comes with the identity of enrolment {enrolment}"
    after = {"enrolment": present, "former": enrolment}
    audit.append(connection, now, audit.device(device, origin), "device.former", device, detail, after=after)
