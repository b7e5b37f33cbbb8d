"""Rollouts, their members as rows of their own (`members`), and the assignments that completed ones leave."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from edgekit.errors import NotFoundError
from fleet.api import NewRollout
from fleet.rules.evidence import COLD_WINDOWS, COLD_WINDOWS_LATENCY
from fleet.rules.pace import Pace
from fleet.rules.rollout import ACTIVE, Rollout, Status
from fleet.server.schema import assignments, rollouts
from fleet.server.schema import members as member_rows
from fleet.server.store import events, members
from fleet.server.store.upsert import among

_NOT_FOUND = "there is no rollout r{}; 'edgekit fleet rollout list' shows them"
_ACTIVE = [status.value for status in ACTIVE]


def moment(now: float) -> datetime:
    """The rules speak datetime, the tables unix seconds."""
    return datetime.fromtimestamp(now, UTC)


def next_id(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(rollouts.c.id), 0))).scalar_one()) + 1


def parse_id(text: str) -> int:
    """`r7` or `7`. Raises: NotFoundError."""
    digits = text.removeprefix("r")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise NotFoundError(f"{text!r} is no rollout id; 'edgekit fleet rollout list' shows them (r1, r2, …)")
    return int(digits)


def load(connection: Connection, rollout_id: int) -> Rollout:
    """With all its members; locked until the transaction ends. Raises: NotFoundError."""
    head, _ = lock(connection, rollout_id)
    return msgspec.structs.replace(head, members=members.of(connection, rollout_id))


def get(connection: Connection, rollout_id: int) -> Rollout:
    """With all its members, to look at. Raises: NotFoundError."""
    return msgspec.structs.replace(head(connection, rollout_id), members=members.of(connection, rollout_id))


def head(connection: Connection, rollout_id: int) -> Rollout:
    """Without its members, to look at. Raises: NotFoundError."""
    state = connection.execute(select(rollouts.c.state).where(rollouts.c.id == rollout_id)).scalar()
    if state is None:
        raise NotFoundError(_NOT_FOUND.format(rollout_id))
    return _decoded(state)


def page(connection: Connection, before: int | None, limit: int) -> list[Rollout]:
    """The next rollouts without their members, the newest first, from below `before` on."""
    query = select(rollouts.c.state).order_by(rollouts.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(rollouts.c.id < before)
    return [_decoded(state) for state in connection.execute(query).scalars()]


def lock(connection: Connection, rollout_id: int) -> tuple[Rollout, int]:
    """The rollout without its members, and its revision; locked until the transaction ends. Raises: NotFoundError."""
    query = select(rollouts.c.state, rollouts.c.revision).where(rollouts.c.id == rollout_id)
    found = connection.execute(query.with_for_update()).one_or_none()
    if found is None:
        raise NotFoundError(_NOT_FOUND.format(rollout_id))
    return _decoded(found.state), int(found.revision)


def revision(connection: Connection, rollout_id: int) -> int:
    """Raises: NotFoundError."""
    found = connection.execute(select(rollouts.c.revision).where(rollouts.c.id == rollout_id)).scalar()
    if found is None:
        raise NotFoundError(_NOT_FOUND.format(rollout_id))
    return int(found)


def add(connection: Connection, rollout: Rollout, now: float, wanted: NewRollout | None = None) -> None:
    """A new one, with the request that it was planned from."""
    asked = msgspec.json.encode(wanted).decode() if wanted is not None else ""
    connection.execute(
        insert(rollouts).values(
            id=rollout.id, revision=0, wanted=asked, created_at=now, updated_at=now, **_columns(rollout)
        )
    )
    members.write(connection, rollout.id, rollout.members.values())


def save(connection: Connection, rollout: Rollout, before: Rollout, now: float) -> None:
    """What differs from `before`, which is the rollout as it was loaded or saved last in this transaction."""
    was = before.members
    events.note(connection, "rollout", [rollout.label])
    members.write(connection, rollout.id, rollout.roster.changed_since(was))
    # Members come and go in steps of their own; a step that adds some takes none away.
    if len(rollout.members) < len(was):
        members.remove(connection, rollout.id, sorted(was.keys() - rollout.members.keys()))
    connection.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout.id)
        .values(revision=rollouts.c.revision + 1, updated_at=now, **_columns(rollout))
    )


def wanted(connection: Connection, rollout_id: int) -> NewRollout:
    """What the operator asked for. Raises: NotFoundError."""
    text = connection.execute(select(rollouts.c.wanted).where(rollouts.c.id == rollout_id)).scalar()
    if text is None:
        raise NotFoundError(_NOT_FOUND.format(rollout_id))
    if not text:
        raise NotFoundError(
            f"r{rollout_id} was started by an older version, which did not keep what was asked for"
        )
    return msgspec.json.decode(text, type=NewRollout)


def replan(connection: Connection, rollout: Rollout, now: float) -> None:
    """A queued rollout as it is planned by now takes the place of its older plan."""
    old = members.of(connection, rollout.id)
    members.remove(connection, rollout.id, sorted(old.keys() - rollout.members.keys()))
    save(connection, rollout, msgspec.structs.replace(rollout, members={}), now)


def _columns(rollout: Rollout) -> dict[str, Any]:
    compares = any(gate.is_relative for gate in rollout.spec.gates)
    return {
        "status": rollout.status.value,
        "deployment": rollout.spec.deployment,
        "stage": rollout.stage,
        "judged_from": rollout.judged_from.timestamp() if rollout.judged_from else None,
        "cold_windows": COLD_WINDOWS_LATENCY if compares else COLD_WINDOWS,
        "state": msgspec.json.encode(msgspec.structs.replace(rollout, members={})),
    }


def _decoded(state: bytes) -> Rollout:
    return msgspec.json.decode(state, type=Rollout)


def active_ids(connection: Connection) -> list[int]:
    query = select(rollouts.c.id).where(rollouts.c.status.in_(_ACTIVE))
    return list(connection.execute(query.order_by(rollouts.c.id)).scalars())


def everything(connection: Connection) -> list[Rollout]:
    """All rollouts with their members, newest first."""
    query = select(rollouts.c.id, rollouts.c.state).order_by(rollouts.c.id.desc())
    return [
        msgspec.structs.replace(_decoded(state), members=members.of(connection, number))
        for number, state in connection.execute(query).all()
    ]


def queued(connection: Connection) -> list[Rollout]:
    """Those that wait for others, without their members, first come first."""
    query = select(rollouts.c.state).where(rollouts.c.status == Status.QUEUED.value).order_by(rollouts.c.id)
    return [_decoded(state) for state in connection.execute(query).scalars()]


def paces(connection: Connection, numbers: Iterable[int]) -> dict[int, Pace]:
    """How fast each of these rollouts was to go."""
    query = select(rollouts.c.id, rollouts.c.state).where(rollouts.c.id.in_(sorted(numbers)))
    return {number: _decoded(state).spec.pace for number, state in connection.execute(query)}


def active(connection: Connection) -> list[Rollout]:
    """Those under way, without their members."""
    query = select(rollouts.c.state).where(rollouts.c.status.in_(_ACTIVE)).order_by(rollouts.c.id)
    return [_decoded(state) for state in connection.execute(query).scalars()]


def active_whole(connection: Connection) -> list[Rollout]:
    """Those under way, with their members."""
    return [
        msgspec.structs.replace(rollout, members=members.of(connection, rollout.id))
        for rollout in active(connection)
    ]


def judged(connection: Connection) -> list[Row[Any]]:
    """Open stages, for ingest: id, deployment, stage, judged_from, cold_windows."""
    columns = (
        rollouts.c.id, rollouts.c.deployment, rollouts.c.stage, rollouts.c.judged_from, rollouts.c.cold_windows,
    )  # fmt: skip
    query = select(*columns).where(
        rollouts.c.status.in_([Status.RUNNING.value, Status.PAUSED.value]),
        rollouts.c.judged_from.is_not(None),
    )
    return list(connection.execute(query))


def busy(connection: Connection, devices: Sequence[str]) -> dict[tuple[str, str], int]:
    """(device, deployment) → the rollout under way that has it, of these devices."""
    query = (
        select(member_rows.c.device, rollouts.c.deployment, rollouts.c.id)
        .join(rollouts, rollouts.c.id == member_rows.c.rollout)
        .where(rollouts.c.status.in_(_ACTIVE), among(connection, member_rows.c.device, devices))
    )
    return {(device, deployment): number for device, deployment, number in connection.execute(query)}


def of_device(connection: Connection, device: str) -> list[Rollout]:
    """Rollouts under way that the device is in, each with this one member."""
    return [
        msgspec.structs.replace(rollout, members=found)
        for rollout in active(connection)
        if (found := members.of(connection, rollout.id, [device]))
    ]


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
