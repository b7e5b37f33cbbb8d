"""Counts and budget of a running agent: kept over restarts, held against the limits, told as a condition."""

import asyncio
import sqlite3
import time

from device_agent import budget, log, traffic
from device_agent.budget import Limits, Spent, Used
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.config import Settings, Who
from device_agent.record import Record
from device_agent.storage import Storage
from device_agent.traffic import Kept, Traffic
from edgekit.wire.messages import Passed, Purpose

# How much a power cut may forget; a card is written no oftener for it.
SAVE_S = 900.0
CONDITION = "budget"


def made(settings: Settings, storage: Storage, who: Who, conditions: Conditions) -> "Spending":
    """Of an agent, whose connections are counted from now on."""
    kept_in = traffic.record(settings.state.traffic)
    found = Spending(kept_in, storage, who.clock, conditions, limits=settings.file.budget)
    who.access.traffic = found.traffic
    return found


class Spending:
    """Used from the event loop; `model_waits` from any thread. `is_forced`: the newest order says to fetch all the same."""

    def __init__(
        self,
        kept_in: Record[Kept],
        storage: Storage,
        clock: Clock,
        conditions: Conditions,
        *,
        limits: Limits,
    ) -> None:
        self._kept_in = kept_in
        self._storage = storage
        self._clock = clock
        self._conditions = conditions
        self._limits = limits
        kept = kept_in.load() or Kept()
        self.traffic = Traffic(kept)
        self._spent = Spent(kept.day, kept.month, kept.before_day, kept.before_month)
        self._saved_at = time.monotonic()
        self._used: Used | None = None
        self._saving: asyncio.Task[None] | None = None
        self.is_forced = False

    def prometheus(self) -> str:
        """The counts in Prometheus' text format, version 0.0.4."""
        return traffic.prometheus(self.totals)

    @property
    def totals(self) -> dict[Purpose, Passed]:
        return self.traffic.totals()

    def tick(self) -> None:
        """One turn of the supervisor's clock."""
        total = traffic.whole(self.totals)
        self._spent = budget.turned(self._spent, total, self._clock.known())
        self._used = budget.worst(self._limits, self._spent, total)
        told = budget.held(self._used)
        if told:
            self._conditions.set(CONDITION, told)
        else:
            self._conditions.clear(CONDITION)
        if time.monotonic() - self._saved_at >= SAVE_S:
            self._saving = asyncio.create_task(self.save())

    def may_send(self, size: int) -> bool:
        """Whether a sample of so many bytes may go out now."""
        return not budget.holds_sample(self._used, size)

    def window_s(self, usual_s: float) -> float:
        """How long a window of telemetry is now."""
        return budget.window_s(self._used, usual_s)

    def model_waits(self, size: int) -> str:
        """Why a download of so many bytes waits; empty if it need not."""
        return "" if self.is_forced else budget.refuses_model(self._used, size)

    async def save(self) -> None:
        """Keep the counts; a disk that does not take them is told by `Storage`."""
        self._saved_at = time.monotonic()
        spent = self._spent
        kept = Kept(self.totals, spent.day, spent.month, spent.before_day, spent.before_month)
        try:
            await self._storage.do(lambda: traffic.save(self._kept_in, kept))
        except (OSError, sqlite3.Error) as error:
            log.trouble("the counts of traffic cannot be kept", reason=error)
