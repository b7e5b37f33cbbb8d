"""The time as this device may know it: the system clock, held against what was signed (`edgekit.protocol.clock`).

Always true
 1. `trusted` is never before the system clock; what has expired by it is expired.
 2. No update begins before something of this run confirmed the time (`for_updates`); serving never waits for that.
 3. `known` is a time only while something of this run confirms the system clock: the kernel says that it is
    synchronized, or it lies within the life of an order that the fleet sent since. What a disk says confirms nothing:
    a board that lay in a drawer for a year starts with the time it was put there.
"""

import ctypes
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from edgekit.protocol import clock

# No order was ever signed before this; a clock that says less is wrong.
AGENT_BUILT = datetime(2025, 6, 1, tzinfo=UTC)
# As long as an order lives.
COMMAND_CONFIRMS = timedelta(days=30)
# adjtimex(2): the state of a clock that nothing keeps synchronized; the structure has 208 bytes on 64-bit machines.
_TIME_ERROR = 5
_TIMEX_BYTES = 512


def is_synchronized() -> bool:
    """Whether the kernel says that its clock is synchronized, by whatever program does that."""
    asked = ctypes.create_string_buffer(_TIMEX_BYTES)
    state = int(ctypes.CDLL(None).adjtimex(asked))
    return 0 <= state < _TIME_ERROR


def _system() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Used by several threads: each call reads what the last one left whole."""

    def __init__(
        self, system: Callable[[], datetime] = _system, synchronized: Callable[[], bool] = is_synchronized
    ) -> None:
        self._system = system
        self._synchronized = synchronized
        self._signed: tuple[datetime, ...] = ()
        self._heard_at = time.monotonic()
        self._order_at = self._heard_at
        self._heard: tuple[datetime, datetime] | None = None

    def remember(self, signed: tuple[datetime, ...]) -> None:
        """Signed times, that heard last first; it was heard now, or in an earlier run."""
        self._signed, self._heard_at = signed, time.monotonic()

    def hear(self, issued: datetime, expires: datetime) -> None:
        """The fleet has just sent an order of this life, and its signature is good."""
        self._heard, self._order_at = (issued, expires), time.monotonic()

    def hear_command(self, issued: datetime) -> None:
        """The fleet has just sent a command, which confirms the time as an order does; it ends no order's life."""
        if self._heard is None or issued > self._heard[0]:
            self.hear(issued, max(issued + COMMAND_CONFIRMS, self._heard[1] if self._heard else issued))

    def trusted(self, issued: datetime | None = None) -> datetime:
        """The time; for judging a newer order, without what its own time `issued` disproves."""
        signed = self._signed if issued is None else clock.not_disproved(self._signed, issued)
        passed = timedelta(seconds=time.monotonic() - self._heard_at)
        return clock.trusted(self._system(), AGENT_BUILT, signed, passed)

    def known(self) -> datetime | None:
        """The time, or None where nothing confirms the system clock."""
        now = self._system()
        if now < AGENT_BUILT:
            return None
        if self._synchronized() or (self._heard and self._heard[0] - clock.SLACK <= now <= self._heard[1]):
            return max(now, self.trusted())
        return None

    def for_updates(self) -> datetime | None:
        """The time by which an update's metadata have expired or not; None while updates wait for it.

        Where nothing synchronizes the system clock, what the order heard last says counts besides, even if it is the
        only one: were it a wrong 2099, updates would wait for the next order, and nothing more.
        """
        if self._system() >= AGENT_BUILT and self._synchronized():
            return self.trusted()
        if self._heard is None:
            return None
        passed = timedelta(seconds=time.monotonic() - self._order_at)
        return max(self.trusted(), self._heard[0] + passed)

    def doubt(self) -> str:
        """Why the system clock is not to be believed; empty where nothing speaks against it."""
        now = self._system()
        shown = now.isoformat(timespec="seconds")
        if now < AGENT_BUILT:
            return f"{shown} lies before this agent was made"
        if self._signed and self.trusted() > now + clock.SLACK:
            return f"{shown} lies before what the fleet has signed"
        if self._heard is not None and now > self._heard[1] and not self._synchronized():
            return f"{shown} lies after the end of the newest order, and nothing synchronizes this clock"
        return ""
