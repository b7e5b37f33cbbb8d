"""Reports that the fleet has not acknowledged yet, in a bounded SQLite file.

Always true
 1. A report leaves only when the caller says that it was acknowledged, or as the oldest beyond the bound, counted.
 2. A report that `exchange` returned from survives a power cut (WAL, `synchronous=FULL`).
 3. A file damaged anywhere, found whenever, is set aside and a new one begun: telemetry is worth less than running.
    A report whose own bytes were altered is dropped and counted.

Used from the storage thread only.

Reports lie deflated (which also checks them), and acknowledged ones leave in the transaction that brings the next: one
sync a report.
"""

import sqlite3
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from device_agent import log
from device_agent.database import Database
from edgekit.wire.messages import Boot

MAX_REPORTS = 10_000
MAX_BYTES = 32 << 20

# Ids are given in the order of insertion, which is the order in which reports were made.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS report (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lost (id INTEGER PRIMARY KEY CHECK (id = 0), reports INTEGER NOT NULL);
INSERT OR IGNORE INTO lost VALUES (0, 0);
"""


class Key(NamedTuple):
    """Identifies one report; orders as they were made."""

    enrolment: int
    incarnation: int
    nonce: str
    seq: int


def key_of(boot: Boot, seq: int) -> Key:
    return Key(boot.enrolment, boot.incarnation, boot.nonce, seq)


class Entry(NamedTuple):
    """A report as it is sent; `digests` are those it carries as loaded."""

    key: Key
    payload: bytes
    digests: frozenset[str]


class Held(NamedTuple):
    """`ids` of what was taken; how many reports are in the file; how many it dropped; which file it is."""

    ids: tuple[int, ...]
    reports: int
    lost: int
    file: int


class Spool:
    def __init__(self, path: Path, *, max_reports: int = MAX_REPORTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_reports = max_reports
        self._max_bytes = max_bytes
        self._count = self._bytes = 0
        self._database = Database(
            path,
            _SCHEMA,
            opened=self._weigh,
            damage="the spool was damaged and is begun anew; its reports are lost",
        )

    def exchange(self, new: Sequence[Entry] = (), acknowledged: Collection[int] = ()) -> Held:
        """In one transaction: forget the ids `acknowledged`, take `new`, and drop the oldest beyond the bound.

        Raises: sqlite3.Error or OSError if the disk takes nothing.
        """
        return self._database.do(lambda db: self._exchange(db, new, acknowledged))

    def oldest(self, limit: int) -> list[tuple[int, Entry]]:
        """The first reports with their ids. Raises: as `exchange`."""
        return self._database.do(lambda db: self._oldest(db, limit))

    @property
    def file(self) -> int:
        """How many damaged files were set aside since the agent started; ids mean nothing across files."""
        return self._database.file

    def close(self) -> None:
        self._database.close()

    def _weigh(self, db: sqlite3.Connection) -> None:
        """How much is in a file that was just opened."""
        self._count, self._bytes = db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM report"
        ).fetchone()

    # -- transactions --------------------------------------------------------------------------------------------

    def _exchange(self, db: sqlite3.Connection, new: Sequence[Entry], acknowledged: Collection[int]) -> Held:
        self._delete(db, acknowledged)
        ids: list[int] = []
        for entry in new:
            body = _packed(entry)
            ids.append(int(db.execute("INSERT INTO report (body) VALUES (?)", (body,)).lastrowid or 0))
            self._count += 1
            self._bytes += len(body)
        lost = 0
        while self._count > 1 and (self._count > self._max_reports or self._bytes > self._max_bytes):
            (oldest,) = db.execute("SELECT min(id) FROM report").fetchone()
            self._delete(db, [oldest])
            lost += 1
        return Held(tuple(ids), self._count, _lose(db, lost), self._database.file)

    def _oldest(self, db: sqlite3.Connection, limit: int) -> list[tuple[int, Entry]]:
        found: list[tuple[int, Entry]] = []
        altered: list[int] = []
        for number, body in db.execute("SELECT id, body FROM report ORDER BY id LIMIT ?", (limit,)):
            try:
                found.append((number, _unpacked(body)))
            except (ValueError, TypeError, zlib.error):
                altered.append(number)
        if altered:
            log.trouble("reports in the spool were altered and are dropped", reports=len(altered))
            self._delete(db, altered)
            _lose(db, len(altered))
        return found

    def _delete(self, db: sqlite3.Connection, ids: Collection[int]) -> None:
        for number in ids:
            row = db.execute("SELECT length(body) FROM report WHERE id = ?", (number,)).fetchone()
            if row is not None:
                db.execute("DELETE FROM report WHERE id = ?", (number,))
                self._count -= 1
                self._bytes -= row[0]


def _lose(db: sqlite3.Connection, reports: int) -> int:
    """Count dropped reports; how many there are by now."""
    if reports:
        db.execute("UPDATE lost SET reports = reports + ?", (reports,))
    return int(db.execute("SELECT reports FROM lost").fetchone()[0])


def _packed(entry: Entry) -> bytes:
    """The key and the digests as a line of words, then the payload; deflated, with the checksum of zlib (RFC 1950)."""
    line = " ".join([*map(str, entry.key), *sorted(entry.digests)])
    return zlib.compress(line.encode("ascii") + b"\n" + entry.payload)


def _unpacked(body: bytes) -> Entry:
    """Raises: zlib.error or ValueError if anything was altered."""
    line, payload = zlib.decompress(body).split(b"\n", 1)
    enrolment, incarnation, nonce, seq, *digests = line.decode("ascii").split(" ")
    return Entry(Key(int(enrolment), int(incarnation), nonce, int(seq)), payload, frozenset(digests))
