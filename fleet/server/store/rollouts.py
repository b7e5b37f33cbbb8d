"""Rollouts, whole states as JSON, and the assignments that completed ones leave."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from edgekit.errors import NotFoundError
from fleet.rules.rollout import ACTIVE, Rollout
from fleet.server.schema import assignments, rollouts
from fleet.server.store.devices import DeviceRow, deployments_of, labels_of

AssignmentRow = Row[Any]


def moment(now: float) -> datetime:
    """The rules speak datetime, the tables unix seconds."""
    return datetime.fromtimestamp(now, UTC)


def next_id(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(rollouts.c.id), 0))).scalar_one()) + 1


def parse_id(text: str) -> int:
    """`r7` or `7`. Raises: NotFoundError."""
    digits = text.removeprefix("r")
    if not digits.isdigit() or len(digits) > 9:
        raise NotFoundError(f"{text!r} is no rollout id; 'edgekit fleet rollout list' shows them (r1, r2, …)")
    return int(digits)


def load(connection: Connection, rollout_id: int) -> Rollout:
    """Locked until the transaction ends. Raises: NotFoundError."""
    query = select(rollouts.c.state).where(rollouts.c.id == rollout_id).with_for_update()
    state = connection.execute(query).scalar()
    if state is None:
        raise NotFoundError(f"there is no rollout r{rollout_id}; 'edgekit fleet rollout list' shows them")
    return msgspec.json.decode(state, type=Rollout)


def add(connection: Connection, rollout: Rollout, now: float) -> None:
    connection.execute(
        insert(rollouts).values(
            id=rollout.id,
            status=rollout.status.value,
            state=msgspec.json.encode(rollout),
            created_at=now,
            updated_at=now,
        )
    )


def save(connection: Connection, rollout: Rollout, now: float) -> None:
    connection.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout.id)
        .values(status=rollout.status.value, state=msgspec.json.encode(rollout), updated_at=now)
    )


def active_ids(connection: Connection) -> list[int]:
    query = select(rollouts.c.id).where(rollouts.c.status.in_([status.value for status in ACTIVE]))
    return list(connection.execute(query.order_by(rollouts.c.id)).scalars())


def everything(connection: Connection) -> list[Rollout]:
    """All rollouts, newest first."""
    query = select(rollouts.c.state).order_by(rollouts.c.id.desc())
    return [msgspec.json.decode(state, type=Rollout) for state in connection.execute(query).scalars()]


def active(connection: Connection) -> list[Rollout]:
    query = select(rollouts.c.state).where(rollouts.c.status.in_([status.value for status in ACTIVE]))
    return [msgspec.json.decode(state, type=Rollout) for state in connection.execute(query).scalars()]


def assign(connection: Connection, rollout: Rollout, now: float) -> None:
    spec = rollout.spec
    connection.execute(
        insert(assignments).values(
            deployment=spec.deployment,
            selector=spec.selector,
            name=spec.name,
            version=spec.version,
            rollout=rollout.id,
            set_at=now,
        )
    )


def unassign(connection: Connection, rollout: Rollout) -> None:
    connection.execute(delete(assignments).where(assignments.c.rollout == rollout.id))


def all_assignments(connection: Connection) -> list[AssignmentRow]:
    """Newest first: the first that matches holds."""
    return list(connection.execute(select(assignments).order_by(assignments.c.id.desc())))


def assigned(rows: list[AssignmentRow], device: DeviceRow, deployment: str) -> AssignmentRow | None:
    """The assignment that holds for a device's deployment."""
    from fleet.rules import selectors

    if deployment not in deployments_of(device):
        return None
    labels = labels_of(device)
    matching = (r for r in rows if r.deployment == deployment and selectors.parse(r.selector).matches(labels))
    return next(matching, None)
