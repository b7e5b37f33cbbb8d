"""TLS connections: decrypted here, and relayed over a socket pair whose other end is served like any connection.

A descriptor cannot move to a worker with its TLS session inside, so the session stays in the front, and the plain end of
the pair moves in its place. Each byte is copied once more, which `docs/serving.md` has figures for.

Always true
 1. What is between a client and a worker is at most what the buffers hold: who writes faster than the other side reads
    is not read from.
 2. A connection counts from the moment it is accepted, its handshake included, against `MAX_RELAYS` and `MAX_PER_CLIENT`.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from device_agent import log
from device_agent.serve.peers import relay_pair

MAX_RELAYS = 128
MAX_PER_CLIENT = 64
HANDSHAKE_S = 5.0
_BUFFER_BYTES = 64 * 1024


class Relays:
    """All of the front's. `serve` takes the plain end of each."""

    def __init__(self, context: ssl.SSLContext, serve: Callable[[socket.socket], None]) -> None:
        self._context = context
        self._serve = serve
        self._clients: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[_End] = set()

    def adopt(self, sock: socket.socket) -> None:
        """Take an accepted connection over; closed at once where there are too many."""
        try:
            client = str(sock.getpeername()[0])
        except OSError:
            sock.close()
            return
        if self._clients.total() >= MAX_RELAYS or self._clients[client] >= MAX_PER_CLIENT:
            sock.close()
            return
        self._clients[client] += 1
        task = asyncio.get_running_loop().create_task(self._relay(sock, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, sock: socket.socket, client: str) -> None:
        loop = asyncio.get_running_loop()
        outer, inner = _End(), _End()
        outer.other, inner.other = inner, outer
        self._ends |= {outer, inner}
        try:
            sock.setblocking(False)
            await loop.connect_accepted_socket(
                lambda: outer, sock, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=2.0
            )  # fmt: skip
            ours, theirs = relay_pair(client)
            ours.setblocking(False)
            await loop.connect_accepted_socket(lambda: inner, ours)
            outer.go_on()
            self._serve(theirs)
            await asyncio.gather(outer.lost.wait(), inner.lost.wait())
        except (OSError, ssl.SSLError, TimeoutError) as error:
            # Mostly strangers who speak no TLS.
            log.event("a TLS connection was not made", client=client, reason=repr(error)[:200])
        finally:
            outer.cut()
            inner.cut()
            self._ends -= {outer, inner}
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def close(self) -> None:
        """End all; what is still to be sent gets a moment."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for end in tuple(self._ends):
            end.cut()
        for task in tuple(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class _End(asyncio.Protocol):
    """One side of a relay: what it receives, the other sends."""

    def __init__(self) -> None:
        self.other: _End
        self.lost = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._is_started = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        if self.other._transport is None:  # noqa: SLF001  # the other half of this object
            # Nothing is read before there is somewhere to send it.
            transport.pause_reading()

    def go_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def stop(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Close once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.other.send(data)

    def pause_writing(self) -> None:
        self.other.stop()

    def resume_writing(self) -> None:
        self.other.go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.lost.set()
        self.other.finish()
