"""The HTTP side by bytes: what comes back for exact requests, limits, malformed ones, and moving connections."""

import asyncio
import contextlib
import socket

import pytest

from device_agent.serve import connection as connections
from device_agent.serve.connections import Connections
from device_agent.serve.http import (
    MAX_HEAD_BYTES,
    HttpError,
    PassOn,
    Request,
    Response,
    Serve,
    Wait,
    json_response,
)
from device_agent.serve.routes import Target, target_of


async def echo(request: Request) -> Response:
    return Response(200, bytes(request.body), "text/plain")


def route(head, peer=None):
    if head.path == "/missing":
        raise HttpError(404, "there is nothing here")
    return Serve(echo, max_body=1000)


async def talk(*pieces: bytes, route=route, pause_s=0.01, half_close=False) -> bytes:
    """Everything that comes back for bytes sent in these pieces, until the server closes or falls silent."""
    ours, theirs = socket.socketpair()
    server = Connections(route)
    server.adopt(theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause_s)
    if half_close:
        writer.write_eof()
    answer = b""
    with contextlib.suppress(TimeoutError):
        while chunk := await asyncio.wait_for(reader.read(65536), 0.2):
            answer += chunk
    writer.close()
    await server.drain(None, 1)
    return answer


def asked(*pieces: bytes, **how) -> bytes:
    return asyncio.run(talk(*pieces, **how))


GOLDEN = {
    "a body": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n\r\nhello",
    ),
    "no body": (
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: text/plain\r\n\r\n",
    ),
    "two at once": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n2",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-type: text/plain\r\n\r\n%b"
        % b"1HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-type: text/plain\r\n\r\n2",
    ),
    "HTTP/1.0": (
        b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nhi",
    ),
    "chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nabcde",
    ),
    "an upgrade offer": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: text/plain\r\n\r\n",
    ),
    "head": (
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: text/plain\r\n\r\n",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_exact_bytes(case):
    request, answer = GOLDEN[case]
    assert asked(request) == answer


@pytest.mark.parametrize("case", GOLDEN)
def test_the_same_when_it_arrives_byte_by_byte(case):
    request, answer = GOLDEN[case]
    assert asked(*(request[i : i + 1] for i in range(len(request))), pause_s=0) == answer


MALFORMED = {
    "garbage": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "no such version": (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400),
    "length and chunks": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
    "a negative length": (b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", 400),
    "a folded header": (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    "a null in a header": (b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", 400),
    "gzip coding": (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "a head too long": (b"GET / HTTP/1.1\r\nA: " + b"x" * (MAX_HEAD_BYTES + 10), 431),
    "a body too long": (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
    "chunks too long": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n", 413
    ),
    "broken chunks": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "nothing there": (b"GET /missing HTTP/1.1\r\n\r\n", 404),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_request_that_cannot_be_served_is_answered_and_the_connection_closed(case):
    request, status = MALFORMED[case]
    answer = asked(request + b"GET / HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close\r\n" in answer
    assert answer.count(b"content-length: ") == 1


def test_a_refusal_reaches_a_client_that_is_still_sending():
    """Closing with its bytes unread would reset the connection before it reads the answer."""

    async def scene():
        listener = await asyncio.get_running_loop().run_in_executor(
            None, socket.create_server, ("127.0.0.1", 0)
        )
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        server = Connections(route)
        server.adopt(accepted)
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n")
        for _ in range(30):
            writer.write(b"x" * 100_000)
            await writer.drain()
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        listener.close()

    asyncio.run(scene())


def test_a_client_that_never_finishes_is_told_so(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    monkeypatch.setattr(connections, "GRACE_S", 0.05)
    assert asked(b"GET / HT").startswith(b"HTTP/1.1 408 ")
    assert asked(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf").startswith(b"HTTP/1.1 408 ")


def test_a_client_that_says_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(connections, "IDLE_S", 0.05)
    assert asked(b"") == b""


def test_a_body_is_asked_for_when_the_client_waits_to_be_asked():
    head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert asked(head, b"hi").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_a_client_that_shuts_its_side_down_still_gets_the_answer():
    async def slow(request):
        await asyncio.sleep(0.05)
        return json_response(200, "late")

    answer = asked(b"GET / HTTP/1.1\r\n\r\n", route=lambda _head, _peer: Serve(slow), half_close=True)
    assert b'"late"' in answer


def test_a_fault_in_a_handler_is_a_500_without_its_text():
    async def faulty(_request):
        raise ValueError("a secret")

    answer = asked(b"GET / HTTP/1.1\r\n\r\n", route=lambda _head, _peer: Serve(faulty))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer


def test_a_request_can_wait_for_its_route():
    opened = []

    async def later():
        await asyncio.sleep(0.05)
        opened.append(True)

    def decide(_head, _peer):
        return Serve(echo, 10) if opened else Wait(later())

    assert asked(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", route=decide).endswith(b"hi")


def test_a_connection_moves_with_every_byte_that_was_read():
    """The first server answers /here and passes the rest on, back and forth, pipelined requests included."""

    async def scene():
        ours, theirs = socket.socketpair()

        async def says(name):
            return Response(200, name, "text/plain")

        def router(own, other):
            def route(head, _peer):
                if head.path == own:
                    return Serve(lambda _request: says(own.encode()))
                return PassOn(lambda fd, prefix: other().adopt(socket.socket(fileno=fd), prefix))

            return route

        here = Connections(router("/here", lambda: there))
        there = Connections(router("/there", lambda: here))
        here.adopt(theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        paths = [b"/here", b"/there", b"/there", b"/here", b"/there"]
        writer.write(b"".join(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n" for path in paths))
        for path in paths:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(len(path)) == path
        writer.close()
        await asyncio.sleep(0.05)
        assert not here.open | there.open

    asyncio.run(scene())


PATHS = {
    "/v2": Target("server"),
    "/v2/": Target("server"),
    "/v2/health/live": Target("live"),
    "/v2/health/ready": Target("ready"),
    "/metrics": Target("metrics"),
    "/predict": Target("predict", "a"),
    "/predict/b": Target("predict", "b"),
    "/v2/models/a": Target("model", "a"),
    "/v2/models/a/ready": Target("model-ready", "a"),
    "/v2/models/a/infer": Target("infer", "a"),
    "/": Target("unknown"),
    "/v2/models": Target("unknown"),
    "/v2/models/a/b/c": Target("unknown"),
    "/../predict": Target("unknown"),
}


@pytest.mark.parametrize("path", PATHS)
def test_whose_a_path_is(path):
    assert target_of(path, ("a",)) == PATHS[path]


def test_predict_without_a_name_means_nothing_where_there_are_several():
    assert target_of("/predict", ("a", "b")) == Target("predict", "")
