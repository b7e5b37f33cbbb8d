"""The process of one source with its sinks; started by the supervisor with one end of a channel.

The source has a thread, each sink has one; the main thread keeps the channel. It ends with the channel, when it is told to
(`Drain`), when there is nothing more to read, or with what went wrong, which it says first.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import sys
import threading
from collections import deque
from pathlib import Path

import msgspec

from device_agent import log, parent
from device_agent.agentfile import AnySink, AnySource
from device_agent.channel import CONNECTION, Channel, Dial, Drain, Message, SourceTold
from device_agent.sinks.delivery import Delivery
from device_agent.sources import kinds
from device_agent.sources.ask import Asker
from device_agent.sources.feed import Feed, StoppedError, Tally
from device_agent.sources.outbox import Outbox
from edgekit.errors import EdgeKitError

TELL_S = 1.0
# How long the supervisor may take to make a connection.
DIAL_S = 30.0
# What sinks get to take what is there, and the source to finish what it began, when the process is to end.
FAREWELL_S = 2.0
FINISH_S = 5.0
FAILED = 1


class Assignment(msgspec.Struct, frozen=True):
    """What the supervisor writes to the process's standard input. `folder` is the source's own."""

    device: str
    source: AnySource
    sinks: tuple[AnySink, ...]
    folder: str
    log_json: bool = False


class Dialer:
    """Connections to the agent's front, for any thread."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._connections: deque[socket.socket] = deque()
        self._loop: asyncio.AbstractEventLoop
        self._channel: Channel

    def attach(self, channel: Channel) -> None:
        self._loop, self._channel = asyncio.get_running_loop(), channel

    def dial(self) -> socket.socket:
        """Raises: OSError."""
        try:
            self._loop.call_soon_threadsafe(self._channel.send, Dial())
        except RuntimeError as error:
            raise ConnectionAbortedError("the process ends") from error
        with self._came:
            if not self._came.wait_for(lambda: self._connections, DIAL_S):
                raise TimeoutError("the agent gave no connection")
            return self._connections.popleft()

    def taken(self, descriptor: int, _about: bytes) -> None:
        with self._came:
            self._connections.append(socket.socket(fileno=descriptor))
            self._came.notify()


class Process:
    def __init__(self, given: Assignment) -> None:
        self._given = given
        source = given.source
        self._tally = Tally()
        self._dialer = Dialer()
        self._outbox = Outbox(
            Path(given.folder) / "backlog.db",
            [sink.name for sink in given.sinks],
            source.backlog_mb * 1_000_000,
        )
        asker = Asker(self._dialer.dial, source.deployment)
        self._feed = Feed(source.name, source.deployment, asker, self._outbox, self._tally)
        self._error = ""
        self._is_over = False
        self._ended = asyncio.Event()
        self._channel: Channel

    async def run(self, sock: socket.socket) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        self._channel = Channel(sock, self._told, {CONNECTION: self._dialer.taken}, self._cut_off)
        self._channel.start()
        self._dialer.attach(self._channel)
        thread = threading.Thread(target=self._read, args=(loop,), name="source", daemon=True)
        deliveries: list[Delivery] = []
        try:
            client = f"edgekit-{self._given.device}-{self._given.source.name}"
            deliveries = [
                Delivery(
                    sink.name, kinds.sink_of(sink, self._given.source, client), self._outbox, self._tally
                )
                for sink in self._given.sinks
            ]
        except EdgeKitError as error:
            self._error = str(error)
        else:
            for delivery in deliveries:
                delivery.start()
            thread.start()
            await self._until_ended(deliveries)
        await asyncio.to_thread(self._finish, thread, deliveries)
        self._channel.send(self._now())
        await self._channel.flushed()
        return FAILED if self._error else 0

    async def _until_ended(self, deliveries: list[Delivery]) -> None:
        told = SourceTold()
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    await self._ended.wait()
            if broken := next((one.failure for one in deliveries if one.failure is not None), None):
                self._error = self._error or _why(broken)
                return
            if (now := self._now()) != told:
                told = now
                self._channel.send(now)

    def _finish(self, thread: threading.Thread, deliveries: list[Delivery]) -> None:
        self._feed.stop()
        if thread.is_alive():
            thread.join(FINISH_S)
        for delivery in deliveries:
            delivery.stop()
        for delivery in deliveries:
            delivery.join(FAREWELL_S)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """The source's thread."""
        spec = self._given.source
        try:
            source = kinds.source_of(spec, f"edgekit-{self._given.device}-{spec.name}")
            source.run(self._feed)
            self._is_over = True
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001  # whatever it is, the process ends with it
            self._error = _why(error)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended.set)

    def _now(self) -> SourceTold:
        told = self._tally.told(self._outbox.answers)
        return msgspec.structs.replace(told, error=self._error, is_over=self._is_over)

    def _told(self, message: Message) -> None:
        if isinstance(message, Drain):
            self._feed.stop()
            self._ended.set()

    def _cut_off(self) -> None:
        """The supervisor is gone: its successor starts its own."""
        os._exit(0)


def _why(error: BaseException) -> str:
    if isinstance(error, EdgeKitError):
        return str(error)
    if isinstance(error, OSError | sqlite3.Error):
        return f"the disk takes nothing ({error})"
    return f"unexpected: {error!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A source's process; started by 'edgekit agent run'.")
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parser.add_argument("--channel", type=int, required=True)
    chosen = parser.parse_args()
    parent.die_with(chosen.parent)
    # Ctrl-C reaches the whole process group; the supervisor decides how its processes end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Assignment)
    log.set_up(as_json=given.log_json)
    sock = socket.socket(fileno=chosen.channel)

    async def run() -> int:
        return await Process(given).run(sock)

    code = asyncio.run(run())
    # Skips interpreter teardown: threads of libraries may still be at work.
    os._exit(code)


if __name__ == "__main__":
    main()
