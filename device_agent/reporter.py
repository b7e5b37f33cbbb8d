"""Telemetry: one report a window, kept in the spool until the fleet acknowledged it.

Always true
 1. A window is reported whether or not anything happened in it; a cut loses the open one at most, and those that a
    disk that cannot be written did not take. In memory the newest `MAX_UNSAVED_BYTES` are kept, others counted as lost.
 2. Each report and each description of the device takes a new number of this boot.
 3. A report is sent again with back-off until its exact number is acknowledged; at each reconnect at once.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec.structs import replace

from device_agent import log
from device_agent.spool import Entry, Held, Key, Spool, key_of
from device_agent.storage import Storage
from edgekit.errors import MessageError
from edgekit.wire import messages
from edgekit.wire.messages import MAX_MESSAGE_BYTES, Ack, Boot, DeploymentWindow, Passed, Purpose, Report

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
IN_FLIGHT = 64
# What is kept in memory while the spool cannot be written.
MAX_UNSAVED_BYTES = 4 << 20


@dataclass(frozen=True)
class Vitals:
    """What a report says of the device itself."""

    cpu_percent: float | None
    memory_mb: float | None
    temperature_c: float | None
    clock_ok: bool
    traffic: dict[Purpose, Passed] = field(default_factory=dict)


class Numbers:
    """Sequence numbers of one boot."""

    def __init__(self, last: int = 0) -> None:
        self._next = last

    def take(self) -> int:
        self._next += 1
        return self._next


class Reporter:
    """`send` publishes a payload and says whether the link took it; `spaced` how long a window is for the usual length.
    Used from the event loop only.

    A report is in one of three places: not yet on disk (`_unsaved`), on disk and among the first (`_head`, with its id
    there), or on disk behind them. It may be sent from the first two; which one it is in changes nothing for the fleet.
    """

    def __init__(
        self,
        device: str,
        boot: Boot,
        numbers: Numbers,
        storage: Storage,
        spool: Spool,
        *,
        window_s: float,
        close_window: Callable[[], tuple[DeploymentWindow, ...]],
        vitals: Callable[[], Vitals],
        send: Callable[[bytes], bool],
        set_aside: Callable[[], None],
        spaced: Callable[[float], float] = lambda usual_s: usual_s,
    ) -> None:
        self._device = device
        self._boot = boot
        self._numbers = numbers
        self._storage = storage
        self._spool = spool
        self.window_s = window_s
        self._close_window = close_window
        self._vitals = vitals
        self._send = send
        self._set_aside = set_aside
        self._spaced = spaced
        self._opened = time.monotonic()
        self._started = datetime.now(UTC)
        self._tries: dict[Key, tuple[float, int]] = {}
        self._unsaved: dict[Key, Entry] = {}
        self._head: dict[Key, tuple[int, Entry]] = {}
        self._acknowledged: set[int] = set()
        self._acknowledged_early: set[Key] = set()
        self._held = Held((), 0, 0, 0)
        self._dropped = 0
        self._is_loaded = False
        self._saving: asyncio.Task[None] | None = None

    @property
    def unsaved(self) -> int:
        """Reports that are in memory only."""
        return len(self._unsaved)

    def tick(self) -> None:
        """Close the window if it is over, save and send what is due. Call several times a window."""
        if time.monotonic() - self._opened >= self._spaced(self.window_s):
            self.close_window()
        self._save_due()
        self._send_due()

    def close_window(self) -> None:
        now = time.monotonic()
        vitals = self._vitals()
        report = Report(
            device=self._device,
            boot=self._boot,
            seq=self._numbers.take(),
            started=self._started,
            length_s=round(now - self._opened, 3),
            clock_ok=vitals.clock_ok,
            deployments=self._close_window(),
            cpu_percent=vitals.cpu_percent,
            memory_mb=vitals.memory_mb,
            temperature_c=vitals.temperature_c,
            lost_reports=self._held.lost + self._dropped,
            traffic=vitals.traffic,
        )
        self._opened, self._started = now, datetime.now(UTC)
        digests = frozenset(window.digest for window in report.deployments if window.digest is not None)
        key = key_of(self._boot, report.seq)
        self._unsaved[key] = Entry(key, _encoded(report), digests)
        self._bound_unsaved()

    def link_up(self) -> None:
        """What was sent before may be lost: all of it is due again."""
        self._tries.clear()
        self._send_due()

    def acknowledged(self, payload: bytes) -> frozenset[str]:
        """Forget what an ack names; the digests that those reports carried."""
        try:
            ack = messages.decode(payload, Ack)
        except MessageError as error:
            log.trouble("an acknowledgement cannot be read", reason=error)
            return frozenset()
        digests: frozenset[str] = frozenset()
        for seq in ack.seqs:
            key = key_of(ack.boot, seq)
            self._tries.pop(key, None)
            if (entry := self._unsaved.pop(key, None)) is not None:
                digests |= entry.digests
                if self._is_saving:
                    self._acknowledged_early.add(key)
            elif (found := self._head.pop(key, None)) is not None:
                digests |= found[1].digests
                self._acknowledged.add(found[0])
        self._save_due()
        self._send_due()
        return digests

    async def close(self) -> None:
        """Save what there is, and forget on disk what was acknowledged, if the disk lets us."""
        if self._saving is not None:
            await asyncio.wait([self._saving])
        if self._unsaved or self._acknowledged:
            await self._save()

    # -- saving --------------------------------------------------------------------------------------------------

    @property
    def _is_saving(self) -> bool:
        return self._saving is not None and not self._saving.done()

    def _save_due(self) -> None:
        """Begin to save if there is a new report, or more lies behind the first ones that are all acknowledged."""
        if self._storage.condition or self._is_saving:
            return
        on_disk = self._held.reports - len(self._acknowledged)
        is_more = not self._head and on_disk > 0
        if self._unsaved or is_more or not self._is_loaded:
            self._saving = asyncio.create_task(self._save())

    async def _save(self) -> None:
        """One exchange with the spool. What fails is a condition of the storage, and is tried again when that ends."""
        new = list(self._unsaved.values())
        gone = set(self._acknowledged)
        try:
            held = await self._storage.do(lambda: self._spool.exchange(new, gone))
            self._adopt(held, new, gone)
            if not self._is_loaded or (not self._head and held.reports > len(self._acknowledged)):
                file, first = await self._storage.do(
                    lambda: (self._spool.file, self._spool.oldest(IN_FLIGHT + len(self._acknowledged)))
                )
                self._take_head(file, first)
        except (OSError, sqlite3.Error) as error:
            log.trouble("reports are kept in memory", reports=len(self._unsaved), reason=error)

    def _adopt(self, held: Held, new: list[Entry], gone: set[int]) -> None:
        """What was saved is on disk now; it joins the first ones if nothing lies between."""
        self._check_file(held.file)
        is_whole = self._is_loaded and self._held.reports - len(self._acknowledged) == len(self._head)
        self._acknowledged -= gone
        self._held = held
        for entry, number in zip(new, held.ids, strict=True):
            self._unsaved.pop(entry.key, None)
            if entry.key in self._acknowledged_early:
                self._acknowledged.add(number)
            elif is_whole and len(self._head) < IN_FLIGHT:
                self._head[entry.key] = (number, entry)
        self._acknowledged_early.clear()

    def _take_head(self, file: int, first: list[tuple[int, Entry]]) -> None:
        self._check_file(file)
        self._is_loaded = True
        for number, entry in first:
            if entry.key.enrolment != self._boot.enrolment:
                # Of an enrolment that ended: the fleet takes it no more, and would never acknowledge it.
                self._acknowledged.add(number)
            elif number not in self._acknowledged:
                self._head[entry.key] = (number, entry)

    def _check_file(self, file: int) -> None:
        """Another file was begun because the old one was damaged: what is in memory is saved again."""
        if file == self._held.file:
            return
        self._held = Held((), 0, 0, file)
        self._unsaved = {key: entry for key, (_, entry) in self._head.items()} | self._unsaved
        self._head.clear()
        self._acknowledged.clear()
        self._set_aside()

    def _bound_unsaved(self) -> None:
        size = sum(len(entry.payload) for entry in self._unsaved.values())
        while len(self._unsaved) > 1 and size > MAX_UNSAVED_BYTES:
            oldest = next(iter(self._unsaved))
            size -= len(self._unsaved.pop(oldest).payload)
            self._tries.pop(oldest, None)
            self._dropped += 1

    # -- sending -------------------------------------------------------------------------------------------------

    def _send_due(self) -> None:
        now = time.monotonic()
        waiting = [entry for _, entry in self._head.values()]
        waiting += [entry for key, entry in self._unsaved.items() if key not in self._head]
        for entry in waiting[:IN_FLIGHT]:
            due, tries = self._tries.get(entry.key, (0.0, 0))
            if due > now:
                continue
            if not self._send(entry.payload):
                return
            pause = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**tries) * random.uniform(0.7, 1.3)  # noqa: S311  # jitter
            self._tries[entry.key] = (now + pause, tries + 1)


def _encoded(report: Report) -> bytes:
    """The report within the size of a message; histograms are what it can do without."""
    payload = messages.encode(report)
    if len(payload) <= MAX_MESSAGE_BYTES:
        return payload
    log.trouble("a report was too large; its histograms were left out", size=len(payload))
    slim = tuple(replace(window, inputs={}, outputs={}, confidence={}) for window in report.deployments)
    return messages.encode(replace(report, deployments=slim))
