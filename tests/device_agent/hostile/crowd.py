"""A crowd of hostile clients, each of one kind, each from one of fifty addresses; they come back whenever they are cut.

Run:  python crowd.py PORT COUNT BIG   (BIG: the largest body that is taken). Prints "ready" when all have connected
once, and when its input ends, how often each kind connected.
"""

import asyncio
import contextlib
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PREDICT = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
INFER = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


async def slow_head(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _big: int) -> None:
    """A byte now and then, and never an end."""
    writer.write(b"GET /v2 HTTP/1.1\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.3)


async def slow_body(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _big: int) -> None:
    writer.write(INFER + b"Content-Length: 200000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.3)


async def trailers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _big: int) -> None:
    writer.write(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n")
    for number in itertools.count():
        writer.write((b"t%d: " % number) + b"y" * 2000 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def one_long_trailer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _big: int) -> None:
    writer.write(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\nt: ")
    while True:
        writer.write(b"y" * 4000)
        await writer.drain()
        await asyncio.sleep(0.05)


async def announces_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, big: int) -> None:
    writer.write(PREDICT + b"Content-Length: %d\r\n\r\n[" % big)
    await reader.read(100)


async def sends_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, big: int) -> None:
    """As much as is taken, at once, of what takes most memory to read."""
    writer.write(PREDICT + b"Content-Length: %d\r\n\r\n" % big + b"[" + b"0.1," * (big // 4 - 1) + b"0 ]")
    await reader.read(100)
    await asyncio.sleep(3)


async def malformed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _big: int) -> None:
    while True:
        body = random.choice([b'{"inputs": [{"name": "\xff"}]}', b"[" * 200, b"{}", b"\x93NUMPY"])
        writer.write(INFER + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        await reader.readexactly(length)
        await asyncio.sleep(0.1)


async def never_reads(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _big: int) -> None:
    while True:
        writer.write(b"GET /v2/models/digits HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        await writer.drain()
        await asyncio.sleep(0.1)


async def says_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _big: int) -> None:
    await reader.read(1)


KINDS: tuple[Callable[..., Awaitable[None]], ...] = (
    slow_head, slow_body, trailers, one_long_trailer, announces_much, malformed, never_reads, says_nothing,
)  # fmt: skip
# Each of these costs the crowd as much as the crowded.
FEW = (sends_much,)


class Crowd:
    def __init__(self, port: int, count: int, big: int) -> None:
        self.port, self.big = port, big
        self.connected: Counter[str] = Counter()
        self.first = asyncio.Semaphore(0)
        kinds = [FEW[0]] * 2 + [KINDS[index % len(KINDS)] for index in range(count - 2)]
        self.tasks = [asyncio.ensure_future(self.one(index, kind)) for index, kind in enumerate(kinds)]

    async def one(self, index: int, kind: Callable[..., Awaitable[None]]) -> None:
        address = f"127.0.1.{1 + index % 50}"
        is_first = True
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, local_addr=(address, 0)
                )
                self.connected[kind.__name__] += 1
                if is_first:
                    self.first.release()
                    is_first = False
                try:
                    await kind(reader, writer, self.big)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.2)


async def main() -> None:
    port, count, big = map(int, sys.argv[1:])
    crowd = Crowd(port, count, big)
    for _ in range(count):
        await crowd.first.acquire()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps(crowd.connected), flush=True)
    for task in crowd.tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
