"""Alerts as rows, and the messages that tell of them.

Always true
 1. What there is to tell is written in the transaction that opens or ends the alert, a message for each target: whoever
    takes over, or starts again, finds what is still to be sent.
 2. A message that a target has taken is never sent to it again.
"""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from edgekit.errors import NotFoundError
from fleet.api.alerts import AlertView
from fleet.rules.alerts import KINDS, Alert, Told
from fleet.rules.drift import LIMIT
from fleet.server.clock import Now
from fleet.server.schema_alerts import alert_targets, alerts, messages
from fleet.server.store import audit
from fleet.server.store.audit import Who

KEEP_S = 90 * 86_400.0
KEEP_MESSAGES_S = 14 * 86_400.0
# Of those that ended, so many are listed.
MAX_ENDED = 200
WAITING, SENT, FAILED = "waiting", "sent", "failed"
_ABOUT = msgspec.json.Decoder(dict[str, object])
_NAMES = msgspec.json.Decoder(tuple[str, ...])
_NUMBERS = msgspec.json.Decoder(tuple[int, ...])
_RANK = {"warning": 0, "critical": 1}
MessageRow = Row[Any]


class Shown(msgspec.Struct, frozen=True):
    """An alert in a message: what `AlertView` says, and what a program wants to know besides."""

    id: str
    kind: str
    subject: str
    severity: str
    words: str
    what_to_do: str
    since: datetime
    ended: datetime | None
    count: int
    about: dict[str, object]


class Body(msgspec.Struct, frozen=True):
    """A message, as webhooks get it. `text` is for people, and what chat systems show."""

    type: str
    id: str
    fleet: str
    at: datetime
    text: str
    url: str = ""
    opened: tuple[Shown, ...] = ()
    ended: tuple[Shown, ...] = ()
    grown: tuple[Shown, ...] = ()


class Retraining(msgspec.Struct, frozen=True):
    """That a model is to be trained again: which release, where its inputs drifted and since when.

    `inputs` and `outputs` are what moved, at most devices first. `samples` is empty: whoever hears of it asks for them, by
    'edgekit fleet samples collect --drifted', and is told where they are.
    """

    type: str
    id: str
    fleet: str
    at: datetime
    text: str
    release: str
    deployment: str
    digests: tuple[str, ...]
    devices: int
    measured: int
    sites: dict[str, int]
    level: float
    limit: float
    since: datetime
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    samples: str = ""
    url: str = ""


def standing(connection: Connection) -> list[Alert]:
    """All that have not ended, pending ones too."""
    rows = connection.execute(select(alerts).where(alerts.c.ended.is_(None)).order_by(alerts.c.id))
    return [_alert(row) for row in rows]


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        kind=row.kind,
        subject=row.subject,
        words=row.words,
        since=row.since,
        found_at=row.found_at,
        seen_at=row.seen_at,
        id=row.id,
        topic=row.topic,
        severity=row.severity,
        opened_at=row.opened_at,
        ended=row.ended,
        count=row.how_many,
        told=row.told,
        told_at=row.told_at,
        few_at=row.few_at,
        acknowledged_by=row.acknowledged_by,
        about=_ABOUT.decode(row.about),
    )


def save(connection: Connection, changed: Iterable[Alert]) -> dict[tuple[str, str], int]:
    """Store alerts; (kind, subject) → number, of them all. What a person acknowledged meanwhile stays acknowledged."""
    numbers: dict[tuple[str, str], int] = {}
    for alert in changed:
        values = msgspec.structs.asdict(alert)
        for name in ("id", "acknowledged_by"):
            del values[name]
        values["how_many"] = values.pop("count")
        values["about"] = msgspec.json.encode(alert.about).decode()
        if alert.id:
            connection.execute(update(alerts).where(alerts.c.id == alert.id).values(**values))
            number = alert.id
        else:
            made = insert(alerts).values(**values, acknowledged_by="", reached="[]").returning(alerts.c.id)
            number = connection.execute(made).scalar_one()
        numbers[alert.kind, alert.subject] = number
    return numbers


def forget(connection: Connection, numbers: Iterable[int]) -> None:
    """Pending ones that came to nothing."""
    connection.execute(delete(alerts).where(alerts.c.id.in_(list(numbers)), alerts.c.opened_at.is_(None)))


def listing(connection: Connection, *, is_open: bool) -> list[AlertView]:
    """Those that stand, the gravest and then the newest first; or the newest of those that ended."""
    query = select(alerts).where(alerts.c.opened_at.is_not(None))
    if is_open:
        query = query.where(alerts.c.ended.is_(None)).order_by(
            alerts.c.severity, alerts.c.since.desc(), alerts.c.id
        )
    else:
        query = query.where(alerts.c.ended.is_not(None)).order_by(alerts.c.ended.desc()).limit(MAX_ENDED)
    return [
        AlertView(
            id=label(row.id),
            kind=row.kind,
            subject=row.subject,
            severity=row.severity,
            words=row.words,
            what_to_do=KINDS[row.kind].what_to_do,
            since=moment(row.since),
            ended=None if row.ended is None else moment(row.ended),
            acknowledged_by=row.acknowledged_by,
            told=_NAMES.decode(row.reached),
        )
        for row in connection.execute(query)
    ]


def label(number: int) -> str:
    return f"a{number}"


def acknowledge(connection: Connection, name: str, reason: str, *, now: float, who: Who) -> bool:
    """Note that a person has seen it; False if one had already. Raises: NotFoundError."""
    digits = name.removeprefix("a")
    number = int(digits) if digits.isdigit() and len(digits) < 10 else 0
    query = select(alerts).where(alerts.c.id == number, alerts.c.opened_at.is_not(None))
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no alert {name[:40]!r}; 'edgekit fleet alerts list' shows them")
    if row.acknowledged_by:
        return False
    change = update(alerts).where(alerts.c.id == number)
    connection.execute(change.values(acknowledged_by=who.name, acknowledged_at=now))
    detail = f"{row.kind} {row.subject}" + (f": {reason}" if reason else "")
    before, after = {"acknowledged_by": ""}, {"acknowledged_by": who.name}
    audit.append(connection, now, who, "alert.acknowledge", label(number), detail, before=before, after=after)
    return True


# -- messages --------------------------------------------------------------------------------------------------------


def tell(
    connection: Connection, told: Told, numbers: dict[tuple[str, str], int], *, fleet: str, url: str, now: Now
) -> int:
    """A message for each target that wants to know of any of this; how many."""
    rows = []
    for target in connection.execute(select(alert_targets).order_by(alert_targets.c.name)):
        events = _NAMES.decode(target.events)
        bodies: list[tuple[Body | Retraining, list[int]]] = []
        if "alerts" in events and (body := _body(told, target.severity, numbers, (fleet, url), now)):
            bodies.append((body, [numbers[a.kind, a.subject] for a in told.opened]))
        if "retraining" in events:
            bodies += [(_retraining(a, (fleet, url), now), []) for a in told.opened if a.kind == "drift"]
        rows += [_row(target.name, body, about, now) for body, about in bodies]
    if rows:
        connection.execute(insert(messages), rows)
    return len(rows)


def _row(target: str, body: Body | Retraining, about: list[int], now: Now) -> dict[str, Any]:
    return {
        "target": target,
        "message": body.id,
        "body": msgspec.json.encode(body).decode(),
        "alerts": msgspec.json.encode(about).decode(),
        "state": WAITING,
        "tries": 0,
        "created_at": now.wall,
        "due_at": now.steady,
    }


def new_id() -> str:
    return f"msg_{secrets.token_hex(12)}"


def _body(
    told: Told, least: str, numbers: dict[tuple[str, str], int], sender: tuple[str, str], now: Now
) -> Body | None:
    fleet, url = sender
    opened, ended, grown = (
        tuple(_shown(a, numbers) for a in some if _RANK[a.severity] >= _RANK[least])
        for some in (told.opened, told.ended, told.grown)
    )
    if not (opened or ended or grown):
        return None
    lines = [f"[{one.severity}] {one.words}\n  {one.what_to_do}" for one in opened]
    lines += [f"[{one.severity}, grown] {one.words}" for one in grown]
    lines += [f"[over] {one.words}" for one in ended]
    head = f"{fleet}: " + ", ".join(
        f"{len(some)} {word}" for some, word in ((opened, "new"), (grown, "grown"), (ended, "over")) if some
    )
    text = "\n".join((head, *lines))
    return Body("alerts", new_id(), fleet, moment(now.wall), text, url, opened, ended, grown)


def _shown(alert: Alert, numbers: dict[tuple[str, str], int]) -> Shown:
    number = alert.id or numbers[alert.kind, alert.subject]
    ended = None if alert.ended is None else moment(alert.ended)
    what_to_do = KINDS[alert.kind].what_to_do
    words = (alert.kind, alert.subject, alert.severity, alert.words, what_to_do)
    return Shown(label(number), *words, moment(alert.since), ended, alert.count, alert.about)


def _retraining(alert: Alert, sender: tuple[str, str], now: Now) -> Retraining:
    about: dict[str, Any] = alert.about
    fleet, url = sender
    # An alert of before a fleet was updated does not have it.
    moved: list[str] = about.get("moved", [])
    return Retraining(
        type="retraining",
        id=new_id(),
        fleet=fleet,
        at=moment(now.wall),
        text=f"{fleet}: {alert.words}",
        release=about["release"],
        deployment=about["deployment"],
        digests=tuple(about["digests"]),
        devices=about["device_count"],
        measured=about["measured"],
        sites=about["sites"],
        level=about["level"],
        limit=LIMIT,
        since=moment(about["since"]),
        inputs=tuple(one.removeprefix("inputs/") for one in moved if one.startswith("inputs/")),
        outputs=tuple(one.removeprefix("outputs/") for one in moved if one.startswith("outputs/")),
        url=url,
    )


def due(connection: Connection, now: float) -> list[MessageRow]:
    """The oldest waiting message of each target, with its target, where it is due (steady)."""
    first = select(func.min(messages.c.id)).where(messages.c.state == WAITING).group_by(messages.c.target)
    query = (
        select(messages, alert_targets.c.kind, alert_targets.c.sealed)
        .join(alert_targets, alert_targets.c.name == messages.c.target)
        .where(messages.c.id.in_(first), messages.c.due_at <= now)
    )
    return list(connection.execute(query.order_by(messages.c.id)))


def claim(connection: Connection, row: MessageRow, due_at: float) -> bool:
    """Take a message to send it; False if another sender did. It is due again at `due_at` (steady) if nobody says more."""
    is_same = and_(messages.c.id == row.id, messages.c.state == WAITING, messages.c.tries == row.tries)
    change = update(messages).where(is_same).values(tries=row.tries + 1, due_at=due_at)
    return connection.execute(change.returning(messages.c.id)).one_or_none() is not None


def arrived(connection: Connection, row: MessageRow, now: float) -> None:
    """The target has it."""
    connection.execute(update(messages).where(messages.c.id == row.id).values(state=SENT, sent_at=now))
    change = update(alert_targets).where(alert_targets.c.name == row.target)
    connection.execute(change.values(last_sent_at=now, last_error=""))
    numbers = _NUMBERS.decode(row.alerts)
    query = select(alerts.c.id, alerts.c.reached).where(alerts.c.id.in_(numbers)).with_for_update()
    changed = [
        (number, msgspec.json.encode((*_NAMES.decode(reached), row.target)).decode())
        for number, reached in connection.execute(query).all()
    ]
    for number, reached in changed:
        connection.execute(update(alerts).where(alerts.c.id == number).values(reached=reached))


def not_arrived(connection: Connection, row: MessageRow, why: str, due_at: float | None) -> None:
    """It is tried again at `due_at` (steady), or given up."""
    values: dict[str, Any] = {"state": FAILED} if due_at is None else {"due_at": due_at}
    connection.execute(update(messages).where(messages.c.id == row.id).values(**values))
    change = update(alert_targets).where(alert_targets.c.name == row.target)
    connection.execute(change.values(last_error=why[:300]))


def late(connection: Connection, before: float) -> list[tuple[str, str]]:
    """(target, why) of targets with a message that waits since before then (wall)."""
    query = (
        select(alert_targets.c.name, alert_targets.c.last_error)
        .join(messages, messages.c.target == alert_targets.c.name)
        .where(messages.c.state == WAITING, messages.c.tries > 0, messages.c.created_at < before)
        .distinct()
    )
    return [(name, why) for name, why in connection.execute(query)]


def prune(connection: Connection, wall: float) -> None:
    """Forget alerts and messages that are long over."""
    connection.execute(delete(alerts).where(alerts.c.ended < wall - KEEP_S))
    is_over = or_(messages.c.state != WAITING, messages.c.created_at < wall - KEEP_MESSAGES_S)
    connection.execute(delete(messages).where(is_over, messages.c.created_at < wall - KEEP_MESSAGES_S))


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
