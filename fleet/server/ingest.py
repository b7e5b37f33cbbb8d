"""From broker messages to the database.

Always true
 1. An acknowledgement is sent only after the transaction that holds the report has committed; a repeat is
    acknowledged again.
 2. A message changes only the device whose topic it came by, of the enrolment and profile that device has; anything
    else is counted by reason and dropped, and harms no other message of its batch.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from edgekit.errors import MessageError, NotFoundError
from edgekit.wire import topics
from edgekit.wire.messages import Ack, Boot, Report, Reported, Status, decode, encode
from fleet.server.database import Database
from fleet.server.link import Link, Message
from fleet.server.store import devices, enrolments, telemetry
from fleet.server.store.devices import DeviceRow

log = logging.getLogger(__name__)

BATCH = 200
RETRY_S = 1.0
# (device, boot) → sequence numbers to acknowledge.
Acks = dict[tuple[str, Boot], list[int]]
T = TypeVar("T", Reported, Status, Report)


class DroppedError(Exception):
    """The message is not to be believed; the text is the reason it is counted under."""


class Ingest:
    """Reads the link's queue in a thread of its own, a transaction per batch."""

    def __init__(self, database: Database, link: Link, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._link = link
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self.dropped: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = self._next_batch()
            if batch:
                self._store(batch)

    def _next_batch(self) -> list[Message]:
        try:
            batch = [self._link.messages.get(timeout=0.25)]
        except queue.Empty:
            return []
        while len(batch) < BATCH:
            try:
                batch.append(self._link.messages.get_nowait())
            except queue.Empty:
                break
        return batch

    def _store(self, batch: list[Message]) -> None:
        """Commit, then acknowledge; a database that is away is tried again, nothing is acknowledged meanwhile."""
        while not self._stopping.is_set():
            try:
                acks, dropped = take_in(self._database, batch, self._clock())
            except SQLAlchemyError:
                log.exception("storing %d messages failed; trying again", len(batch))
                self._stopping.wait(RETRY_S)
                continue
            self.dropped += dropped
            for (device, boot), seqs in acks.items():
                ack = encode(Ack(boot=boot, seqs=tuple(seqs)))
                self._link.publish(device, topics.ACK, ack, qos=0, retain=False)
            return


def take_in(database: Database, batch: list[Message], now: float) -> tuple[Acks, Counter[str]]:
    """Store a batch in one transaction; what may be acknowledged now, and what was dropped, by reason."""
    acks: Acks = {}
    dropped: Counter[str] = Counter()
    with database.begin() as connection:
        for topic, payload in batch:
            try:
                _take_one(connection, topic, payload, now, acks)
            except DroppedError as reason:
                dropped[str(reason)] += 1
    return acks, dropped


def _take_one(connection: Connection, topic: str, payload: bytes, now: float, acks: Acks) -> None:
    place = topics.parse(topic)
    if place is None:
        raise DroppedError("not a device topic")
    device, leaf = place
    if leaf == topics.TELEMETRY:
        report = _decode(payload, Report)
        row = _believed(connection, device, report.device, report.boot)
        telemetry.record(connection, row, report, now)
        acks.setdefault((device, report.boot), []).append(report.seq)
    elif leaf == topics.REPORTED:
        message = _decode(payload, Reported)
        row = _believed(connection, device, message.device, message.boot)
        if message.profile != row.profile:
            raise DroppedError("claims another profile than it enrolled with")
        devices.reported(connection, row, message, now)
    elif leaf == topics.STATUS:
        status = _decode(payload, Status)
        devices.status(connection, _believed(connection, device, device, status.boot), status, now)
    else:
        raise DroppedError("unexpected topic")


def _decode(payload: bytes, kind: type[T]) -> T:
    try:
        return decode(payload, kind)
    except MessageError as error:
        raise DroppedError(f"unreadable {kind.__name__.lower()}") from error


def _believed(connection: Connection, device: str, claimed: str, boot: Boot) -> DeviceRow:
    if claimed != device:
        raise DroppedError("names another device than its topic")
    try:
        row = devices.get(connection, device, lock=True)
    except NotFoundError as error:
        raise DroppedError("unknown device") from error
    if boot.enrolment != row.enrolment or row.enrolment == 0:
        raise DroppedError("of another enrolment")
    if row.decommissioned_at is not None:
        raise DroppedError("of a device out of service")
    if row.credential_hash is None:
        # Not every broker looks at the list of revocations, or has the newest one.
        raise DroppedError("of a revoked device")
    enrolments.confirm(connection, row)
    return row
