"""Reports that the fleet has not acknowledged yet, in a bounded SQLite file.

Always true
 1. A report leaves only when its exact (boot, seq) was acknowledged, or as the oldest beyond the bound, counted.
 2. A report that `add` returned from survives a power cut (WAL, `synchronous=FULL`).

Used from one thread. A damaged file is put aside and a new one begun: telemetry is worth less than running.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from device_agent import log
from edgekit.wire.messages import Boot

MAX_REPORTS = 10_000
MAX_BYTES = 32 << 20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS report (
    enrolment INTEGER NOT NULL, incarnation INTEGER NOT NULL, nonce TEXT NOT NULL, seq INTEGER NOT NULL,
    digests TEXT NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (enrolment, incarnation, nonce, seq)
) WITHOUT ROWID;
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


class Spool:
    def __init__(self, path: Path, *, max_reports: int = MAX_REPORTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_reports = max_reports
        self._max_bytes = max_bytes
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            log.trouble("the spool was damaged and is begun anew; its reports are lost", reason=error)
            for leftover in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                if leftover.exists():
                    leftover.replace(leftover.with_name(leftover.name + ".damaged"))
            self._db = _open(path)
        self._count, self._bytes = self._db.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM report"
        ).fetchone()

    def add(self, key: Key, payload: bytes, digests: Iterable[str]) -> None:
        """Keep a report, dropping the oldest beyond the bound. `digests` are those it carries as loaded."""
        with self._db:
            self._db.execute("INSERT INTO report VALUES (?,?,?,?,?,?)", (*key, " ".join(digests), payload))
            self._count += 1
            self._bytes += len(payload)
            while self._count > 1 and (self._count > self._max_reports or self._bytes > self._max_bytes):
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._db.execute(
            "SELECT enrolment, incarnation, nonce, seq, length(payload) FROM report ORDER BY 1, 2, 3, 4 LIMIT 1"
        ).fetchone()
        self._delete(Key(*oldest[:4]))
        self._count -= 1
        self._bytes -= oldest[4]
        self._db.execute("UPDATE lost SET reports = reports + 1")

    def _delete(self, key: Key) -> None:
        self._db.execute(
            "DELETE FROM report WHERE enrolment = ? AND incarnation = ? AND nonce = ? AND seq = ?", key
        )

    def acknowledge(self, boot: Boot, seqs: Sequence[int]) -> set[str]:
        """Remove exactly these; the digests that they carried."""
        digests: set[str] = set()
        with self._db:
            for seq in seqs:
                key = key_of(boot, seq)
                row = self._db.execute(
                    "SELECT digests, length(payload) FROM report"
                    " WHERE enrolment = ? AND incarnation = ? AND nonce = ? AND seq = ?",
                    key,
                ).fetchone()
                if row is not None:
                    self._delete(key)
                    self._count -= 1
                    self._bytes -= row[1]
                    digests.update(row[0].split())
        return digests

    def oldest(self, limit: int) -> list[tuple[Key, bytes]]:
        rows = self._db.execute(
            "SELECT enrolment, incarnation, nonce, seq, payload FROM report ORDER BY 1, 2, 3, 4 LIMIT ?",
            (limit,),
        )
        return [(Key(*row[:4]), row[4]) for row in rows]

    @property
    def lost(self) -> int:
        """Reports dropped since the spool began."""
        return int(self._db.execute("SELECT reports FROM lost").fetchone()[0])

    def __len__(self) -> int:
        return int(self._count)

    def close(self) -> None:
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
    except sqlite3.DatabaseError:
        database.close()
        raise
    path.chmod(0o600)
    return database
