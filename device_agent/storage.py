"""The one thread that writes: everything durable is done there, in order, so that the event loop never waits for a disk.

Always true
 1. Work given to `do` runs in the storage thread, one piece after the other, in the order in which it was given.
 2. A failing disk is a condition, not the end: `condition` says what is wrong, the error goes to whoever asked, and
    everything else goes on. While it stands, a probe writes, syncs and removes a small file until that works again.
 3. Work that has begun is finished, whether or not somebody still waits for it; work nobody waits for does not begin.
"""

import asyncio
import errno
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from device_agent import durable, log

T = TypeVar("T")
State = Literal["", "full", "read-only", "damaged"]

FIRST_PROBE_S = 1.0
LONGEST_PROBE_S = 15.0
# So much must fit again before a disk no longer counts as full: an order, a machine's row and some reports.
PROBE_BYTES = 128 << 10

_BY_ERRNO: dict[int, State] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.EROFS: "read-only",
    errno.EACCES: "read-only",
    errno.EPERM: "read-only",
}
# What a file operation answers about names, not about the disk.
_ABOUT_NAMES = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ELOOP,
    errno.EINVAL,
}
# https://www.sqlite.org/rescode.html: the primary result code is the low byte.
_BY_SQLITE: dict[int, State] = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_PERM: "read-only",
    sqlite3.SQLITE_AUTH: "read-only",
}


def state_of(error: OSError | sqlite3.Error) -> State:
    """The condition that an error means; empty if it says nothing about the disk."""
    if isinstance(error, sqlite3.Error):
        return _BY_SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "damaged")
    if error.errno is None or error.errno in _ABOUT_NAMES:
        return ""
    return _BY_ERRNO.get(error.errno, "damaged")


class _Piece(NamedTuple):
    work: Callable[[], Any]
    future: "asyncio.Future[Any]"


class Storage:
    """`changed` is called in the event loop whenever `condition` is another than before."""

    def __init__(self, folder: Path, changed: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self.changed = changed
        self.condition: State = ""
        self.detail = ""
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()
        self._probing: asyncio.Task[None] | None = None

    async def do(self, work: Callable[[], T]) -> T:
        """The work's result.

        Raises: what the work raises; an OSError or sqlite3.Error has set `condition` by then.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Piece(work, future))
        return await future

    async def close(self) -> None:
        """Finish what was given, then end the thread."""
        if self._probing is not None:
            self._probing.cancel()
        ended = asyncio.Event()
        self._queue.put(None)
        # Joining in a thread of its own: the loop goes on, and delivers what is still to come.
        threading.Thread(target=self._join, args=(ended,), daemon=True).start()
        await ended.wait()

    def _join(self, ended: asyncio.Event) -> None:
        self._thread.join()
        self._loop.call_soon_threadsafe(ended.set)

    # -- the storage thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            if piece.future.cancelled():
                continue
            result: Any = None
            failure: BaseException | None = None
            try:
                result = piece.work()
            except BaseException as error:  # noqa: BLE001  # delivered to whoever asked, whatever it is
                failure = error
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(self._deliver, piece.future, result, failure)

    # -- in the event loop ---------------------------------------------------------------------------------------

    def _deliver(self, future: "asyncio.Future[Any]", result: Any, failure: BaseException | None) -> None:
        if isinstance(failure, (OSError, sqlite3.Error)):
            self.note(failure)
        if future.cancelled():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)

    def note(self, error: OSError | sqlite3.Error) -> None:
        """A write failed, here or where the work itself went on without it."""
        state = state_of(error)
        if not state:
            return
        self._set(state, str(error))
        if self._probing is None or self._probing.done():
            self._probing = self._loop.create_task(self._probe())

    def _set(self, state: State, detail: str) -> None:
        if state == self.condition:
            return
        if state:
            log.trouble("the state folder cannot be written", storage=state, reason=detail)
        else:
            log.event("the state folder can be written again")
        self.condition, self.detail = state, detail
        self.changed()

    async def _probe(self) -> None:
        """Until a small file can be written again; each failure says what is wrong now."""
        pause = FIRST_PROBE_S
        while self.condition:
            await asyncio.sleep(pause)
            pause = min(LONGEST_PROBE_S, pause * 2)
            try:
                await self.do(lambda: probe(self._folder))
            except OSError as error:
                self._set(state_of(error) or "damaged", str(error))
            else:
                self._set("", "")


def probe(folder: Path) -> None:
    """Write, sync and remove a small file. Raises: OSError."""
    path = folder / ".probe"
    try:
        with durable.writing(path) as sink:
            sink.write(bytes(PROBE_BYTES))
    finally:
        durable.remove(path)
