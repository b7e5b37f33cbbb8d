"""Reports that the fleet has not acknowledged yet, in a bounded SQLite file.

Always true
 1. A report leaves only when the caller says that it was acknowledged, or as the oldest beyond the bound, counted.
 2. A report that `exchange` returned from survives a power cut (WAL, `synchronous=FULL`).
 3. A file damaged anywhere, found whenever, is set aside and a new one begun: telemetry is worth less than running.
    A report whose own bytes were altered is dropped and counted.

Used from the storage thread only. The file is opened at first use and again after a failure, so a disk that cannot be
written when the agent starts is no hindrance later. Locked exclusively: WAL then needs no shared-memory file.

Reports lie deflated (which also checks them), and acknowledged ones leave in the transaction that brings the next: one
sync a report.
"""

import sqlite3
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from device_agent import durable, log
from device_agent.storage import probe
from edgekit.wire.messages import Boot

T = TypeVar("T")

MAX_REPORTS = 10_000
MAX_BYTES = 32 << 20
# Most reports fit a page; smaller pages mean fewer bytes to the card (bench/agent/flash.py).
PAGE_BYTES = 1024

# Ids are given in the order of insertion, which is the order in which reports were made.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS report (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lost (id INTEGER PRIMARY KEY CHECK (id = 0), reports INTEGER NOT NULL);
INSERT OR IGNORE INTO lost VALUES (0, 0);
"""
# https://www.sqlite.org/rescode.html: what SQLite says of the file's content, not of the disk. ERROR is a table that
# is gone, since no statement here is wrong otherwise.
_DAMAGED = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
    }
)
# What may come from the disk as well as from this file alone.
_UNCLEAR = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
# So many of those in a row, on a disk that takes another file, mean that the medium under this very file is bad.
_MAX_UNCLEAR = 3


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
        self._path = path
        self._max_reports = max_reports
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self._count = self._bytes = 0
        self._unclear = 0
        self._file = 0

    def exchange(self, new: Sequence[Entry] = (), acknowledged: Collection[int] = ()) -> Held:
        """In one transaction: forget the ids `acknowledged`, take `new`, and drop the oldest beyond the bound.

        Raises: sqlite3.Error or OSError if the disk takes nothing.
        """
        return self._tried(lambda db: self._exchange(db, new, acknowledged))

    def oldest(self, limit: int) -> list[tuple[int, Entry]]:
        """The first reports with their ids. Raises: as `exchange`."""
        return self._tried(lambda db: self._oldest(db, limit))

    @property
    def file(self) -> int:
        """How many damaged files were set aside since the agent started; ids mean nothing across files."""
        return self._file

    def close(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

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
        return Held(tuple(ids), self._count, _lose(db, lost), self._file)

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

    # -- the file ------------------------------------------------------------------------------------------------

    def _tried(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The work on the open file; once more on a new one if this one turns out to be damaged."""
        try:
            return self._once(work)
        except sqlite3.Error as error:
            if not self._is_damage(error):
                raise
            log.trouble("the spool was damaged and is begun anew; its reports are lost", reason=error)
        self._put_aside()
        return self._once(work)

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._db is None:
                self._db = _open(self._path)
                self._count, self._bytes = self._db.execute(
                    "SELECT count(*), coalesce(sum(length(body)), 0) FROM report"
                ).fetchone()
            with self._db:
                result = work(self._db)
        except BaseException:
            # What was counted on the way did not happen; the next use opens the file again and counts.
            self.close()
            raise
        self._unclear = 0
        return result

    def _is_damage(self, error: sqlite3.Error) -> bool:
        """Raises: OSError, which says more, if the disk takes no other file either."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _UNCLEAR:
            probe(self._path.parent)
            self._unclear += 1
            return self._unclear >= _MAX_UNCLEAR
        return code in _DAMAGED

    def _put_aside(self) -> None:
        self.close()
        for path in (Path(f"{self._path}-wal"), self._path):
            if path.exists():
                durable.set_aside(path)
        self._unclear = 0
        self._file += 1


def _open(path: Path) -> sqlite3.Connection:
    """Raises: sqlite3.Error, OSError."""
    database = sqlite3.connect(path, check_same_thread=False, timeout=0.0)
    # A damaged type makes a text of a body: its bytes, then, and not an error of its own.
    database.text_factory = bytes
    try:
        for setting in (
            f"page_size={PAGE_BYTES}",
            "locking_mode=EXCLUSIVE",
            "journal_mode=WAL",
            "synchronous=FULL",
        ):
            database.execute(f"PRAGMA {setting}")
        database.executescript(_SCHEMA)
        path.chmod(0o600)
    except (sqlite3.Error, OSError):
        database.close()
        raise
    return database


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
