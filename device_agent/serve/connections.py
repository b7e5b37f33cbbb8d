"""All connections of one process: how many, whose, and who makes room for whom.

Always true
 1. There are at most `MAX_CONNECTIONS`, of one client at most `MAX_PER_CLIENT` (`MAX_PER_LOCAL` where many programs
    share one name).
 2. Where there is no room, a connection without a request under way makes it: one that is being closed first, then one
    that never brought a request, then the one idle for longest. Nobody loses a request that was received.
 3. What responses wait to be read by their clients is at most `MAX_UNSENT_BYTES`: beyond it the one that has waited for
    longest is cut.
"""

import asyncio
import contextlib
import socket

from device_agent import log
from device_agent.owed import Owed
from device_agent.serve.connection import Connection, GiveBack, Router
from device_agent.serve.door import Door
from device_agent.serve.http import Head, HttpError, Route, error_response
from device_agent.serve.peers import Peer, peer_of

MAX_CONNECTIONS = 512
MAX_PER_CLIENT = 64
MAX_PER_LOCAL = 256
MAX_UNSENT_BYTES = 32 << 20
RECEIVE_BYTES = 64 * 1024


class Connections:
    """Answered by `route`. `door` admits what asks to be admitted; `relayed_back` takes the front's own connections after
    each request; `owed` is told who waits for an answer.
    """

    def __init__(
        self,
        route: Router,
        door: Door | None = None,
        relayed_back: GiveBack | None = None,
        owed: Owed | None = None,
    ) -> None:
        self.route = route
        self.owed = owed or Owed()
        self.door = door or Door(0, 0)
        self.relayed_back = relayed_back
        self.give_back: GiveBack | None = None
        self.open: set[Connection] = set()
        # One for all: asyncio fills it and says so in one step of the loop, with nothing in between.
        self.receive = bytearray(RECEIVE_BYTES)
        self._by_client: dict[str, set[Connection]] = {}
        self._unsent: dict[Connection, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._emptied = asyncio.Event()

    def adopt(self, sock: socket.socket, prefix: bytes = b"", *, is_new: bool = False) -> None:
        """Take a connected socket over; `prefix` are bytes already read from it. One that `is_new` has never asked."""
        peer = peer_of(sock)
        if not self._has_room(peer):
            turn_away(sock)
            return
        connection = Connection(self, peer, prefix, is_new=is_new)
        self.open.add(connection)
        self._by_client.setdefault(peer.name, set()).add(connection)
        task = asyncio.get_running_loop().create_task(self._attach(sock, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attach(self, sock: socket.socket, connection: Connection) -> None:
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            log.trouble("a connection was lost before it was served", reason=error)
            sock.close()
            self.forget(connection)

    def _has_room(self, peer: Peer) -> bool:
        own = self._by_client.get(peer.name, set())
        limit = MAX_PER_LOCAL if peer.is_local else MAX_PER_CLIENT
        if len(own) >= limit and not self._make_room(own):
            return False
        return len(self.open) < MAX_CONNECTIONS or self._make_room(self.open)

    def _make_room(self, among: set[Connection]) -> bool:
        leaving = min(
            (each for each in among if each.yields is not None),
            key=lambda each: each.yields or (0, 0.0),
            default=None,
        )
        if leaving is None:
            return False
        leaving.cut()
        self.forget(leaving)
        return True

    def forget(self, connection: Connection) -> None:
        self.open.discard(connection)
        self._unsent.pop(connection, None)
        own = self._by_client.get(connection.peer.name, set())
        own.discard(connection)
        if not own:
            self._by_client.pop(connection.peer.name, None)
        if not self.open:
            self._emptied.set()

    def waits_to_send(self, connection: Connection, size: int) -> None:
        self._unsent[connection] = size
        while sum(self._unsent.values()) > MAX_UNSENT_BYTES and len(self._unsent) > 1:
            slow = next(iter(self._unsent))
            del self._unsent[slow]
            slow.cut()

    def has_sent(self, connection: Connection) -> None:
        self._unsent.pop(connection, None)

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
                async with asyncio.timeout(patience_s):
                    await self._emptied.wait()
            except TimeoutError:
                log.trouble("connections cut while draining", count=len(self.open))
        for connection in tuple(self.open):
            connection.cut()


def _closing(_head: Head, _peer: Peer) -> Route:
    raise HttpError(503, "this process is ending")


def turn_away(sock: socket.socket) -> None:
    """Say that there is no room, and close."""
    response = error_response(503, "too many connections", retry_after="1").encode(keep_alive=False)
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.send(response)
    sock.close()
