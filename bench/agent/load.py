"""Closed-loop clients over raw sockets, in one event loop: the same bytes from each, the next when the answer is whole.

No HTTP library between: what a client's library costs is not the server's. Slow clients can be mixed in, which send a
byte every 0.3 seconds of a head or of a body and come back when they are cut.
"""

import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Connect = Callable[[], socket.socket]
SLOW_STARTS = (
    b"GET /v2 HTTP/1.1\r\nX: ",
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
)
SLOW_EVERY_S = 0.3


@dataclass
class Result:
    """Milliseconds of each answered request, how many were not answered with 200, and requests a second."""

    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.latencies_ms) / self.seconds

    def quantile(self, q: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def tcp(port: int, source: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Connect:
    def connect() -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(sock, server_hostname="127.0.0.1") if context is not None else sock

    return connect


def unix(path: str) -> Connect:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    return connect


class _Client:
    def __init__(self, connect: Connect, request: bytes) -> None:
        self.sock = connect()
        self.sock.setblocking(False)
        self.request = request
        self.to_send = memoryview(b"")
        self.answer = bytearray()
        self.needed = 0
        self.began = 0.0

    def begin(self) -> None:
        self.began = time.perf_counter()
        self.to_send = memoryview(self.request)
        self.answer.clear()
        self.needed = 0

    def step(self) -> bool:
        """Send and receive what is possible; whether the answer is whole. Raises: OSError."""
        try:
            while self.to_send:
                self.to_send = self.to_send[self.sock.send(self.to_send) :]
            while True:
                piece = self.sock.recv(1 << 18)
                if not piece:
                    raise ConnectionError("closed")
                self.answer += piece
                if not self.needed:
                    self._find_end()
                if self.needed and len(self.answer) >= self.needed:
                    return True
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False

    def _find_end(self) -> None:
        end = self.answer.find(b"\r\n\r\n")
        if end >= 0:
            head = bytes(self.answer[:end]).lower()
            self.needed = end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n")[0])


class _Slow:
    def __init__(self, connect: Connect, start: bytes) -> None:
        self.connect, self.start = connect, start
        self.sock: socket.socket | None = None

    def step(self) -> None:
        try:
            if self.sock is None:
                self.sock = self.connect()
                self.sock.setblocking(False)
                self.sock.send(self.start)
            else:
                self.sock.send(b"x")
        except OSError:
            if self.sock is not None:
                self.sock.close()
            self.sock = None


def run(
    connect: Connect, request: bytes, clients: int, seconds: float, slow: tuple[Connect, int] | None = None
) -> Result:
    """`clients` at once for `seconds`; the first tenth warms up and is not counted. `slow`: so many slow ones too."""
    selector = selectors.DefaultSelector()
    crowd = [_Slow(slow[0], SLOW_STARTS[i % len(SLOW_STARTS)]) for i in range(slow[1])] if slow else []
    for each in crowd:
        each.step()
    for _ in range(clients):
        client = _Client(connect, request)
        selector.register(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
        client.begin()
    result = Result()
    start = time.perf_counter()
    counting_from, until = start + seconds / 10, start + seconds
    next_slow = start + SLOW_EVERY_S
    while (now := time.perf_counter()) < until:
        if now >= next_slow:
            for each in crowd:
                each.step()
            next_slow = now + SLOW_EVERY_S
        for key, _events in selector.select(0.05):
            _serve(key.data, selector, connect, result, counting_from)
    result.seconds = until - counting_from
    for key in list(selector.get_map().values()):
        key.data.sock.close()
    selector.close()
    for each in crowd:
        if each.sock is not None:
            each.sock.close()
    return result


def _serve(
    client: _Client, selector: selectors.BaseSelector, connect: Connect, result: Result, counting_from: float
) -> None:
    try:
        while client.step():
            now = time.perf_counter()
            if not client.answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                result.failed += 1
            elif client.began >= counting_from:
                result.latencies_ms.append((now - client.began) * 1000)
            client.begin()
    except OSError:
        result.failed += 1
        selector.unregister(client.sock)
        client.sock.close()
        client.sock = connect()
        client.sock.setblocking(False)
        client.begin()
        selector.register(client.sock, selectors.EVENT_WRITE, client)
        return
    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
    selector.modify(client.sock, wanted, client)
