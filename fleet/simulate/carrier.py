"""A connection to the broker with the device that it belongs to, or (where no broker looks) with several.

Always true
 1. After every connect its devices subscribe, say that they are there and what they are, and send what they have kept.
 2. A connection that ends is made anew, until the run ends and nothing is left to send.
"""

import asyncio
import ssl
import tempfile

from edgekit.wire import topics
from edgekit.wire.enrolment import EnrolmentFile
from fleet.simulate import mqtt
from fleet.simulate.device import Device, Shared
from fleet.simulate.line import Hooks, Line

KEEPALIVE_S = 120
_PING_S = 60.0


class Carrier:
    """One connection; the last will is the first device's."""

    def __init__(self, devices: list[Device], shared: Shared, source: str | None) -> None:
        """`source` is the address to connect from, None for any."""
        self.devices = devices
        self._shared, self._source = shared, source
        self._by_name = {device.identity.name: device for device in devices}
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._is_up = self._is_ending = False
        # How long it is away, where it was not the broker that went.
        self._away_s: float | None = None

    async def start(self) -> None:
        for device in self.devices:
            device.start()
        self._plan_drop()
        self._loop.call_later(_PING_S, self._ping)
        await self._connect()

    def end(self) -> None:
        """No further reports and drops; what is kept is still sent until it is acknowledged."""
        self._is_ending = True
        for device in self.devices:
            device.end()

    def stop(self) -> None:
        self._is_ending = True
        for device in self.devices:
            device.stop()
        if self._line is not None:
            self._line.goodbye()

    @property
    def waiting(self) -> int:
        """Reports that are not acknowledged."""
        return sum(device.waiting for device in self.devices)

    async def _connect(self) -> None:
        first = self.devices[0]
        greeting = mqtt.connect(first.identity.name, first.will, KEEPALIVE_S)
        broker = self._shared.file.broker
        line = Line(greeting, Hooks(self._up, self._message, self._lost))
        self._line = line
        try:
            await self._loop.create_connection(
                lambda: line,
                broker.host,
                broker.port,
                ssl=tls_context(self._shared.file, first.identity.certificate) if broker.tls else None,
                local_addr=(self._source, 0) if self._source else None,
            )
        except OSError:
            self._shared.tally.refused_connections += 1
            self._line = None
            self._again(1.0 + 4.0 * self._shared.random.random())

    def _again(self, after_s: float) -> None:
        if not self._is_ending or self.waiting:
            self._loop.call_later(after_s, lambda: asyncio.ensure_future(self._connect()))

    def _up(self) -> None:
        assert self._line is not None
        self._is_up = True
        self._shared.tally.connected += 1
        self._shared.tally.connections += 1
        for device in self.devices:
            device.up(self._line)

    def _lost(self) -> None:
        if self._is_up:
            self._shared.tally.connected -= 1
        self._line, self._is_up = None, False
        for device in self.devices:
            device.lost()
        away_s, self._away_s = self._away_s, None
        self._again(1.0 + 4.0 * self._shared.random.random() if away_s is None else away_s)

    def _message(self, topic: str, payload: bytes) -> None:
        place = topics.parse(topic)
        if place is not None and place[0] in self._by_name:
            self._by_name[place[0]].message(topic, payload)

    def _ping(self) -> None:
        if not self._is_ending:
            self._loop.call_later(_PING_S, self._ping)
        if self._line is not None and self._is_up:
            self._line.ping()

    def _plan_drop(self) -> None:
        if self._shared.world.drops_per_hour > 0:
            pause_s = self._shared.random.expovariate(self._shared.world.drops_per_hour / 3600.0)
            self._loop.call_later(min(pause_s, 1e6), self._drop)

    def _drop(self) -> None:
        """The connection goes, without a word; half of the time because the device starts anew."""
        if self._is_ending:
            return
        self._plan_drop()
        if self._line is None or not self._is_up:
            return
        self._shared.tally.drops += 1
        if self._shared.random.random() < 0.5:
            for device in self.devices:
                device.starts_anew()
        self._away_s = self._shared.random.expovariate(1 / self._shared.world.away_s)
        self._line.cut()


def tls_context(file: EnrolmentFile, certificate: str) -> ssl.SSLContext:
    """Pinned by the file, showing the device's certificate."""
    made = ssl.create_default_context(cadata=file.ca)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:
        both.write(certificate)
        both.flush()
        made.load_cert_chain(both.name)
    return made
