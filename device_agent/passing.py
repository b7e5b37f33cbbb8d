"""An unfamiliar input that is answered elsewhere: from the worker, which has no network, to an address of the device's owner.

worker: `Asker`  → a descriptor and who asks →  supervisor: `Passer`, one POST  → a descriptor and the status →  worker

Always true
 1. The address stands in `agent.toml` alone (`[guard]`): never in a bundle, an order or a request.
 2. What goes out is the request's body and its content type, nothing else of the client; no redirect is followed.
 3. Time and size are limited; at most `MOST` are under way at once, and more get a 503.
"""

import asyncio
import http.client
import os
import re
import ssl
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec

from device_agent import log
from device_agent.agentfile import GuardTable
from device_agent.blocking import Stopper, stoppable
from device_agent.serve.http import HttpError, Request, Response
from edgekit.manifest import Name

MOST = 8
MAX_BODY_BYTES, MAX_ANSWER_BYTES = 32 << 20, 4 << 20
# What the supervisor needs beside the address's own time.
SPARE_S = 5.0
_TYPE = re.compile(r"^[A-Za-z0-9!#$&^_.+/;= \"-]{1,200}$")
_JSON = "application/json"


class Asked(msgspec.Struct, frozen=True):
    number: int
    deployment: Name
    content_type: str


class Answered(msgspec.Struct, frozen=True):
    """`trouble` says why there is no answer."""

    number: int
    status: int = 0
    content_type: str = ""
    trouble: str = ""


class Asker:
    """The worker's end. `send` passes a descriptor and what is said of it to the supervisor."""

    def __init__(self, deployment: str, timeout_s: float, send: Callable[[int, bytes], None]) -> None:
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._send = send
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._number = 0

    async def ask(self, request: Request) -> Response:
        """What the address answers. Raises: HttpError."""
        if len(self._waiting) >= MOST:
            raise HttpError(
                503, f"{MOST} unfamiliar inputs are being passed on already; try again", retry_after="1"
            )
        self._number += 1
        number = self._number
        kind = request.head.content_type
        about = Asked(number, self._deployment, kind if _TYPE.match(kind) else "application/octet-stream")
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(_memory(request.body), msgspec.json.encode(about))
            async with asyncio.timeout(self._timeout_s + SPARE_S):
                return await future
        except TimeoutError as error:
            raise HttpError(504, "the input is unfamiliar, and who is to answer it took too long") from error
        finally:
            del self._waiting[number]

    def take(self, descriptor: int, about: bytes) -> None:
        """An answer came."""
        body = _read(descriptor, MAX_ANSWER_BYTES)
        told = msgspec.json.decode(about, type=Answered)
        future = self._waiting.get(told.number)
        if future is None or future.done():
            return
        if told.trouble:
            words = f"the input is unfamiliar, and who is to answer it does not: {told.trouble}"
            future.set_exception(HttpError(502, words, "passing"))
            return
        future.set_result(Response(told.status, body, told.content_type, {"edgekit-unfamiliar": "passed"}))


class Passer:
    """The supervisor's end."""

    def __init__(self, table: GuardTable) -> None:
        self._table = table
        self._under_way: set[asyncio.Task[None]] = set()

    def take(self, descriptor: int, about: bytes, reply: Callable[[int, bytes], None]) -> None:
        """A worker asks; `reply` passes a descriptor and what is said of it back."""
        body = _read(descriptor, MAX_BODY_BYTES)
        try:
            asked = msgspec.json.decode(about, type=Asked)
        except msgspec.DecodeError as error:
            log.trouble("an input to be passed on cannot be read", reason=error)
            return
        if len(self._under_way) >= MOST:
            reply(_memory(b""), msgspec.json.encode(Answered(asked.number, trouble="too many are under way")))
            return
        task = asyncio.get_running_loop().create_task(self._pass(asked, body, reply))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _pass(self, asked: Asked, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        try:
            async with asyncio.timeout(self._table.timeout_s):
                status, kind, answer = await stoppable(
                    lambda stopping: post(self._table, asked, body, stopping)
                )
            told = Answered(asked.number, status, kind)
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.trouble(
                "an unfamiliar input could not be passed on", deployment=asked.deployment, reason=error
            )
            # An answer that comes byte by byte never lets the socket's own time run out.
            words = str(error) or f"no whole answer within {self._table.timeout_s:g} s"
            told, answer = Answered(asked.number, trouble=words), b""
        reply(_memory(answer), msgspec.json.encode(told))


def post(table: GuardTable, asked: Asked, body: bytes, stopping: Stopper) -> tuple[int, str, bytes]:
    """Status, content type and body of the answer. `stopping` ends it. Raises: OSError, HTTPException, ValueError for one that is none."""
    url = urlsplit(table.url)
    assert url.hostname is not None
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=table.ca_file or None)
        connection = http.client.HTTPSConnection(
            url.hostname, url.port, timeout=table.timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=table.timeout_s)
    try:
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = {"Content-Type": asked.content_type, "Edgekit-Deployment": asked.deployment}
        connection.connect()
        assert connection.sock is not None
        stopping.watch(connection.sock)
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER_BYTES + 1)
        kind = response.headers.get("Content-Type", _JSON)
    finally:
        connection.close()
    if len(answer) > MAX_ANSWER_BYTES:
        raise ValueError(f"its answer has more than {MAX_ANSWER_BYTES >> 20} MiB")
    if (
        response.status not in set(HTTPStatus)
        or not 200 <= response.status < 600
        or 300 <= response.status < 400
    ):
        raise ValueError(f"it answered {response.status}")
    return response.status, kind if _TYPE.match(kind) else _JSON, answer


def _memory(data: bytes | bytearray) -> int:
    descriptor = os.memfd_create("passed", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:  # a descriptor has no path
        file.write(data)
    return descriptor


def _read(descriptor: int, most: int) -> bytes:
    """What a descriptor holds, at most so much; it is closed."""
    try:
        size = min(os.fstat(descriptor).st_size, most)
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)
