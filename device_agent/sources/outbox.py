"""Answers that not every sink has taken yet, and what a source must remember with them, in a bounded SQLite file.

Always true
 1. An answer that `put` returned from survives a power cut, and leaves when each of its sinks has taken it; or as the
    oldest beyond the bound where the caller allowed that, counted.
 2. What a source remembers of an input (`remember`) is kept in the same transaction as the input's answer.
 3. There is one answer of an id.

Used by several threads of one process.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from device_agent.database import Database

T = TypeVar("T")

# So many ids of senders are remembered, so that what is sent twice is answered once.
MAX_SEEN = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answer (id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS owed (sink TEXT NOT NULL, answer INTEGER NOT NULL, PRIMARY KEY (sink, answer)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claim (name BLOB PRIMARY KEY, mark TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS waiting (id INTEGER PRIMARY KEY AUTOINCREMENT, about BLOB NOT NULL, body BLOB NOT NULL);
"""

# What a source changes beside an answer, in its transaction.
Remember = Callable[[sqlite3.Connection], None]


class Owed(NamedTuple):
    """An answer on its way to a sink; `uid` is what a receiver tells repeats by."""

    number: int
    uid: str
    body: bytes


class Outbox:
    """For `sinks`; answers and inputs that wait may take `max_bytes`."""

    def __init__(self, path: Path, sinks: Sequence[str], max_bytes: int) -> None:
        self._sinks = tuple(sinks)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._database = Database(
            path,
            _SCHEMA,
            opened=self._opened,
            damage="the backlog was damaged and is begun anew; its answers are lost",
        )
        self._bytes = self._answers = 0
        self.came = threading.Condition()

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._max_bytes

    @property
    def answers(self) -> int:
        """How many some sink has not taken yet."""
        return self._answers

    @property
    def lost_files(self) -> int:
        """How many damaged files were set aside."""
        return self._database.file

    def put(
        self, uid: str, body: bytes, remember: Remember | None = None, *, makes_room: bool = False
    ) -> int:
        """Keep an answer for every sink; how many older ones made room for it.

        Raises: sqlite3.Error or OSError if the disk takes nothing.
        """
        with self._lock:
            lost = self.do(lambda db: self._put(db, uid, body, remember, makes_room=makes_room))
        with self.came:
            self.came.notify_all()
        return lost

    def remember(self, what: Callable[[sqlite3.Connection], T]) -> T:
        """A change, or a look, of a source's own. Raises: as `put`."""
        with self._lock:
            return self.do(what)

    def keep_waiting(self, about: bytes, body: bytes) -> int:
        """An input that cannot be asked for again waits here; how many older ones made room. Raises: as `put`."""
        with self._lock:
            return self.do(lambda db: self._keep_waiting(db, about, body))

    def next_waiting(self) -> tuple[int, bytes, bytes] | None:
        """The oldest input that waits: its number, what is said about it, itself. Raises: as `put`."""
        query = "SELECT id, about, body FROM waiting ORDER BY id LIMIT 1"
        with self._lock:
            row = self.do(lambda db: db.execute(query).fetchone())
        return None if row is None else (int(row[0]), bytes(row[1]), bytes(row[2]))

    def done_waiting(self, number: int) -> Remember:
        """That an input that waited has its answer; to be remembered with that."""

        def forget(db: sqlite3.Connection) -> None:
            row = db.execute(
                "SELECT length(about) + length(body) FROM waiting WHERE id = ?", (number,)
            ).fetchone()
            if row is not None:
                db.execute("DELETE FROM waiting WHERE id = ?", (number,))
                self._bytes -= row[0]

        return forget

    def owed(self, sink: str, limit: int) -> list[Owed]:
        """The oldest answers that `sink` has not taken. Raises: as `put`."""
        query = "SELECT id, uid, body FROM owed JOIN answer ON id = answer WHERE sink = ? ORDER BY id LIMIT ?"
        with self._lock:
            return self.do(
                lambda db: [
                    Owed(number, bytes(uid).decode(), bytes(body))
                    for number, uid, body in db.execute(query, (sink, limit))
                ]
            )

    def taken(self, sink: str, numbers: Iterable[int]) -> None:
        """`sink` has these, or will never take them. Raises: as `put`."""
        gone = tuple(numbers)
        with self._lock:
            self.do(lambda db: self._taken(db, sink, gone))

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction, in the caller's thread. Everything goes through here."""
        return self._database.do(work)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    # -- transactions --------------------------------------------------------------------------------------------

    def _put(
        self, db: sqlite3.Connection, uid: str, body: bytes, remember: Remember | None, *, makes_room: bool
    ) -> int:
        if remember is not None:
            remember(db)
        if not self._sinks or db.execute("SELECT 1 FROM answer WHERE uid = ?", (uid,)).fetchone():
            return 0
        lost = self._make_room(db, "answer") if makes_room else 0
        number = db.execute("INSERT INTO answer (uid, body) VALUES (?, ?)", (uid, body)).lastrowid
        db.executemany("INSERT INTO owed VALUES (?, ?)", [(sink, number) for sink in self._sinks])
        self._bytes += len(body)
        self._answers += 1
        return lost

    def _keep_waiting(self, db: sqlite3.Connection, about: bytes, body: bytes) -> int:
        lost = self._make_room(db, "waiting")
        db.execute("INSERT INTO waiting (about, body) VALUES (?, ?)", (about, body))
        self._bytes += len(about) + len(body)
        return lost

    def _make_room(self, db: sqlite3.Connection, table: str) -> int:
        """Drop the oldest of `table` until the file is within its bound; how many."""
        lost = 0
        while self.is_full:
            row = db.execute(f"SELECT min(id) FROM {table}").fetchone()  # noqa: S608  # one of two names above
            if row[0] is None:
                break
            if table == "answer":
                db.execute("DELETE FROM owed WHERE answer = ?", row)
                self._forget(db, row[0])
            else:
                self.done_waiting(row[0])(db)
            lost += 1
        return lost

    def _taken(self, db: sqlite3.Connection, sink: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            db.execute("DELETE FROM owed WHERE sink = ? AND answer = ?", (sink, number))
            if db.execute("SELECT 1 FROM owed WHERE answer = ? LIMIT 1", (number,)).fetchone() is None:
                self._forget(db, number)

    def _forget(self, db: sqlite3.Connection, number: int) -> None:
        row = db.execute("SELECT length(body) FROM answer WHERE id = ?", (number,)).fetchone()
        if row is not None:
            db.execute("DELETE FROM answer WHERE id = ?", (number,))
            self._bytes -= row[0]
            self._answers -= 1

    def _opened(self, db: sqlite3.Connection) -> None:
        """What is owed to a sink that is gone is owed to nobody; then count."""
        marks = ", ".join("?" * len(self._sinks))
        with db:
            db.execute(f"DELETE FROM owed WHERE sink NOT IN ({marks})", self._sinks)  # noqa: S608  # marks only
            db.execute("DELETE FROM answer WHERE id NOT IN (SELECT answer FROM owed)")
        self._answers, self._bytes = db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM answer"
        ).fetchone()
        (waiting,) = db.execute(
            "SELECT coalesce(sum(length(about) + length(body)), 0) FROM waiting"
        ).fetchone()
        self._bytes += waiting


def is_seen(db: sqlite3.Connection, uid: str) -> bool:
    """Whether an input of this id was answered already, as far as that is remembered."""
    return db.execute("SELECT 1 FROM seen WHERE uid = ?", (uid,)).fetchone() is not None


def see(db: sqlite3.Connection, uid: str) -> None:
    """Remember that an input of this id was answered, and forget the oldest beyond `MAX_SEEN`."""
    number = db.execute("INSERT OR IGNORE INTO seen (uid) VALUES (?)", (uid,)).lastrowid or 0
    db.execute("DELETE FROM seen WHERE id <= ?", (number - MAX_SEEN,))
