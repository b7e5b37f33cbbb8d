"""Commands: signed when they are asked for, published until the device is heard, and what it says of them.

Always true
 1. A command, its signature and its place in the outbox are one row, written in the transaction that asks for it.
 2. It is published while the device is online and has said nothing of it, in the order in which it was asked for, until it
    expires; twice does no harm, a device does it once.
 3. What a device says moves a command forward only, however late, doubled or out of order it comes.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from edgekit.errors import ConflictError, NotFoundError
from edgekit.trust.dsse import COMMAND_TYPE
from edgekit.trust.target import Target
from edgekit.wire.commands import Action, Command, Measure, Payload, Result, kind_of
from edgekit.wire.messages import OrderedBundle, encode
from fleet.api.commands import EXPIRED, WAITING, Ask, CommandView, MeasureHere
from fleet.publish import sign
from fleet.server.schema import alternates, bundles, devices
from fleet.server.schema_commands import commands, finalists
from fleet.server.store import audit
from fleet.server.store.audit import Who
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import Issuer
from fleet.server.store.upsert import among

USUAL_LIFE_S = 3600.0
MOST_WAITING = 16
# After it expired, a command that was accepted gets so long to say how it ended.
LATE_S = 86_400.0
# How long what came of it is kept after it expired.
KEPT_S = 90 * 86_400.0
# A device that was sent a command and said nothing is sent it again.
PATIENCE_S = 10.0
_RANK = {WAITING: 0, "accepted": 1, "running": 2, EXPIRED: 3, "done": 4, "failed": 4, "refused": 4}
_OPEN = (WAITING, "accepted", "running")


class Waiting(NamedTuple):
    """A row of the outbox."""

    id: str
    device: str
    envelope: bytes


def add(
    connection: Connection,
    issuer: Issuer,
    device: DeviceRow,
    ask: Ask,
    life_s: float,
    *,
    now: float,
    who: Who,
) -> str:
    """Sign and queue; the command's id. `device` is locked.

    Raises: ConflictError for a device that is not there to hear it or has too many; NotFoundError for a bundle.
    """
    if not device.enrolment or device.decommissioned_at is not None:
        raise ConflictError(f"{device.id} has not enrolled, or is out of service: nobody would hear it")
    open_ones = select(func.count()).where(commands.c.device == device.id, commands.c.state.in_(_OPEN))
    if connection.execute(open_ones).scalar_one() >= MOST_WAITING:
        raise ConflictError(f"{device.id} has {MOST_WAITING} commands that are not over; wait for them")
    action = _action(connection, ask)
    issued = datetime.fromtimestamp(now, UTC)
    command = Command(
        fleet=issuer.fleet,
        device=device.id,
        enrolment=device.enrolment,
        id=secrets.token_hex(8),
        issued=issued,
        expires=issued + timedelta(seconds=life_s),
        action=action,
    )
    connection.execute(
        insert(commands).values(
            id=command.id,
            device=device.id,
            enrolment=device.enrolment,
            kind=kind_of(action),
            action=msgspec.json.encode(action).decode(),
            envelope=sign(encode(command), COMMAND_TYPE, issuer.key),
            actor=who.name[:100],
            issued_at=now,
            expires_at=now + life_s,
            state=WAITING,
            reason="",
            changed_at=now,
        )
    )
    after = {"id": command.id, "action": msgspec.to_builtins(action)}
    audit.append(connection, now, who, "device.command", device.id, kind_of(action), after=after)
    return command.id


def _action(connection: Connection, ask: Ask) -> Action:
    if not isinstance(ask, MeasureHere):
        return ask
    return Measure(tuple(_named(connection, one) for one in ask.bundles), ask.deployment, ask.budget_s)


def _named(connection: Connection, sha256: str) -> OrderedBundle:
    """A bundle that boards may be asked to measure. Raises: NotFoundError."""
    for table in (bundles, alternates, finalists):
        row = connection.execute(select(table).where(table.c.sha256 == sha256)).one_or_none()
        if row is not None:
            target = Target(row.name, row.version, row.profile, row.length, row.sha256)
            return OrderedBundle(target.path, sha256, row.length)
    raise NotFoundError(f"no bundle with sha256 {sha256[:12]}… is published here")


def may_fetch(connection: Connection, device: str, sha256: str) -> bool:
    """Whether the device was asked to measure this bundle, and has not said how that ended."""
    query = select(commands.c.action).where(
        commands.c.device == device, commands.c.kind == "measure", commands.c.state.in_(_OPEN)
    )
    measures = (msgspec.json.decode(text, type=Measure) for text in connection.execute(query).scalars())
    return any(one.sha256 == sha256 for measure in measures for one in measure.bundles)


# -- the outbox ----------------------------------------------------------------------------------------------------


def unpublished(connection: Connection, wall: float, steady: float, limit: int) -> list[Waiting]:
    """What online devices have said nothing of, in the order in which it was asked for."""
    query = (
        select(commands.c.id, commands.c.device, commands.c.envelope)
        .join(devices, devices.c.id == commands.c.device)
        .where(
            commands.c.state == WAITING,
            commands.c.expires_at > wall,
            devices.c.is_online,
            devices.c.enrolment == commands.c.enrolment,
            or_(commands.c.published_at.is_(None), commands.c.published_at < steady - PATIENCE_S),
        )
        .order_by(commands.c.issued_at)
        .limit(limit)
    )
    return [Waiting(row.id, row.device, row.envelope) for row in connection.execute(query)]


def published(connection: Connection, ids: Collection[str], steady: float) -> None:
    if ids:
        connection.execute(
            update(commands).where(among(connection, commands.c.id, sorted(ids))).values(published_at=steady)
        )


def expire(connection: Connection, now: float) -> bool:
    """What was not heard in time, or not answered; and what is long past goes. False: there is never more."""
    gone = {"state": EXPIRED, "changed_at": now}
    unheard = (commands.c.state == WAITING) & (commands.c.expires_at <= now)
    connection.execute(
        update(commands).where(unheard).values(reason="the device was not heard until it expired", **gone)
    )
    unanswered = commands.c.state.in_(_OPEN[1:]) & (commands.c.expires_at <= now - LATE_S)
    connection.execute(
        update(commands).where(unanswered).values(reason="the device never said how it ended", **gone)
    )
    connection.execute(delete(commands).where(commands.c.expires_at <= now - KEPT_S))
    return False


# -- what devices say ----------------------------------------------------------------------------------------------


def record(connection: Connection, results: Sequence[tuple[str, Result]], now: float) -> None:
    """(device, what it says); of commands that are not this device's, nothing is taken."""
    for device, result in results:
        row = connection.execute(
            select(commands).where(commands.c.id == result.id, commands.c.device == device)
        ).one_or_none()
        if row is None or _RANK[result.state] <= _RANK[row.state]:
            continue
        payload = None if result.payload is None else msgspec.json.encode(result.payload).decode()
        connection.execute(
            update(commands)
            .where(commands.c.id == result.id)
            .values(state=result.state.value, reason=result.reason, payload=payload, changed_at=now)
        )


# -- looking at them -----------------------------------------------------------------------------------------------


def get(connection: Connection, device: str, number: str) -> CommandView:
    """Raises: NotFoundError."""
    row = connection.execute(
        select(commands).where(commands.c.id == number, commands.c.device == device)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"{device} has no command {number[:40]!r}; 'edgekit fleet device commands {device}'"
        )
    return _view(row)


def of_device(connection: Connection, device: str) -> list[CommandView]:
    """The newest first."""
    query = select(commands).where(commands.c.device == device).order_by(commands.c.issued_at.desc())
    return [_view(row) for row in connection.execute(query)]


def _view(row: Row[Any]) -> CommandView:
    action = msgspec.json.decode(row.action, type=Action)
    ask: Ask = (
        MeasureHere(tuple(one.sha256 for one in action.bundles), action.deployment, action.budget_s)
        if isinstance(action, Measure)
        else action
    )
    times: Mapping[str, datetime] = {
        name: datetime.fromtimestamp(getattr(row, f"{name}_at"), UTC)
        for name in ("issued", "expires", "changed")
    }
    return CommandView(
        id=row.id,
        device=row.device,
        action=ask,
        state=row.state,
        reason=row.reason,
        created=times["issued"],
        created_by=row.actor,
        expires=times["expires"],
        changed=times["changed"],
        payload=None if row.payload is None else msgspec.json.decode(row.payload, type=Payload),
    )
