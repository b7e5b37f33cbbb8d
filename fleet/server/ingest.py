"""From broker messages to the database.

Always true
 1. An acknowledgement is sent only after the transaction that holds the report has committed; a repeat is
    acknowledged again.
 2. A message changes only the device whose topic it came by, of the enrolment and profile that device has; anything
    else is counted by reason and dropped, and harms no other message of its batch.
 3. No message stops it: what the database will not take, although it passed the bounds of the wire, is found by halving
    the batch, counted and dropped; only a database that is away is waited for.
 4. A retained message that is dropped for what it is goes from its topic too, so that it does not come again.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from edgekit.errors import MessageError
from edgekit.wire import topics
from edgekit.wire.commands import Result
from edgekit.wire.messages import Ack, Boot, Report, Reported, Status, decode, encode
from fleet.rules.sums import NOT_DEAF, Deaf
from fleet.server.clock import Clock, Now
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.store import commands, devices, former, known, news, telemetry
from fleet.server.store.known import Known

log = logging.getLogger(__name__)

BATCH = 500
RETRY_S = 1.0
# (device, boot) → sequence numbers to acknowledge.
Acks = dict[tuple[str, Boot], list[int]]
Content = Report | Reported | Status | Result
_KINDS: dict[str, Callable[[bytes], Content]] = {
    topics.TELEMETRY: lambda payload: decode(payload, Report),
    topics.REPORTED: lambda payload: decode(payload, Reported),
    topics.STATUS: lambda payload: decode(payload, Status),
    topics.RESULT: lambda payload: decode(payload, Result),
}
# What ingest needs of a device's row, which holds its whole self-description besides.
_COLUMNS = (
    "id", "enrolment", "credential_hash", "decommissioned_at", "profile", "is_confirmed", "window_s", "traffic", "incarnation", "nonce", "is_online",
    "offline_at", "is_duplicate", "reported_seq", "last_report_at", "enrolled_at", "former_enrolment", "former_at",
)  # fmt: skip
_CANNOT_BE_STORED = "cannot be stored"


class DroppedError(Exception):
    """The message is not to be believed; the text is the reason it is counted under. `is_poison` if it never will be."""

    def __init__(self, reason: str, *, is_poison: bool = False) -> None:
        super().__init__(reason)
        self.is_poison = is_poison


class _Said(NamedTuple):
    """A message of a device, read; `wrong` if it could not be."""

    device: str
    message: Message
    content: Content | None
    wrong: str = ""


@dataclass
class Taken:
    """What came of a batch: acknowledgements that may go out, what was dropped by reason, topics to clear."""

    acks: Acks = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    poisoned: list[str] = field(default_factory=list)

    def drop(self, message: Message, error: DroppedError, *, is_known: bool) -> None:
        self.dropped[str(error)] += 1
        # Of a device that is not of this fleet nothing is touched: the broker may be shared.
        if error.is_poison and is_known and message.is_retained:
            self.poisoned.append(message.topic)

    def merge(self, other: "Taken") -> None:
        for key, seqs in other.acks.items():
            self.acks.setdefault(key, []).extend(seqs)
        self.dropped += other.dropped
        self.poisoned += other.poisoned


class Source(Protocol):
    """Where messages come from, and how is said what became of them."""

    def take(self, most: int, *, timeout_s: float) -> list[Message]:
        """Up to `most` messages; empty if none came within `timeout_s`."""

    def publish(self, device: str, leaf: str, payload: bytes, *, qos: int, retain: bool) -> object: ...

    def clear(self, topic: str) -> None:
        """Take the retained message of a topic away."""

    def confirm(self, batch: list[Message]) -> None:
        """These are stored, or dropped for good: the broker need not keep them any longer."""


class Ingest:
    """Reads a source in a thread of its own, a transaction per batch. `stored` counts the reports and results acknowledged.

    `late_since` is when (steady) the database began to refuse what is waiting; None while it takes it.
    """

    def __init__(self, database: Database, source: Source, clock: Clock) -> None:
        self._database = database
        self._source = source
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped: Counter[str] = Counter()
        self.stored = 0
        self.late_since: float | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = self._source.take(BATCH, timeout_s=0.25)
            if not batch:
                continue
            try:
                self._store(batch)
            except Exception:
                # Reports come again by themselves; to end here would be to hear nothing ever again.
                log.exception("a batch of %d messages was given up", len(batch))
                self.dropped["given up"] += len(batch)
                self._source.confirm(batch)

    def _store(self, batch: list[Message]) -> None:
        """Commit, then acknowledge; a database that is away is tried again, nothing is acknowledged meanwhile."""
        was_told = False
        while not self._stopping.is_set():
            try:
                taken = take_in(self._database, batch, self._clock.now(), self._clock.deaf)
            except SQLAlchemyError as error:
                if not was_told:
                    log.warning(
                        "the database does not take %d messages (%s); trying again",
                        len(batch),
                        _first_line(error),
                    )
                was_told = True
                if self.late_since is None:
                    self.late_since = self._clock.now().steady
                self._stopping.wait(RETRY_S)
                continue
            self.late_since = None
            self.dropped += taken.dropped
            for (device, boot), seqs in taken.acks.items():
                ack = encode(Ack(boot=boot, seqs=tuple(seqs)))
                self._source.publish(device, topics.ACK, ack, qos=0, retain=False)
                self.stored += len(seqs)
            for topic in taken.poisoned:
                self._source.clear(topic)
            self._source.confirm(batch)
            return


def _first_line(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def take_in(database: Database, batch: list[Message], now: Now, deaf: Deaf = NOT_DEAF) -> Taken:
    """Store a batch in one transaction; what may be acknowledged now, and what was dropped.

    Raises: SQLAlchemyError if the database is away; nothing is stored then.
    """
    taken = Taken()
    said = [found for message in batch if (found := _read(message, taken)) is not None]
    _store_halving(database, said, taken, now, deaf)
    return taken


def _store_halving(database: Database, said: list[_Said], taken: Taken, now: Now, deaf: Deaf) -> None:
    if not said:
        return
    attempt = Taken()
    try:
        with database.begin() as connection:
            _store(connection, said, attempt, now, deaf)
    except Exception as error:
        if _is_passing(error):
            raise
        if len(said) == 1:
            log.warning("a message on %s cannot be stored: %s", said[0].message.topic, error)
            poison = DroppedError(_CANNOT_BE_STORED, is_poison=True)
            taken.drop(said[0].message, poison, is_known=True)
            return
        middle = len(said) // 2
        for half in (said[:middle], said[middle:]):
            _store_halving(database, half, taken, now, deaf)
    else:
        taken.merge(attempt)


def _is_passing(error: Exception) -> bool:
    """Whether it is the database's state and not the message's fault: away, locked, full, a deadlock."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return isinstance(error, SQLAlchemyError)


def _read(message: Message, taken: Taken) -> _Said | None:
    """Read without looking at the database; None if there is nothing to do with it."""
    place = topics.parse(message.topic)
    if place is None:
        taken.dropped["not a device topic"] += 1
        return None
    device, leaf = place
    if leaf not in _KINDS:
        taken.dropped["unexpected topic"] += 1
        return None
    if not message.payload and leaf != topics.TELEMETRY:
        return None  # how a retained message is taken away
    try:
        return _Said(device, message, _KINDS[leaf](message.payload))
    except MessageError:
        what = "report" if leaf == topics.TELEMETRY else leaf
        return _Said(device, message, None, f"unreadable {what}")


def _store(connection: Connection, said: list[_Said], taken: Taken, now: Now, deaf: Deaf) -> None:
    rows = known.lock(connection, (one.device for one in said), _COLUMNS)
    arrived: list[telemetry.Arrived] = []
    results: list[tuple[str, Result]] = []
    heard: set[str] = set()
    for one in said:
        received = now.steady if one.message.received is None else one.message.received
        try:
            row, content = _believed(rows, one, received + now.wall - now.steady)
        except DroppedError as error:
            taken.drop(one.message, error, is_known=one.device in rows)
            continue
        heard.add(row.id)
        if isinstance(content, Report):
            arrived.append(telemetry.Arrived(row, content, received))
            taken.acks.setdefault((one.device, content.boot), []).append(content.seq)
        elif isinstance(content, Result):
            results.append((row.id, content))
            taken.acks.setdefault((one.device, content.boot), []).append(content.seq)
        elif isinstance(content, Reported):
            devices.reported(row, content, now.steady)
        else:
            devices.status(row, content, received=received, now=now.steady)
    telemetry.record(connection, arrived, now, deaf)
    commands.record(connection, results, now.wall)
    news.note(connection, heard)
    devices.note_clones(connection, rows.values(), now.wall)
    former.note(connection, rows.values(), now.wall)
    known.write(connection, rows.values())


def _believed(rows: dict[str, Known], one: _Said, received: float) -> tuple[Known, Content]:
    content = one.content
    if content is None:
        raise DroppedError(one.wrong, is_poison=True)
    if not isinstance(content, Status) and content.device != one.device:
        raise DroppedError("names another device than its topic", is_poison=True)
    row = rows.get(one.device)
    if row is None:
        raise DroppedError("unknown device")
    if content.boot.enrolment != row.get("enrolment") or row.get("enrolment") == 0:
        if isinstance(content, Report):
            # A report is never kept on its topic: whoever sent it is there.
            former.heard(row, content.boot.enrolment, received)
        raise DroppedError("of another enrolment")
    if row.get("decommissioned_at") is not None:
        raise DroppedError("of a device out of service")
    if row.get("credential_hash") is None:
        # Not every broker looks at the list of revocations, or has the newest one.
        raise DroppedError("of a revoked device")
    if isinstance(content, Reported) and content.profile != row.get("profile"):
        raise DroppedError("claims another profile than it enrolled with", is_poison=True)
    if not row.get("is_confirmed"):
        # It has used what it got: its token is used up.
        row.change(is_confirmed=True)
    return row, content
