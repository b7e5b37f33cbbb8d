"""Who is the controller: one service per database, whatever happens to it.

Always true
 1. On PostgreSQL the lock belongs to one session, and everything the controller changes goes over that very session: if
    it is cut, the lock is free, and nothing more is changed over it. The connection is never silently made anew.
 2. On SQLite the lock is a file beside the database's, held by the kernel for as long as the process lives.
 3. A service that was killed holds nothing: another takes over at its next try.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fleet.server.database import Database

# Any fixed number; it names the lock among all advisory locks of the PostgreSQL database.
_ADVISORY_LOCK = 0x656467656B6974
# A controller whose machine vanished is found out by the server within 5 + 3 * 2 s.
_KEEPALIVE = ("tcp_keepalives_idle = 5", "tcp_keepalives_interval = 2", "tcp_keepalives_count = 3")


class LostError(Exception):
    """The service is the controller no longer, or cannot know that it is."""


class Lock:
    """Used by the controller's thread only, but for `is_held`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        return self._connection is not None

    def take(self) -> bool:
        """Try to become the controller. Raises: SQLAlchemyError if the database does not answer."""
        if self._connection is not None:
            return True
        taken = self._take_session() if self._database.is_postgresql else self._take_file()
        return taken is not None

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction as the controller. Raises: LostError, now or at its end; nothing of it is stored then."""
        connection = self._connection
        if connection is None or connection.invalidated or not self._is_file_ours():
            self.release()
            raise LostError
        try:
            with connection.begin():
                yield connection
        except DBAPIError as error:
            if error.connection_invalidated or connection.invalidated:
                self.release()
                raise LostError from error
            raise

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                # Ended, not given back to the pool: the session is the lock.
                connection.invalidate()
            with contextlib.suppress(SQLAlchemyError):
                connection.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take_session(self) -> Connection | None:
        connection = self._database.engine.connect()
        try:
            taken = connection.execute(
                text("SELECT pg_try_advisory_lock(:k)"), {"k": _ADVISORY_LOCK}
            ).scalar()
            if taken:
                for setting in _KEEPALIVE:
                    connection.execute(text(f"SET {setting}"))
            connection.commit()
        except SQLAlchemyError:
            connection.invalidate()
            connection.close()
            raise
        if not taken:
            connection.close()
            return None
        self._connection = connection
        return connection

    def _take_file(self) -> Connection | None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        self._file = handle
        self._connection = self._database.engine.connect()
        return self._connection

    @property
    def _path(self) -> Path:
        database = self._database.engine.url.database
        assert database is not None
        # By its real place: two names of one file are one database.
        return Path(os.path.realpath(database) + ".controller")

    def _is_file_ours(self) -> bool:
        """Whether the lock's file is still the one that is locked."""
        if self._file is None:
            return True
        try:
            there = self._path.stat()
        except OSError:
            return False
        mine = os.fstat(self._file)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
