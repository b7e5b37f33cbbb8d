"""What supervisor, workers and sources say to each other, and file descriptors beside it.

A SEQPACKET socket pair: messages keep their bounds and order, so a `Drain` sent after a connection arrives after it.
A packet is `J` and a JSON message, or one byte that says what kind of descriptor comes along, and some bytes about it:
with a `CONNECTION`, those already read from it; with a `SAMPLE` none: its memory holds all; with a `FEED`, the
socket by which a worker feeds a shadow, the share that this may take; with a `PASSED`, an unfamiliar input
or what was answered to it (`device_agent.passing`).
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import msgspec

from device_agent import log
from device_agent.update.events import Cause
from edgekit.manifest import Reference, Sha256
from edgekit.wire.messages import DeploymentWindow, ShadowWindow
from edgekit.wire.samples import SamplePolicy

MAX_PACKET_BYTES = 160 * 1024

CONNECTION = b"C"
SAMPLE = b"S"
FEED = b"F"
PASSED = b"G"
_MESSAGE = b"J"

# Gets a descriptor, from now on its own, and the bytes that came with it.
Taker = Callable[[int, bytes], None]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker loaded this bundle, ran a golden input through it, and serves from now on."""

    digest: Sha256
    model: str
    version: str
    latency_limit_ms: float | None = None
    reference: Reference = Reference()


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot serve this slot and ends."""

    reason: str
    cause: Cause


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """Asks for what was counted since the last snapshot."""


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    window: DeploymentWindow


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Finish what was begun, hand every connection back, count once more, end."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Asks whether the worker's event loop still turns."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    pass


class Dial(msgspec.Struct, frozen=True, tag="dial"):
    """A source asks for a connection to the agent's own front; it comes as a `CONNECTION`."""


class SourceTold(msgspec.Struct, frozen=True, tag="source-told"):
    """What a source did since its process started: inputs read, answered, refused, dropped; answers that sinks took.

    `waiting` answers are on disk until sinks take them. `waits` says what the source waits for, `sinks` why one takes
    nothing, `error` why the process ends; `is_over` that there is nothing more to read.
    """

    read: int = 0
    answered: int = 0
    refused: int = 0
    dropped: int = 0
    delivered: int = 0
    waiting: int = 0
    waits: str = ""
    sinks: dict[str, str] = {}
    error: str = ""
    is_over: bool = False


class Sampling(msgspec.Struct, frozen=True, tag="sampling"):
    """What the worker may keep of its inputs from now on, and whether they drift by what the device finds."""

    policies: tuple[SamplePolicy, ...] = ()
    is_drifting: bool = False


class PassedOver(msgspec.Struct, frozen=True, tag="passed-over"):
    """So many inputs more that a policy wanted could not be kept without holding up answers."""

    inputs: int


class Shadowed(msgspec.Struct, frozen=True, tag="shadowed"):
    """What a shadow compared since it last said so."""

    window: ShadowWindow


Message = (
    Shadowed
    | Ready
    | Failed
    | Snapshot
    | Counted
    | Drain
    | Ping
    | Pong
    | Sampling
    | PassedOver
    | Dial
    | SourceTold
)
_DECODER = msgspec.json.Decoder(Message)


class Channel:
    """One end. Call `start` inside a running loop; all callbacks run in it.

    `on_message` gets messages; `takers` says, by kind, who gets descriptors that the other end sent, and connections
    that were to be sent to it and cannot be any more. What nobody takes is closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        takers: Mapping[bytes, Taker],
        on_closed: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._takers = takers
        self._on_closed = on_closed
        self._outgoing: deque[tuple[bytes, int | None]] = deque()
        self._loop: asyncio.AbstractEventLoop
        self.is_open = True

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._readable)

    def send(self, message: Message) -> None:
        """Queue a message; dropped if the other end is gone."""
        self._queue(_MESSAGE + msgspec.json.encode(message), None)

    def pass_on(self, kind: bytes, descriptor: int, about: bytes = b"") -> None:
        """Hand a descriptor over: it is closed here once sent. A connection that cannot be sent comes back."""
        self._queue(kind + about, descriptor)

    def read_rest(self) -> None:
        """Everything that the other end sent before it ended."""
        while self.is_open and self._read_one():
            pass

    async def flushed(self) -> None:
        """Until everything queued has left this process (or cannot any more)."""
        while self._outgoing and self.is_open:  # noqa: ASYNC110  # the queue drains in a writer callback
            await asyncio.sleep(0.005)

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        unsent = tuple(self._outgoing)
        self._outgoing.clear()
        self._sock.close()
        for packet, descriptor in unsent:
            if descriptor is not None:
                self._not_sent(packet, descriptor)

    def _queue(self, packet: bytes, descriptor: int | None) -> None:
        if not self.is_open or len(packet) > MAX_PACKET_BYTES:
            if descriptor is not None and not self.is_open:
                self._not_sent(packet, descriptor)
                return
            log.trouble("packet between processes dropped", size=len(packet), open=self.is_open)
            if descriptor is not None:
                os.close(descriptor)
            return
        self._outgoing.append((packet, descriptor))
        if len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            packet, descriptor = self._outgoing[0]
            try:
                socket.send_fds(self._sock, [packet], [] if descriptor is None else [descriptor])
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                # The other end died: what it sent before is still to be read, and the reader sees the end.
                log.trouble("packet to a process that ended was lost", size=len(packet))
            self._outgoing.popleft()
            if descriptor is not None:
                os.close(descriptor)
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        self._read_one()

    def _read_one(self) -> bool:
        """Take the next packet; False if there is none."""
        try:
            packet, descriptors, _flags, _address = socket.recv_fds(self._sock, MAX_PACKET_BYTES + 1, 1)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._lost()
            return False
        if not packet:
            self._lost()
            return False
        if descriptors:
            self._take(packet, descriptors[0])
        else:
            self._hear(packet[1:])
        return True

    def _not_sent(self, packet: bytes, descriptor: int) -> None:
        if packet[:1] == CONNECTION:
            self._take(packet, descriptor)
        else:
            os.close(descriptor)

    def _take(self, packet: bytes, descriptor: int) -> None:
        taker = self._takers.get(packet[:1])
        if taker is None:
            os.close(descriptor)
        else:
            taker(descriptor, packet[1:])

    def _hear(self, data: bytes) -> None:
        try:
            message = _DECODER.decode(data)
        except msgspec.DecodeError as error:
            log.trouble("a message between processes cannot be read", reason=error)
            return
        self._on_message(message)

    def _lost(self) -> None:
        if self.is_open:
            self.close()
            self._on_closed()


def untaken(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The connections that were sent to `sock`, the end of a process that is gone, and that it never received."""
    sock.setblocking(False)
    while True:
        try:
            packet, descriptors, _flags, _address = socket.recv_fds(sock, MAX_PACKET_BYTES + 1, 1)
        except OSError:
            return
        if not packet:
            return
        if descriptors and packet[:1] == CONNECTION:
            yield descriptors[0], packet[1:]
        elif descriptors:
            os.close(descriptors[0])
