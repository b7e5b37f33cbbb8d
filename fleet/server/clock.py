"""The fleet's sense of time: what durations are measured by, and what people and devices are told.

Always true
 1. Steady time only goes forward, by seconds that have really passed, whatever is done to the wall clock.
 2. It goes on after a restart, or in the service that takes over, where it was: kept in the database. Time in which
    nobody kept it counts by the wall clock, but for no more than `BRIDGE_S`: a soak, a deadline is not over because
    nobody was there to watch it.
 3. It began as wall time, so both are unix seconds and close to each other where the clock was never stepped.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection

from fleet.rules.sums import NOT_DEAF, Deaf
from fleet.server.store import settings

BRIDGE_S = 60.0
_KEY = "clock"


class Now(NamedTuple):
    """`wall` for people, signatures and the audit log; `steady` for durations. `unstepped` is the wall clock as it
    would be without the steps that it made since this service started.
    """

    wall: float
    steady: float
    unstepped: float


def same(seconds: float) -> Now:
    """A time at which no clock was ever stepped."""
    return Now(seconds, seconds, seconds)


class _Kept(msgspec.Struct, frozen=True):
    """Of the moment it was written. `heard_until` is when the fleet last could hear its devices, `deaf` when it last
    could not.
    """

    steady: float
    wall: float
    heard_until: float = 0.0
    deaf: Deaf = NOT_DEAF


class Clock:
    """Used by all threads of a service."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._started_wall = self._steady = wall()
        self._started = self._at = monotonic()
        self._heard_until = 0.0
        self._has_resumed = False
        self.deaf: Deaf = NOT_DEAF

    def now(self) -> Now:
        with self._lock:
            ticks = self._monotonic()
            steady = self._steady + (ticks - self._at)
            return Now(self._wall(), steady, self._started_wall + (ticks - self._started))

    def at(self, ticks: float) -> float:
        """The steady time of a moment of this process's monotonic clock."""
        with self._lock:
            return self._steady + (ticks - self._at)

    def resume(self, connection: Connection) -> None:
        """Go on from what the database knows: at the start, and when this service takes over."""
        text = settings.get(connection, _KEY)
        if text is None:
            return
        kept = msgspec.json.decode(text, type=_Kept)
        passed = min(max(0.0, self._wall() - kept.wall), BRIDGE_S)
        with self._lock:
            ticks = self._monotonic()
            own = self._steady + (ticks - self._at) if self._has_resumed else 0.0
            self._steady, self._at = max(own, kept.steady + passed), ticks
            self._heard_until = kept.heard_until
            self._has_resumed = True

    def follow(self, connection: Connection) -> None:
        """Go by the time that another process keeps: what it wrote last, and what has passed since. Of two times of
        deafness, its own and the other's, the one that ended last counts.
        """
        text = settings.get(connection, _KEY)
        if text is None:
            return
        kept = msgspec.json.decode(text, type=_Kept)
        passed = min(max(0.0, self._wall() - kept.wall), BRIDGE_S)
        with self._lock:
            self._steady, self._at = kept.steady + passed, self._monotonic()
            if kept.deaf[1] > self.deaf[1]:
                self.deaf = kept.deaf

    def hears(self) -> None:
        """The fleet hears its devices now."""
        now = self.now()
        with self._lock:
            self._heard_until = now.steady

    def keep(self, connection: Connection, *, is_hearing: bool) -> None:
        """Write it down; at least every `BRIDGE_S`."""
        now = self.now()
        with self._lock:
            if is_hearing:
                self._heard_until = now.steady
            kept = _Kept(now.steady, now.wall, self._heard_until, self.deaf)
        settings.put(connection, _KEY, msgspec.json.encode(kept).decode())

    def hears_again(self) -> None:
        """The fleet is connected to its broker, and was not."""
        now = self.now()
        with self._lock:
            self.deaf = (self._heard_until, now.steady)
            self._heard_until = now.steady
