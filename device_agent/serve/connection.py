"""One client's connection.

Always true
 1. One request is worked on at a time; nothing of the next is read until the response has left this process.
 2. Between two requests a connection can move to another process with every byte that was read and not used, so a
    change of worker closes no connection and loses no request.
 3. A body is received straight into a buffer of the length announced, which was checked against the route's limit and
    admitted at the door before; only then is a client that asked first told to send it.
 4. Time is limited in all, not from byte to byte: `HEAD_S` for a head, `GRACE_S` and a byte for each 1/`MIN_RATE`
    second for a body or a response.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from device_agent.owed import IDLE, OWED
from device_agent.serve import incoming
from device_agent.serve.door import BusyError, Ticket
from device_agent.serve.http import (
    MAX_HEAD_BYTES,
    Head,
    HttpError,
    PassOn,
    Request,
    Response,
    Route,
    Serve,
    Wait,
    busy,
    error_response,
    failure_response,
    parse_head,
)
from device_agent.serve.incoming import Incoming
from device_agent.serve.peers import Peer

if TYPE_CHECKING:
    from device_agent.serve.connections import Connections

IDLE_S = 120.0
HEAD_S = 10.0
GRACE_S = 10.0
MIN_RATE = 64 * 1024
LINGER_S = 1.0
Router = Callable[[Head, Peer], Route]
GiveBack = Callable[[int, bytes], None]


class Connection(asyncio.BufferedProtocol):
    """See the module. Phases: head → body → answering → (flushing) → head."""

    def __init__(self, owner: "Connections", peer: Peer, prefix: bytes, *, is_new: bool) -> None:
        self.peer = peer
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray(prefix)
        self._body: Incoming | None = None
        self._head: Head | None = None
        self._serve: Serve | None = None
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When the phase began: waiting for a head, its first byte, the body, the response's first byte unsent.
        self._since = self._loop.time()
        self._is_new = is_new
        self._in_head = False
        self._is_flushing = False
        self._is_leaving = False
        self._is_discarding = False
        self._is_cut = False
        self._transport: asyncio.Transport | None = None
        self._descriptor = -1

    # -- asyncio's callbacks -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._owner.owed.set(self._descriptor, OWED if self._pending else IDLE)
        transport.set_write_buffer_limits(high=0)
        if self._is_cut:
            transport.abort()
            return
        # Who has just come has a head to send; who comes from another process may be between two requests.
        self._wait_for(HEAD_S if self._is_new else IDLE_S)
        if self._is_leaving:
            self._move(self._owner.give_back)
        else:
            self._advance()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        free = self._body.free() if self._body is not None else None
        return free if free is not None else memoryview(self._owner.receive)

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_discarding:
            return
        self._owner.owed.set(self._descriptor, OWED)
        if self._body is not None and self._body.free() is not None:
            self._body.filled(nbytes)
        else:
            self._pending += memoryview(self._owner.receive)[:nbytes]
        self._advance()

    def eof_received(self) -> bool:
        # A client that shut its sending side down still gets the answer to what it sent.
        return self._task is not None or self._is_flushing

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None:
            self._leave_door()
        self._body = None
        self._owner.owed.set(self._descriptor, 0)
        self._owner.forget(self)

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._is_flushing = True
        self._since = self._loop.time()
        self._owner.waits_to_send(self, self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._is_flushing = False
        self._owner.has_sent(self)
        if not self._is_discarding:
            self._next()

    # -- from outside --------------------------------------------------------------------------------------------

    @property
    def yields(self) -> tuple[int, float] | None:
        """How readily this connection makes room for another, the smallest first; None with a request under way."""
        if self._is_discarding:
            return (0, self._since)
        if self._task is not None or self._serve is not None or self._is_flushing:
            return None
        return (1 if self._is_new else 2, self._since)

    def leave(self) -> None:
        """Go as soon as no request is under way."""
        self._is_leaving = True
        if self._is_between_requests:
            self._move(self._owner.give_back)

    def cut(self) -> None:
        self._is_cut = True
        if self._transport is not None:
            self._transport.abort()

    # -- the machine ---------------------------------------------------------------------------------------------

    @property
    def _is_between_requests(self) -> bool:
        busy = self._task is not None or self._serve is not None or self._is_flushing or self._is_discarding
        return self._transport is not None and not busy

    @property
    def _is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _advance(self) -> None:
        """Do what the bytes at hand allow."""
        if self._task is not None or self._is_discarding or self._is_closing:
            return
        try:
            if self._serve is None:
                self._read_head()
            else:
                data = bytes(self._pending)
                self._pending.clear()
                self._read_body(data)
        except HttpError as error:
            self._refuse(error)
        except BusyError as error:
            self._refuse(busy(str(error)))

    def _read_head(self) -> None:
        end = self._pending.find(b"\r\n\r\n") + 4
        if end > MAX_HEAD_BYTES or (end < 4 and len(self._pending) > MAX_HEAD_BYTES):
            raise HttpError(431, f"the request's head is longer than {MAX_HEAD_BYTES} bytes")
        if end < 4:
            if self._pending and not self._in_head:
                self._in_head = True
                # A new connection's time began when it came.
                if not self._is_new:
                    self._wait_for(HEAD_S)
            return
        head = parse_head(bytes(self._pending[:end]))
        self._in_head = self._is_new = False
        self._follow(self._owner.route(head, self.peer), head, end)

    def _follow(self, route: Route, head: Head, end: int) -> None:
        if isinstance(route, PassOn):
            self._move(route.give)
        elif isinstance(route, Wait):
            self._start(self._ask_again(route, head, end))
        else:
            self._begin_body(route, head, end)

    async def _ask_again(self, route: Wait, head: Head, end: int) -> None:
        try:
            await route.until
            self._task = None
            if not self._is_closing:
                self._follow(self._owner.route(head, self.peer), head, end)
        except HttpError as error:
            self._task = None
            self._refuse(error)
        except BusyError as error:
            self._task = None
            self._refuse(busy(str(error)))

    def _begin_body(self, route: Serve, head: Head, end: int) -> None:
        assert self._transport is not None
        if head.length is not None and head.length > route.max_body:
            raise HttpError(413, f"the body has {head.length} bytes; at most {route.max_body} are taken here")
        expected = head.headers.get("expect", "").lower()
        if expected not in ("", "100-continue"):
            raise HttpError(417, f"the expectation {expected!r} cannot be met; only '100-continue' is known")
        rest = bytes(self._pending[end:])
        if route.is_admitted:
            announced = incoming.room_for(head, route.max_body)
            at_hand = 0 if head.length is None else len(rest)
            self._ticket = self._owner.door.enter(
                self.peer.name, announced, self._loop.time(), self._lost_place, at_hand
            )
        # Memory is taken only now, for what was admitted.
        self._head, self._serve, self._body = head, route, Incoming(head, route.max_body)
        self._pending.clear()
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._wait_for(GRACE_S)
        if expected and not rest:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        """`data` came for the body, beside what was received straight into it."""
        assert self._body is not None
        if data and self._ticket is not None:
            self._owner.door.grow(self._ticket, self._body.room_with(len(data)), self._loop.time())
        if data:
            self._pending += self._body.add(data)
        if self._ticket is not None:
            self._ticket.received = self._body.received
        if self._body.is_complete:
            assert self._head is not None
            assert self._serve is not None
            if self._ticket is not None:
                self._owner.door.arrived(self._ticket)
            request = Request(self._head, self._body.content, self._ticket)
            self._body = None
            self._start(self._answer(self._serve, request))

    async def _answer(self, route: Serve, request: Request) -> None:
        try:
            response = await route.handle(request)
        except Exception as error:  # noqa: BLE001  # a handler's own fault must not take the process down
            response = failure_response(error, request.head.path)
        finally:
            self._leave_door()
        self._task = None
        self._respond(response, request.head)

    def _respond(self, response: Response, head: Head) -> None:
        if self._is_closing:
            return
        assert self._transport is not None
        closing_down = self._is_leaving and self._owner.give_back is None
        keep_alive = head.keep_alive and not response.close and not closing_down
        self._reset()
        self._transport.write(response.encode(keep_alive=keep_alive, with_body=head.method != "HEAD"))
        if not keep_alive:
            # What the client does not read in time is not waited for; the timer cuts it.
            self._wait_for(self._sending_s())
            self._transport.close()
        else:
            self._next()

    def _refuse(self, error: HttpError) -> None:
        """Answer and close: what follows on the connection cannot be told apart any more."""
        retry = {"retry_after": "1"} if error.status == 503 else {}
        self._pending.clear()
        self._linger(error_response(error.status, str(error), error.word, **{**retry, **error.headers}))

    def _lost_place(self, reason: str) -> None:
        """The door took the place of this body for others."""
        self._ticket = None
        self._refuse(busy(reason))

    def _linger(self, response: Response) -> None:
        """Send the last response and wait a moment for the client to read it.

        Closing at once, with bytes of the client unread, would reset the connection under the response (RFC 9112, 9.6).
        """
        self._leave_door()
        if self._is_closing:
            return
        assert self._transport is not None
        with_body = self._head is None or self._head.method != "HEAD"
        self._reset()
        self._is_discarding = True
        self._transport.write(response.encode(keep_alive=False, with_body=with_body))
        if self._transport.can_write_eof():
            # The client may be gone already.
            with contextlib.suppress(OSError):
                self._transport.write_eof()
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._wait_for(LINGER_S)

    def _reset(self) -> None:
        """The request is over; from here on an answer of its own may be on its way."""
        self._owner.owed.set(self._descriptor, 0)
        self._head = self._serve = self._body = None

    def _leave_door(self) -> None:
        if self._ticket is not None:
            self._owner.door.leave(self._ticket)
            self._ticket = None

    def _next(self) -> None:
        """The response is written: once it has left, go on to the next request or leave."""
        if self._is_closing:
            return
        assert self._transport is not None
        if self._is_flushing:
            self._wait_for(self._sending_s())
            return
        if self._task is not None or self._serve is not None:
            return
        if self._is_leaving:
            self._move(self._owner.give_back)
            return
        if self.peer.is_relayed and self._owner.relayed_back is not None:
            self._move(self._owner.relayed_back)
            return
        self._wait_for(IDLE_S)
        self._owner.owed.set(self._descriptor, OWED if self._pending else IDLE)
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._advance()

    def _sending_s(self) -> float:
        assert self._transport is not None
        return GRACE_S + self._transport.get_write_buffer_size() / MIN_RATE

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._transport is not None
        if self._timer is not None:
            self._timer.cancel()
        if self._transport.is_reading():
            self._transport.pause_reading()
        self._task = self._loop.create_task(work)

    def _move(self, give: GiveBack | None) -> None:
        """Detach the socket from this process with the bytes read and not used; without a taker, close it."""
        if self._is_closing:
            return
        assert self._transport is not None
        self._transport.pause_reading()
        if give is not None:
            give(os.dup(self._transport.get_extra_info("socket").fileno()), bytes(self._pending))
        self._pending.clear()
        self._transport.close()

    def _wait_for(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._since = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self._is_flushing or self._is_discarding or self._is_closing:
            self.cut()
            return
        if self._serve is not None:
            received = self._body.received if self._body is not None else 0
            allowed = GRACE_S + received / MIN_RATE
            left = self._since + allowed - self._loop.time()
            if left > 0.001:
                self._timer = self._loop.call_later(left, self._expired)
                return
        elif not self._pending:
            if self._transport is not None:
                self._transport.close()
            return
        self._refuse(HttpError(408, "the request did not arrive in time"))
