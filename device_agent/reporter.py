"""Telemetry: one report a window, kept in the spool until the fleet acknowledged it.

Always true
 1. A window is reported whether or not anything happened in it; a cut loses the open one at most.
 2. Each report and each description of the device takes a new number of this boot.
 3. A report is sent again with back-off until its exact number is acknowledged; at each reconnect at once.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec.structs import replace

from device_agent import log
from device_agent.spool import Key, Spool, key_of
from edgekit.errors import MessageError
from edgekit.wire import messages
from edgekit.wire.messages import MAX_MESSAGE_BYTES, Ack, Boot, DeploymentWindow, Report

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
IN_FLIGHT = 64


@dataclass(frozen=True)
class Vitals:
    """What a report says of the device itself."""

    cpu_percent: float | None
    memory_mb: float | None
    temperature_c: float | None
    clock_ok: bool


class Numbers:
    """Sequence numbers of one boot."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        self._next += 1
        return self._next


class Reporter:
    """`send` publishes a payload and says whether the link took it."""

    def __init__(
        self,
        device: str,
        boot: Boot,
        numbers: Numbers,
        spool: Spool,
        *,
        window_s: float,
        close_window: Callable[[], tuple[DeploymentWindow, ...]],
        vitals: Callable[[], Vitals],
        send: Callable[[bytes], bool],
    ) -> None:
        self._device = device
        self._boot = boot
        self._numbers = numbers
        self._spool = spool
        self.window_s = window_s
        self._close_window = close_window
        self._vitals = vitals
        self._send = send
        self._opened = time.monotonic()
        self._started = datetime.now(UTC)
        self._tries: dict[Key, tuple[float, int]] = {}

    def tick(self) -> None:
        """Close the window if it is over, and send what is due. Call several times a window."""
        if time.monotonic() - self._opened >= self.window_s:
            self.close_window()
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
            lost_reports=self._spool.lost,
        )
        self._opened, self._started = now, datetime.now(UTC)
        digests = {window.digest for window in report.deployments if window.digest is not None}
        self._spool.add(key_of(self._boot, report.seq), _encoded(report), digests)

    def link_up(self) -> None:
        """What was sent before may be lost: all of it is due again."""
        self._tries.clear()
        self._send_due()

    def acknowledged(self, payload: bytes) -> set[str]:
        """Forget what an ack names; the digests that those reports carried."""
        try:
            ack = messages.decode(payload, Ack)
        except MessageError as error:
            log.trouble("an acknowledgement cannot be read", reason=error)
            return set()
        digests = self._spool.acknowledge(ack.boot, ack.seqs)
        for seq in ack.seqs:
            self._tries.pop(key_of(ack.boot, seq), None)
        self._send_due()
        return digests

    def _send_due(self) -> None:
        now = time.monotonic()
        for key, payload in self._spool.oldest(IN_FLIGHT):
            due, tries = self._tries.get(key, (0.0, 0))
            if due > now:
                continue
            if not self._send(payload):
                return
            pause = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**tries) * random.uniform(0.7, 1.3)  # noqa: S311  # jitter
            self._tries[key] = (now + pause, tries + 1)


def _encoded(report: Report) -> bytes:
    """The report within the size of a message; histograms are what it can do without."""
    payload = messages.encode(report)
    if len(payload) <= MAX_MESSAGE_BYTES:
        return payload
    log.trouble("a report was too large; its histograms were left out", size=len(payload))
    slim = tuple(replace(window, inputs={}, outputs={}) for window in report.deployments)
    return messages.encode(replace(report, deployments=slim))
