"""The devices of rollouts, one row each (`fleet.rules.members.Member`)."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, select

from edgekit.wire.states import FleetState
from fleet.rules.members import Member, Part
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
    return {row.device: _member(row) for row in connection.execute(query)}


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


def _member(row: Row[Any]) -> Member:
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
