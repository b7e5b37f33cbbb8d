"""One device's connection to the broker.

Always true
 1. No more QoS 1 messages are under way than the broker allows (MQTT 5, 3.2.2.3.3); the others wait their turn.
 2. However it ends, `lost` is called once.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from fleet.simulate import mqtt


class Hooks(NamedTuple):
    """What the device does about its connection."""

    up: Callable[[], None]
    message: Callable[[str, bytes], None]
    lost: Callable[[], None]


class Line(asyncio.Protocol):
    """`up` is called once the broker has taken the connection."""

    __slots__ = ("_data", "_free", "_greeting", "_hooks", "_is_lost", "_number", "_transport", "_waiting")

    def __init__(self, greeting: bytes, hooks: Hooks) -> None:
        self._greeting, self._hooks = greeting, hooks
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._waiting: deque[tuple[str, bytes, bool]] = deque()
        self._free = 0
        self._number = 0
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        if not self._is_lost:
            self._is_lost = True
            self._hooks.lost()

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            for kind, flags, body in mqtt.packets(self._data):
                self._packet(kind, flags, body)
        except (ValueError, IndexError):
            self.cut()

    def _packet(self, kind: int, flags: int, body: bytes) -> None:
        if kind == mqtt.PUBACK:
            self._free += 1
            self._drain()
        elif kind == mqtt.PUBLISH:
            found = mqtt.read_publish(flags, body)
            if found.number is not None:
                self._write(mqtt.puback(found.number))
            self._hooks.message(found.topic, found.payload)
        elif kind == mqtt.CONNACK:
            reason, self._free = mqtt.read_connack(body)
            if reason:
                self.cut()
            else:
                self._hooks.up()
        elif kind == mqtt.DISCONNECT:
            self.cut()

    def subscribe(self, *topics: tuple[str, int]) -> None:
        self._write(mqtt.subscribe(self._next(), topics))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """QoS 1."""
        self._waiting.append((topic, payload, retain))
        self._drain()

    def ping(self) -> None:
        self._write(mqtt.PING_REQUEST)

    def goodbye(self) -> None:
        """End it so that the will is not said."""
        self._write(mqtt.GOODBYE)
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _drain(self) -> None:
        while self._free > 0 and self._waiting and self._transport is not None:
            self._free -= 1
            topic, payload, retain = self._waiting.popleft()
            self._write(mqtt.publish(topic, payload, self._next(), retain=retain))

    def _next(self) -> int:
        self._number = self._number % 65_535 + 1
        return self._number

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
