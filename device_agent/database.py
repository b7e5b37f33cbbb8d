"""A SQLite file that survives power cuts, and that is worth less than running on: damaged, it is set aside and begun anew.

Always true
 1. What `do` returned from survives a power cut (WAL, `synchronous=FULL`); work that raises changed nothing.
 2. A file damaged anywhere, found whenever, is set aside, and the work is done once more on a new one.

The file is opened at first use and again after a failure, so a disk that cannot be written when the agent starts is no
hindrance later. Locked exclusively: WAL then needs no shared-memory file.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from device_agent import durable, log
from device_agent.storage import probe

T = TypeVar("T")

# Most of what is kept fits a page; smaller pages mean fewer bytes to the card (bench/agent/flash.py).
PAGE_BYTES = 1024

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


class Database:
    """`opened` gets each file that was opened, with its schema in place; `damage` is logged when one is set aside.

    Used by one thread at a time.
    """

    def __init__(
        self, path: Path, schema: str, *, opened: Callable[[sqlite3.Connection], None], damage: str
    ) -> None:
        self._path = path
        self._schema = schema
        self._opened = opened
        self._damage = damage
        self._unclear = 0
        self.connection: sqlite3.Connection | None = None
        # How many damaged files were set aside since the start; ids mean nothing across files.
        self.file = 0

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The work, in one transaction; once more on a new file if this one turns out to be damaged.

        Raises: sqlite3.Error or OSError if the disk takes nothing.
        """
        try:
            return self._once(work)
        except sqlite3.Error as error:
            if not self._is_damage(error):
                raise
            log.trouble(self._damage, reason=error)
        self._put_aside()
        return self._once(work)

    def close(self) -> None:
        if self.connection is not None:
            with suppress(sqlite3.Error):
                self.connection.close()
            self.connection = None

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self.connection is None:
                self.connection = _open(self._path, self._schema)
                self._opened(self.connection)
            with self.connection:
                result = work(self.connection)
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
        self.file += 1


def _open(path: Path, schema: str) -> sqlite3.Connection:
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
            "temp_store=MEMORY",
        ):
            database.execute(f"PRAGMA {setting}")
        database.executescript(schema)
        path.chmod(0o600)
    except (sqlite3.Error, OSError):
        database.close()
        raise
    return database
