"""What one client can take of a process: time, connections, trailers, headers, responses that nobody reads."""

import asyncio
import contextlib
import socket

import pytest

from device_agent.serve import chunked, connection, connections
from device_agent.serve.chunked import ChunkedBody
from device_agent.serve.connections import Connections
from device_agent.serve.door import Door
from device_agent.serve.http import MAX_HEADERS, HttpError, Response, Serve, parse_head

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def echo(request):
    return Response(200, bytes(request.body), "text/plain")


def route(_head, _peer):
    return Serve(echo, max_body=100_000, is_admitted=True)


class Scene:
    """A server with a listener, and clients of it from any loopback address."""

    def __init__(self, door=None, route=route):
        self.server = Connections(route, door or Door(1 << 20))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=600)
        self.clients = []

    async def connect(self, source="127.0.0.1"):
        reader, writer = await asyncio.open_connection(sock=self._pair(source))
        self.clients.append(writer)
        await asyncio.sleep(0)
        return reader, writer

    def _pair(self, source):
        client = socket.create_connection(self.listener.getsockname(), source_address=(source, 0))
        accepted, _ = self.listener.accept()
        self.server.adopt(accepted, is_new=True)
        return client

    async def close(self):
        for writer in self.clients:
            writer.close()
        await self.server.drain(None, 1)
        self.listener.close()


def play(story, **how):
    async def whole():
        scene = Scene(**how)
        try:
            await asyncio.wait_for(story(scene), 30)
        finally:
            await scene.close()

    asyncio.run(whole())


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


async def dripped(reader, writer, start, piece, until_s=5.0):
    """What comes back while a piece follows every 20 ms."""
    writer.write(start)
    answer = asyncio.ensure_future(reader.read(65536))
    for _ in range(int(until_s / 0.02)):
        done, _ = await asyncio.wait((answer,), timeout=0.02)
        if done:
            return answer.result()
        writer.write(piece)
    raise AssertionError("nothing came back")


def test_a_byte_now_and_then_does_not_make_a_heads_time_longer(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)

    async def story(scene):
        assert (await dripped(*await scene.connect(), b"GET / HTTP/1.1\r\nA: ", b"x")).startswith(
            b"HTTP/1.1 408 "
        )
        reader, writer = await scene.connect()
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        # The same between two requests, from the first byte on.
        assert (await dripped(reader, writer, b"G", b"x")).startswith(b"HTTP/1.1 408 ")

    play(story)


def test_a_client_that_comes_and_says_nothing_has_the_time_of_a_head(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.05)

    async def story(scene):
        reader, _writer = await scene.connect()
        assert await reader.read() == b""

    play(story)


def test_a_body_that_comes_too_slowly_is_given_up_and_its_place_with_it(monkeypatch):
    monkeypatch.setattr(connection, "GRACE_S", 0.2)
    door = Door(1 << 20)

    async def story(scene):
        start = b"POST / HTTP/1.1\r\nContent-Length: 90000\r\n\r\n"
        assert (await dripped(*await scene.connect(), start, b"x")).startswith(b"HTTP/1.1 408 ")
        assert (door.held, len(door.tickets)) == (0, 0)

    play(story, door=door)


def test_a_body_at_a_fair_rate_has_all_the_time_it_needs(monkeypatch):
    monkeypatch.setattr(connection, "GRACE_S", 0.1)
    monkeypatch.setattr(connection, "MIN_RATE", 10_000)

    async def story(scene):
        reader, writer = await scene.connect()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 40000\r\n\r\n")
        for _ in range(40):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.01)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    play(story)


def test_a_client_that_goes_away_gives_its_place_back():
    door = Door(1 << 20)

    async def story(scene):
        _reader, writer = await scene.connect()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 90000\r\n\r\nx")
        await until(lambda: door.tickets)
        writer.close()
        await until(lambda: not door.tickets)
        assert door.held == 0

    play(story, door=door)


def test_no_body_is_asked_for_before_it_has_a_place():
    async def story(scene):
        reader, writer = await scene.connect()
        writer.write(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 50000\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b"100 Continue" not in answer

    play(story, door=Door(10_000))


# -- trailers and heads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [
        b"0\r\n" + b"a: b\r\n" * 5000,
        b"0\r\na: " + b"x" * 50_000,
        b"1;" + b"e" * 50_000,
        b"1;a=" + b"e" * 50_000 + b"\r\nx\r\n",
    ],
)
@pytest.mark.parametrize("size", [100, 60_000])
def test_trailers_and_extensions_without_end_are_refused(flood, size):
    body = ChunkedBody(1000)

    def pour():
        for start in range(0, len(flood), size):
            body.feed(flood[start : start + size])

    with pytest.raises(HttpError) as refused:
        pour()
    assert refused.value.status == 431


def test_a_few_trailers_are_read_and_dropped():
    body = ChunkedBody(1000)
    assert body.feed(b"3;x=1\r\nabc\r\n0\r\nDigest: a\r\nB: c\r\n\r\n")
    assert body.body == b"abc"


def test_what_follows_a_chunked_body_is_no_part_of_it():
    body = ChunkedBody(1000)
    assert body.feed(b"3\r\nabc\r\n0\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz")
    assert body.body == b"abc"


def test_many_small_chunks_are_no_overhead():
    body = ChunkedBody(chunked.MAX_OVERHEAD * 4)
    assert not body.feed(b"1\r\nx\r\n" * chunked.MAX_OVERHEAD)
    assert body.feed(b"0\r\n\r\n")


def test_headers_are_counted():
    lines = b"".join(b"H%d: x\r\n" % index for index in range(MAX_HEADERS))
    assert parse_head(b"GET / HTTP/1.1\r\n" + lines + b"\r\n").path == "/"
    with pytest.raises(HttpError) as refused:
        parse_head(b"GET / HTTP/1.1\r\nOne: more\r\n" + lines + b"\r\n")
    assert refused.value.status == 431


@pytest.mark.parametrize(
    "twice", [b"Host: a\r\nHost: b\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"]
)
def test_a_contradiction_is_refused(twice):
    with pytest.raises(HttpError):
        parse_head(b"GET / HTTP/1.1\r\n" + twice + b"\r\n")


# -- connections -----------------------------------------------------------------------------------------------------


async def is_cut(reader):
    with contextlib.suppress(TimeoutError, OSError):
        return await asyncio.wait_for(reader.read(), 0.3) == b""
    return True


def test_one_address_has_its_share_and_makes_room_for_itself(monkeypatch):
    monkeypatch.setattr(connections, "MAX_PER_LOCAL", 3)

    async def story(scene):
        first = await scene.connect("127.0.0.5")
        others = [await scene.connect("127.0.0.5") for _ in range(3)]
        stranger = await scene.connect("127.0.0.6")
        await asyncio.sleep(0.05)
        assert len(scene.server.open) == 4
        assert await is_cut(first[0])
        for reader, writer in [*others, stranger]:
            writer.write(GET)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    play(story)


def test_who_was_served_stays_longer_than_who_never_asked(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)

    async def story(scene):
        served, silent = await scene.connect("127.0.0.5"), await scene.connect("127.0.0.6")
        served[1].write(GET)
        await served[0].readuntil(b"\r\n\r\n")
        await scene.connect("127.0.0.7")
        assert await is_cut(silent[0])
        served[1].write(GET)
        assert (await served[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    play(story)


def test_nobody_loses_a_request_under_way_to_a_newcomer(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    go = asyncio.Event()

    async def slow(_request):
        await go.wait()
        return Response(200)

    async def story(scene):
        busy = [await scene.connect(f"127.0.0.{index}") for index in (5, 6)]
        for _reader, writer in busy:
            writer.write(GET)
        await asyncio.sleep(0.1)
        reader, _writer = await scene.connect("127.0.0.7")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        go.set()
        for reader, _writer in busy:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    play(story, route=lambda _head, _peer: Serve(slow, 10))


def test_responses_that_nobody_reads_are_bounded(monkeypatch):
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 20 << 20)

    async def large(_request):
        return Response(200, bytes(9 << 20))

    async def story(scene):
        clients = [await scene.connect(f"127.0.0.{index}") for index in range(5, 10)]
        for _reader, writer in clients:
            writer.transport.pause_reading()
            writer.write(GET)
            await asyncio.sleep(0.05)
        assert len(scene.server.open) < 5
        assert sum(scene.server._unsent.values()) <= 20 << 20

    play(story, route=lambda _head, _peer: Serve(large, 10))
