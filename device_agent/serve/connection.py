"""One client's connection, and the set of them that a process holds.

Always true
 1. One request is worked on at a time; nothing of the next is read until the response has left this process.
 2. Between two requests a connection can move to another process with every byte that was read and not used, so a
    change of worker closes no connection and loses no request.
 3. A body is received straight into a buffer of the length announced, which was checked against the route's limit.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from device_agent import log
from device_agent.serve.http import (
    MAX_HEAD_BYTES,
    ChunkedBody,
    Head,
    HttpError,
    ParsedHead,
    PassOn,
    Request,
    Response,
    Route,
    Serve,
    Wait,
    error_response,
    parse_head,
)
from edgekit.errors import EdgeKitError

IDLE_S = 120.0
HEAD_S = 10.0
BODY_S = 60.0
LINGER_S = 1.0
_RECEIVE_BYTES = 16 * 1024
Router = Callable[[Head], Route]
GiveBack = Callable[[int, bytes], None]


class Connections:
    """All connections of one process, answered by `route`."""

    def __init__(self, route: Router) -> None:
        self.route = route
        self.open: set[Connection] = set()
        self.give_back: GiveBack | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._emptied = asyncio.Event()

    def adopt(self, sock: socket.socket, prefix: bytes = b"") -> None:
        """Take a connected socket over; `prefix` are bytes already read from it."""
        connection = Connection(self, prefix)
        self.open.add(connection)
        task = asyncio.get_running_loop().create_task(self._attach(sock, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attach(self, sock: socket.socket, connection: "Connection") -> None:
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            log.trouble("a connection was lost before it was served", reason=error)
            sock.close()
            self.forget(connection)

    def forget(self, connection: "Connection") -> None:
        self.open.discard(connection)
        if not self.open:
            self._emptied.set()

    async def drain(self, give_back: GiveBack | None, patience_s: float) -> None:
        """Let every connection finish its request, then give it back, or close it without `give_back`.

        Returns when none is left, at the latest after `patience_s`; what remains then is cut.
        """
        self.give_back = give_back
        self.route = _closing
        self._emptied.clear()
        for connection in tuple(self.open):
            connection.leave()
        if self.open:
            try:
                await asyncio.wait_for(self._emptied.wait(), patience_s)
            except TimeoutError:
                log.trouble("connections cut while draining", count=len(self.open))
        for connection in tuple(self.open):
            connection.cut()


def _closing(_head: Head) -> Route:
    raise HttpError(503, "this process is ending")


class Connection(asyncio.BufferedProtocol):
    """See the module. Phases: head → body → answering → (flushing) → head."""

    def __init__(self, owner: Connections, prefix: bytes) -> None:
        self._owner = owner
        self._pending = bytearray(prefix)
        self._receive = bytearray(_RECEIVE_BYTES)
        self._body: bytearray | None = None
        self._filled = 0
        self._chunked: ChunkedBody | None = None
        self._head: Head | None = None
        self._serve: Serve | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_flushing = False
        self._is_leaving = False
        self._is_discarding = False
        self._transport: asyncio.Transport | None = None

    # -- asyncio's callbacks -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self._wait_for(IDLE_S)
        if self._is_leaving:
            self._move(self._owner.give_back)
        else:
            self._advance()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        return memoryview(self._receive)

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_discarding:
            return
        if self._body is not None:
            self._filled += nbytes
        else:
            self._pending += memoryview(self._receive)[:nbytes]
        self._advance()

    def eof_received(self) -> bool:
        # A client that shut its sending side down still gets the answer to what it sent.
        return self._task is not None or self._is_flushing

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        self._owner.forget(self)

    def pause_writing(self) -> None:
        self._is_flushing = True

    def resume_writing(self) -> None:
        self._is_flushing = False
        if not self._is_discarding:
            self._next()

    # -- from outside --------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Go as soon as no request is under way."""
        self._is_leaving = True
        if self._is_between_requests:
            self._move(self._owner.give_back)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- the machine ---------------------------------------------------------------------------------------------

    @property
    def _is_between_requests(self) -> bool:
        busy = self._task is not None or self._serve is not None or self._is_flushing or self._is_discarding
        return self._transport is not None and not busy

    def _advance(self) -> None:
        """Do what the bytes at hand allow."""
        if self._task is not None or self._is_discarding:
            return
        if self._transport is None or self._transport.is_closing():
            return
        try:
            if self._serve is None:
                self._read_head()
            else:
                self._read_body()
        except HttpError as error:
            self._refuse(error)

    def _read_head(self) -> None:
        end = self._pending.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(self._pending) > MAX_HEAD_BYTES:
                raise HttpError(431, f"the request's head is longer than {MAX_HEAD_BYTES} bytes")
            if self._pending:
                self._wait_for(HEAD_S)
            return
        if end > MAX_HEAD_BYTES:
            raise HttpError(431, f"the request's head is longer than {MAX_HEAD_BYTES} bytes")
        parsed = parse_head(bytes(self._pending[:end]))
        self._follow(self._owner.route(parsed.head), parsed, end)

    def _follow(self, route: Route, parsed: ParsedHead, end: int) -> None:
        if isinstance(route, PassOn):
            self._move(route.give)
        elif isinstance(route, Wait):
            self._start(self._ask_again(route, parsed, end))
        else:
            self._begin_body(route, parsed, end)

    async def _ask_again(self, route: Wait, parsed: ParsedHead, end: int) -> None:
        try:
            await route.until
            self._task = None
            if self._transport is None or self._transport.is_closing():
                return
            self._follow(self._owner.route(parsed.head), parsed, end)
        except HttpError as error:
            self._task = None
            self._refuse(error)

    def _begin_body(self, route: Serve, parsed: ParsedHead, end: int) -> None:
        assert self._transport is not None
        head = parsed.head
        if head.length is not None and head.length > route.max_body:
            raise HttpError(413, f"the body has {head.length} bytes; at most {route.max_body} are taken here")
        self._head, self._serve = head, route
        if not self._transport.is_reading():
            self._transport.resume_reading()
        rest = bytes(self._pending[end:])
        if head.length is None:
            self._chunked = parsed.chunked(route.max_body)
            self._pending = bytearray(rest)
        else:
            self._body = bytearray(head.length)
            taken = rest[: head.length]
            self._body[: len(taken)] = taken
            self._filled = len(taken)
            self._pending = bytearray(rest[head.length :])
        self._wait_for(BODY_S)
        if head.headers.get("expect", "").lower() == "100-continue" and not rest:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._read_body()

    def _read_body(self) -> None:
        if self._chunked is not None:
            if not self._pending:
                return
            data = bytes(self._pending)
            self._pending.clear()
            body = self._chunked.feed(data)
        else:
            assert self._body is not None
            body = self._body if self._filled == len(self._body) else None
        if body is not None:
            assert self._head is not None
            assert self._serve is not None
            self._start(self._answer(self._serve, Request(self._head, body)))

    async def _answer(self, route: Serve, request: Request) -> None:
        try:
            response = await route.handle(request)
        except EdgeKitError as error:
            response = error_response(error.http_status, str(error), error.code)
        except Exception as error:  # noqa: BLE001  # a handler's own fault must not take the process down
            log.trouble("a request failed unexpectedly", path=request.head.path, reason=repr(error))
            response = error_response(500, "internal error; see the agent's log", "internal")
        self._task = None
        self._respond(response, request.head)

    def _respond(self, response: Response, head: Head) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        closing_down = self._is_leaving and self._owner.give_back is None
        keep_alive = head.keep_alive and not response.close and not closing_down
        with_body = head.method != "HEAD"
        self._head = self._serve = self._body = self._chunked = None
        self._filled = 0
        self._transport.write(response.encode(keep_alive=keep_alive, with_body=with_body))
        if not keep_alive:
            self._transport.close()
        else:
            self._next()

    def _refuse(self, error: HttpError) -> None:
        """Answer and close: what follows on the connection cannot be told apart any more."""
        retry = {"retry_after": "1"} if error.status == 503 else {}
        self._pending.clear()
        self._linger(error_response(error.status, str(error), **retry))

    def _linger(self, response: Response) -> None:
        """Send the last response and wait a moment for the client to read it.

        Closing at once, with bytes of the client unread, would reset the connection under the response (RFC 9112, 9.6).
        """
        if self._transport is None or self._transport.is_closing():
            return
        with_body = self._head is None or self._head.method != "HEAD"
        self._head = self._serve = self._body = self._chunked = None
        self._is_discarding = True
        self._transport.write(response.encode(keep_alive=False, with_body=with_body))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._wait_for(LINGER_S)

    def _next(self) -> None:
        """The response is written: once it has left, go on to the next request or leave."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_flushing:
            self._wait_for(BODY_S)
            return
        if self._task is not None or self._serve is not None:
            return
        if self._is_leaving:
            self._move(self._owner.give_back)
            return
        self._wait_for(IDLE_S)
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._advance()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._transport is not None
        if self._timer is not None:
            self._timer.cancel()
        if self._transport.is_reading():
            self._transport.pause_reading()
        self._task = asyncio.get_running_loop().create_task(work)

    def _move(self, give: GiveBack | None) -> None:
        """Detach the socket from this process with the bytes read and not used; without a taker, close it."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._transport.pause_reading()
        if give is not None:
            give(os.dup(self._transport.get_extra_info("socket").fileno()), bytes(self._pending))
        self._pending.clear()
        self._transport.close()

    def _wait_for(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self._is_flushing or self._is_discarding:
            self.cut()
            return
        if self._serve is None and not self._pending:
            if self._transport is not None:
                self._transport.close()
            return
        self._refuse(HttpError(408, "the request did not arrive in time"))
