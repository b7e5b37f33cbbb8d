"""The enrolment files of batches: what became of each, and withdrawing one.

Always true
 1. A file that was withdrawn lets nobody in any more, whoever waits included; who has joined by it stays.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select, update

from edgekit.errors import NotFoundError
from fleet.server.schema import enrolment_tokens, enrolment_uses
from fleet.server.store import audit
from fleet.server.store.audit import Who
from fleet.server.store.enrolments import ANSWERED, REJECTED, WAITING


@dataclass(frozen=True)
class Batch:
    """`joined`, `waiting` and `refused` are numbers of devices; times are unix seconds."""

    id: int
    created_at: float
    created_by: str
    expires_at: float
    is_withdrawn: bool
    places: int
    joined: int
    waiting: int
    refused: int
    needs_approval: bool
    serials: tuple[str, ...]
    labels: dict[str, str]
    deployments: tuple[str, ...]


def everything(connection: Connection) -> list[Batch]:
    """All batches, newest first."""
    counts: dict[int, dict[str, int]] = {}
    query = select(enrolment_uses.c.token, enrolment_uses.c.state, func.count().label("number"))
    for row in connection.execute(query.group_by(enrolment_uses.c.token, enrolment_uses.c.state)):
        counts.setdefault(row.token, {})[row.state] = row.number
    tokens = select(enrolment_tokens).where(enrolment_tokens.c.device == "")
    return [
        _batch(row, counts.get(row.id, {}))
        for row in connection.execute(tokens.order_by(enrolment_tokens.c.id.desc()))
    ]


def _batch(row: Row[Any], counts: dict[str, int]) -> Batch:
    return Batch(
        id=row.id,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        is_withdrawn=row.revoked_at is not None,
        places=row.max_uses,
        joined=counts.get(ANSWERED, 0),
        waiting=counts.get(WAITING, 0),
        refused=counts.get(REJECTED, 0),
        needs_approval=row.needs_approval,
        serials=msgspec.json.decode(row.serials, type=tuple[str, ...]),
        labels=msgspec.json.decode(row.labels, type=dict[str, str]),
        deployments=msgspec.json.decode(row.deployments, type=tuple[str, ...]),
    )


def withdraw(connection: Connection, batch: int, *, now: float, who: Who) -> bool:
    """False if it was withdrawn before. Raises: NotFoundError."""
    of_batch = (enrolment_tokens.c.id == batch) & (enrolment_tokens.c.device == "")
    row = connection.execute(select(enrolment_tokens).where(of_batch).with_for_update()).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no batch b{batch}; 'edgekit fleet batch list' shows them")
    if row.revoked_at is not None:
        return False
    connection.execute(update(enrolment_tokens).where(of_batch).values(revoked_at=now))
    connection.execute(
        update(enrolment_uses)
        .where(enrolment_uses.c.token == batch, enrolment_uses.c.state == WAITING)
        .values(state=REJECTED)
    )
    audit.append(connection, now, who, "batch.revoke", f"b{batch}")
    return True
