"""What is remembered of drift, kept over restarts: a device that is switched off each night would never have seen a day.

Always true
 1. What was met since it was kept last is lost with the power, an hour at most, and nothing else.
 2. What is older than a week by a clock that is confirmed is not gone on from: it is of another time.
"""

import asyncio
import sqlite3
import time
from datetime import datetime, timedelta

import msgspec

from device_agent import durable, log
from device_agent.clock import Clock
from device_agent.drift import Kept, Tracks
from device_agent.folder import StateFolder
from device_agent.record import Record
from device_agent.storage import Storage

# How much a power cut may forget; a card is written no oftener for it: 64 histograms of a day are half a megabyte.
SAVE_S = 3600.0
OLDEST = timedelta(days=7)


class Remembered(msgspec.Struct, frozen=True):
    """`drift.json`. `at` is when it was kept, where the clock was confirmed."""

    deployments: dict[str, Kept] = {}
    at: datetime | None = None


class Watching:
    """The tracks of a running agent. Used from the event loop."""

    def __init__(self, state: StateFolder, storage: Storage, clock: Clock) -> None:
        # One copy: what is lost comes again in a day.
        self._kept_in = Record(state.drift, Remembered, copies=1)
        self._storage = storage
        self._clock = clock
        kept = self._kept_in.load() or Remembered()
        self.tracks = Tracks({} if self._is_old(kept) else kept.deployments)
        self._saved_at = time.monotonic()
        self._saving: asyncio.Task[None] | None = None

    def _is_old(self, kept: Remembered) -> bool:
        now = self._clock.known()
        return now is not None and kept.at is not None and now - kept.at > OLDEST

    def tick(self) -> None:
        """One turn of the supervisor's clock."""
        if time.monotonic() - self._saved_at >= SAVE_S:
            self._saving = asyncio.create_task(self.save())

    async def save(self) -> None:
        """Keep what is remembered; a disk that does not take it is told by `Storage`."""
        self._saved_at = time.monotonic()
        kept = self.tracks.kept
        if not kept:
            return
        remembered = Remembered(kept, self._clock.known())
        try:
            await self._storage.do(lambda: self._write(remembered))
        except (OSError, sqlite3.Error) as error:
            log.trouble("what is remembered of drift cannot be kept", reason=error)

    def _write(self, remembered: Remembered) -> None:
        durable.make_folder(self._kept_in.paths[0].parent)
        self._kept_in.save(remembered)
