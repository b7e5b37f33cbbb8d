"""Server-sent events: who watches is told what changed, and asks again for what it shows.

Always true
 1. What a stream says stands in the database (`store.events`), so any service on it tells of what happens in all of them,
    and who comes back with `Last-Event-ID` hears what they missed; too long after, that anything may have changed.
 2. A kind is told of at most once per look (a second), however much changes: a slow or absent reader costs at most
    `MOST_IDS` names per kind.
 3. Only while somebody watches is the database looked at, once for all of them.
 4. A stream ends soon after its reader may no longer read, and at once when the service ends.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from edgekit.errors import FleetError
from fleet.api.events import KINDS, MOST_IDS, Change, EventKind
from fleet.server.database import Database
from fleet.server.store import events

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
STILL_HERE_S = 15.0
MOST_STREAMS = 256
_AT_ONCE = 2000
# PostgreSQL gives numbers out before it commits: a lower one may come to light after a higher. So far back it is looked.
_OVERLAP = 256
STILL_HERE = b": still here\n\n"

Row = tuple[int, EventKind, tuple[str, ...]]


class TooManyStreamsError(FleetError):
    """So many watch already; later there may be room."""

    code = "too-many-streams"
    http_status = 503


@dataclass(eq=False)
class Watcher:
    """One who watches: what they have not been told of yet. None instead of names is any of that kind."""

    hides_names: bool = False
    changed: dict[EventKind, set[str] | None] = field(default_factory=dict)
    newest: int = 0
    # Rows that were there when they came, and which they were told of then if they missed them.
    known: set[int] = field(default_factory=set)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, rows: Iterable[Row]) -> None:
        for number, kind, ids in rows:
            if number in self.known:
                continue
            self.newest = max(self.newest, number)
            names = self.changed.get(kind, set())
            if names is None or not ids or self.hides_names or len(names | set(ids)) > MOST_IDS:
                self.changed[kind] = None
            else:
                self.changed[kind] = names | set(ids)
            self.ready.set()

    def take(self) -> bytes:
        """All of it as text. Only the last event has an `id`: who loses the connection in between hears all again."""
        changes = [Change(kind, tuple(sorted(names or ()))) for kind, names in self.changed.items()]
        self.changed = {}
        self.ready.clear()
        texts = [f"event: changed\ndata: {msgspec.json.encode(change).decode()}\n" for change in changes]
        return "\n".join([*texts[:-1], f"{texts[-1]}id: {self.newest}\n\n"]).encode() if texts else b""


class Hub:
    """All who watch through this service."""

    def __init__(self, database: Database, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._database = database
        self._look_every_s = look_every_s
        self._overlap = _OVERLAP if database.is_postgresql else 0
        self._watchers: set[Watcher] = set()
        self._looking: asyncio.Task[None] | None = None
        self._newest = 0
        self._seen: set[int] = set()
        self._closed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._watchers)

    def close(self) -> None:
        """Every stream ends. From the event loop's thread only."""
        self._closed.set()
        for watcher in self._watchers:
            watcher.ready.set()

    async def stream(
        self,
        since: int | None,
        may_still: Callable[[], Awaitable[bool]],
        *,
        hides_names: bool = False,
        still_here_s: float = STILL_HERE_S,
    ) -> AsyncGenerator[bytes]:
        """What changes from now on, after what did since the event `since`. With `hides_names` nothing is named."""
        watcher = Watcher(hides_names)
        await self._join(watcher, since)
        try:
            # An event without data is none, but its number counts (HTML Living Standard, 9.2.6).
            yield f"retry: 2000\nid: {watcher.newest}\n\n".encode()
            time = asyncio.get_running_loop().time
            asked_at = time()
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(watcher.ready.wait(), still_here_s)
                if self._closed.is_set():
                    return
                if time() - asked_at >= still_here_s:
                    if not await may_still():
                        return
                    asked_at = time()
                yield watcher.take() or STILL_HERE
                await asyncio.sleep(self._look_every_s)
        finally:
            self._watchers.discard(watcher)

    def check_room(self) -> None:
        """Raises: TooManyStreamsError."""
        if len(self._watchers) >= MOST_STREAMS:
            raise TooManyStreamsError(f"{MOST_STREAMS} watch through this service already; try again later")

    async def _join(self, watcher: Watcher, since: int | None) -> None:
        oldest, newest, recent, missed = await run_in_threadpool(self._missed, since)
        watcher.newest = newest
        self._watchers.add(watcher)
        if since is not None and not oldest - 1 <= since <= newest:
            watcher.hear((newest, kind, ()) for kind in KINDS)
        else:
            watcher.hear(missed)
        watcher.known = recent
        if self._looking is None or self._looking.done():
            self._newest, self._seen = newest, recent
            self._looking = asyncio.create_task(self._look())

    def _missed(self, since: int | None) -> tuple[int, int, set[int], list[Row]]:
        """The oldest and the newest number, the newest ones, and the rows that who heard `since` may not have heard."""
        with self._database.read() as connection:
            oldest, newest = events.bounds(connection)
            recent = {row[0] for row in events.after(connection, newest - _OVERLAP, _OVERLAP)}
            rows = [] if since is None else events.after(connection, since - self._overlap, _AT_ONCE)
        return oldest, newest, recent, _decoded(rows)

    async def _look(self) -> None:
        while self._watchers and not self._closed.is_set():
            await asyncio.sleep(self._look_every_s)
            try:
                rows = await run_in_threadpool(self._new)
            except SQLAlchemyError as error:
                # What happens meanwhile is told of later; streams stay, and say that they are still here.
                log.warning("the database could not be asked what changed: %s", error)
                continue
            for watcher in self._watchers:
                watcher.hear(rows)

    def _new(self) -> list[Row]:
        """Rows that were not seen before."""
        back = self._newest - self._overlap
        with self._database.read() as connection:
            rows = [row for row in events.after(connection, back, _AT_ONCE) if row[0] not in self._seen]
        if rows:
            self._newest = max(self._newest, rows[-1][0])
        self._seen = {
            number for number in self._seen | {row[0] for row in rows} if number > self._newest - _OVERLAP
        }
        return _decoded(rows)


def _decoded(rows: Iterable[tuple[int, str, str]]) -> list[Row]:
    return [
        (number, msgspec.convert(kind, EventKind), msgspec.json.decode(ids, type=tuple[str, ...]))
        for number, kind, ids in rows
    ]
