"""What the device's links cost, in bytes by purpose and direction, over all its life.

Counted is what TCP carried of each connection to the fleet, by the kernel's own count (`tcp_info`): payload, HTTP heads,
MQTT frames, TLS with its handshakes, and what had to be sent again; not the headers of TCP and IP, nor DNS. An HTTP
connection has one purpose. Of the one connection to the broker, reports and their acknowledgements count as telemetry by
the length of their messages, and everything else, with its TLS and keep-alives, as orders.

Always true
 1. Sums never go down, and the sum of all purposes is what TCP carried.
 2. What was counted since it was saved last is lost with the power, and nothing else.

Any thread may count.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from device_agent import durable
from device_agent.record import Record
from edgekit.wire.messages import Passed, Purpose

PURPOSES: tuple[Purpose, ...] = ("orders", "telemetry", "models", "samples")
# linux/tcp.h, struct tcp_info: where these 64-bit counters lie. Before Linux 4.19 there is no `bytes_sent`.
_BYTES_ACKED, _BYTES_RECEIVED, _BYTES_SENT = 120, 128, 200
_INFO_BYTES = 256
NOTHING = Passed(0, 0)


class HasDescriptor(Protocol):
    """A socket, or what stands around one."""

    def fileno(self) -> int: ...


class Kept(msgspec.Struct, frozen=True):
    """`traffic.json`: what was counted, and what stood there when the present day and month began (`spent`)."""

    totals: dict[Purpose, Passed] = {}
    day: str = ""
    month: str = ""
    before_day: int = 0
    before_month: int = 0


class Meter:
    """One connection. It keeps a descriptor of its own, so that nothing is missed when the other is closed."""

    def __init__(self, purpose: Purpose, sock: HasDescriptor) -> None:
        self.purpose = purpose
        self._sock = socket.socket(fileno=os.dup(sock.fileno()))
        self._last = NOTHING

    def more(self) -> Passed:
        """What passed since the last call."""
        now = _carried(self._sock)
        found = Passed(now.sent - self._last.sent, now.received - self._last.received)
        self._last = now
        return found

    def close(self) -> None:
        self._sock.close()


def _carried(sock: socket.socket) -> Passed:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        sent_at = _BYTES_SENT if len(info) >= _BYTES_SENT + 8 else _BYTES_ACKED
        (sent,) = struct.unpack_from("=Q", info, sent_at)
        (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    except (OSError, struct.error):
        # No TCP, or a kernel that does not tell.
        return NOTHING
    return Passed(sent, received)


class Traffic:
    """The counts of one device, from those that were kept on."""

    def __init__(self, kept: Kept | None = None) -> None:
        known = kept.totals if kept is not None else {}
        self._totals = {purpose: known.get(purpose, NOTHING) for purpose in PURPOSES}
        self._meters: set[Meter] = set()
        self._lock = threading.Lock()
        # Of telemetry, what the broker's connection has not been seen to carry yet.
        self._ahead = NOTHING

    def meter(self, purpose: Purpose, sock: HasDescriptor) -> Meter | None:
        """Count a connection from now on, until `end`; None where that cannot be."""
        with contextlib.suppress(OSError):
            made = Meter(purpose, sock)
            with self._lock:
                self._meters.add(made)
            return made
        return None

    def end(self, meter: Meter | None) -> None:
        """The connection is closed, or about to be."""
        if meter is None:
            return
        with self._lock:
            if meter in self._meters:
                self._meters.discard(meter)
                self._add(meter.purpose, meter.more())
                meter.close()

    def add(self, purpose: Purpose, passed: Passed) -> None:
        """What another process counted."""
        with self._lock:
            self._add(purpose, passed)

    def telemetry(self, *, sent: int = 0, received: int = 0) -> None:
        """Of the broker's connection, so many bytes are reports or their acknowledgements."""
        with self._lock:
            self._totals["telemetry"] = _sum(self._totals["telemetry"], Passed(sent, received))
            self._ahead = _sum(self._ahead, Passed(sent, received))

    def totals(self) -> dict[Purpose, Passed]:
        """All that has passed until now."""
        with self._lock:
            for meter in self._meters:
                self._add(meter.purpose, meter.more())
            return dict(self._totals)

    def _add(self, purpose: Purpose, passed: Passed) -> None:
        if purpose == "orders":
            sent = min(self._ahead.sent, passed.sent)
            received = min(self._ahead.received, passed.received)
            self._ahead = Passed(self._ahead.sent - sent, self._ahead.received - received)
            passed = Passed(passed.sent - sent, passed.received - received)
        self._totals[purpose] = _sum(self._totals[purpose], passed)


def _sum(one: Passed, other: Passed) -> Passed:
    return Passed(one.sent + other.sent, one.received + other.received)


def whole(totals: Mapping[Purpose, Passed]) -> int:
    """Bytes of all purposes, both ways."""
    return sum(passed.sent + passed.received for passed in totals.values())


def record(path: Path) -> Record[Kept]:
    return Record(path, Kept)


def save(kept_in: Record[Kept], kept: Kept) -> None:
    """Raises: OSError."""
    durable.make_folder(kept_in.paths[0].parent)
    kept_in.save(kept)


def prometheus(totals: Mapping[Purpose, Passed]) -> str:
    """The counts in Prometheus' text format, version 0.0.4."""
    lines = [
        "# HELP edgekit_traffic_bytes_total What TCP carried between this device and its fleet.",
        "# TYPE edgekit_traffic_bytes_total counter",
    ]
    for purpose, passed in totals.items():
        lines += [
            f'edgekit_traffic_bytes_total{{purpose="{purpose}",direction="sent"}} {passed.sent}',
            f'edgekit_traffic_bytes_total{{purpose="{purpose}",direction="received"}} {passed.received}',
        ]
    return "\n".join(lines) + "\n"
