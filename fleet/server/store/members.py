"""The devices of rollouts, one row each (`fleet.rules.members.Member`)."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, delete, func, or_, select

from edgekit.wire.states import FleetState
from fleet.rules.members import Member, Part
from fleet.rules.rollout import Rollout
from fleet.server.schema import members
from fleet.server.store.upsert import among, upsert

_SAME = (
    "device", "profile", "key", "target", "previous", "previous_title", "site", "zone", "is_held", "reason", "stage",
    "order_counter", "refused_before", "is_excused", "is_leaving", "is_returning",
)  # fmt: skip
_PARTS = msgspec.json.Decoder(tuple[Part, ...])
_TIMES = ("ordered_at", "notified_at", "online_since")


def of(connection: Connection, rollout: int, devices: Sequence[str] | None = None) -> dict[str, Member]:
    """All members of a rollout by device, or those of some devices."""
    query = select(members).where(members.c.rollout == rollout)
    if devices is not None:
        query = query.where(among(connection, members.c.device, devices))
    return {row.device: member(row) for row in connection.execute(query)}


def names(connection: Connection, rollout: int) -> list[str]:
    return list(connection.execute(select(members.c.device).where(members.c.rollout == rollout)).scalars())


def page(
    connection: Connection, rollout: int, after: str, limit: int, state: FleetState | None
) -> list[Member]:
    """The next members by name, of all or of those in a state."""
    query = select(members).where(members.c.rollout == rollout, members.c.device > after)
    if state is not None:
        query = query.where(members.c.state == state.value)
    return [member(row) for row in connection.execute(query.order_by(members.c.device).limit(limit))]


def first(connection: Connection, rollout: int, limit: int) -> list[Member]:
    """The first ones in the order in which devices move."""
    query = select(members).where(members.c.rollout == rollout)
    ordered = query.order_by(members.c.is_held, members.c.key).limit(limit)
    return [member(row) for row in connection.execute(ordered)]


def counts(connection: Connection, rollout: int) -> dict[str, int]:
    """How many are in each state."""
    query = select(members.c.state, func.count().label("number")).where(members.c.rollout == rollout)
    return {row.state: row.number for row in connection.execute(query.group_by(members.c.state))}


def waiting(connection: Connection, rollout: Rollout) -> int:
    """How many `fleet.rules.moving.waiting` would name of a rollout that runs."""
    taken = [
        and_(members.c.profile == profile, members.c.key <= threshold)
        for profile, threshold in rollout.thresholds.items()
        if profile not in rollout.stopped
    ]
    if rollout.stage < 0 or not taken:
        return 0
    query = select(func.count()).where(
        members.c.rollout == rollout.id, members.c.order_counter == 0, or_(*taken)
    )
    if not rollout.current.is_closing:
        query = query.where(~members.c.is_held)
    if rollout.spec.pace.needs_presence:
        query = query.where(members.c.online_since.is_not(None))
    return int(connection.execute(query).scalar_one())


def write(connection: Connection, rollout: int, changed: Iterable[Member]) -> None:
    """New or changed members."""
    upsert(connection, members, [_values(rollout, member) for member in changed])


def remove(connection: Connection, rollout: int, devices: Sequence[str]) -> None:
    """These are in the rollout no longer."""
    gone = among(connection, members.c.device, devices)
    connection.execute(delete(members).where(members.c.rollout == rollout, gone))


def _values(rollout: int, member: Member) -> dict[str, Any]:
    enrolment, incarnation, seq = member.seen
    return {
        "rollout": rollout,
        **{name: getattr(member, name) for name in _SAME},
        **{name: _seconds(getattr(member, name)) for name in _TIMES},
        "beside": msgspec.json.encode(member.beside).decode() if member.beside else "",
        "state": member.state.value,
        "seen_enrolment": enrolment,
        "seen_incarnation": incarnation,
        "seen_seq": seq,
    }


def member(row: Row[Any]) -> Member:
    same: dict[str, Any] = {name: getattr(row, name) for name in _SAME}
    times: dict[str, Any] = {name: _moment(getattr(row, name)) for name in _TIMES}
    return Member(
        **same,
        **times,
        beside=parts_of(row.beside),
        state=FleetState(row.state),
        seen=(row.seen_enrolment, row.seen_incarnation, row.seen_seq),
    )


def parts_of(text: str) -> tuple[Part, ...]:
    """What moves together with the first deployment, as it is kept."""
    return _PARTS.decode(text) if text else ()


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
