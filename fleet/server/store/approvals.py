"""Devices that ask to join and wait for a person's word."""

from typing import Any

from sqlalchemy import Connection, Row, select, update

from edgekit.errors import NotFoundError
from fleet.server.schema import enrolment_tokens, enrolment_uses
from fleet.server.store import audit
from fleet.server.store.audit import Who
from fleet.server.store.enrolments import APPROVED, REJECTED, WAITING


def waiting(connection: Connection) -> list[Row[Any]]:
    """Who asked to join and waits for a person, oldest first: device, profile, public_key, first_at, labels."""
    query = (
        select(enrolment_uses, enrolment_tokens.c.labels)
        .join(enrolment_tokens, enrolment_tokens.c.id == enrolment_uses.c.token)
        .where(enrolment_uses.c.state == WAITING)
        .order_by(enrolment_uses.c.first_at)
    )
    return list(connection.execute(query))


def decide(connection: Connection, device: str, *, is_approved: bool, now: float, who: Who) -> None:
    """Let a device that waits join, or not. Raises: NotFoundError if none of this name waits."""
    state = APPROVED if is_approved else REJECTED
    waits = (enrolment_uses.c.device == device) & (enrolment_uses.c.state == WAITING)
    if connection.execute(update(enrolment_uses).where(waits).values(state=state)).rowcount == 0:
        raise NotFoundError(
            f"no device {device!r} waits for approval; 'edgekit fleet waiting' lists who does"
        )
    verb = "device.approve" if is_approved else "device.reject"
    audit.append(connection, now, who, verb, device, before={"state": WAITING}, after={"state": state})
