"""HTTP/1.1 heads and responses as values; no sockets here.

Source: RFC 9112 (HTTP/1.1). The grammar is llhttp's, through httptools; chunked bodies stand in `chunked`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools
import msgspec

from device_agent import log
from device_agent.serve.door import BusyError, Ticket
from edgekit.errors import EdgeKitError

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
# Repeating one of these is the same as a list (RFC 9110, 5.3); of others a second one is a contradiction.
_LISTS = {
    "accept",
    "accept-encoding",
    "content-encoding",
    "connection",
    "via",
    "forwarded",
    "x-forwarded-for",
}


class HttpError(EdgeKitError):
    """A request that is refused before any handler sees it."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.word = code
        self.headers = headers


@dataclass(frozen=True)
class Head:
    """Request line and headers; header names are lower-case. `length` is None for a chunked body."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    length: int | None
    keep_alive: bool

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Request:
    """A head with its body, and the place that the door gave it (none where nothing was admitted: no body, no queue)."""

    head: Head
    body: bytes | bytearray
    ticket: Ticket | None = None


@dataclass(frozen=True)
class Response:
    """`close` ends the connection after it."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False

    def encode(self, *, keep_alive: bool, with_body: bool = True) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"content-length: {len(self.body)}",
            f"content-type: {self.content_type}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if not keep_alive:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head + self.body if with_body else head


@dataclass(frozen=True)
class Serve:
    """Route: answer here. Bodies above `max_body` bytes are refused before they are read.

    `is_admitted` routes need a place at the door before any of their body is received.
    """

    handle: Callable[[Request], Awaitable[Response]]
    max_body: int = 0
    is_admitted: bool = False


@dataclass(frozen=True)
class PassOn:
    """Route: another process answers. `give` takes the descriptor and every byte read of the request."""

    give: Callable[[int, bytes], None]


@dataclass(frozen=True)
class Wait:
    """Route: not decided yet; ask again when `until` is done."""

    until: Awaitable[object]


Route = Serve | PassOn | Wait


def json_response(status: int, value: Any, **headers: str) -> Response:
    """`headers` are given with underscores for dashes."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, msgspec.json.encode(value) + b"\n", headers=named)


def error_response(status: int, message: str, code: str = "", **headers: str) -> Response:
    """The Open Inference Protocol's error object, with EdgeKit's stable word beside it."""
    return json_response(status, {"error": message, "code": code or HTTPStatus(status).phrase}, **headers)


def busy(reason: str) -> HttpError:
    """There is no place for the request at the door."""
    return HttpError(503, reason, BusyError.code)


def failure_response(error: Exception, path: str) -> Response:
    """The answer to a request whose handler raised."""
    if isinstance(error, HttpError):
        return error_response(error.status, str(error), error.word, **error.headers)
    if isinstance(error, EdgeKitError):
        retry = {"retry_after": "1"} if isinstance(error, BusyError) else {}
        return error_response(error.http_status, str(error), error.code, **retry)
    log.trouble("a request failed unexpectedly", path=path, reason=repr(error))
    return error_response(500, "internal error; see the agent's log", "internal")


class Collected:
    """What httptools calls back while it reads a head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}
        self.count = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count += 1
        if self.count > MAX_HEADERS:
            raise HttpError(431, f"the request has more than {MAX_HEADERS} headers")
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in self.headers and key in _LISTS:
            text = f"{self.headers[key]}, {text}"
        elif key in ("host", "transfer-encoding") and key in self.headers:
            raise HttpError(400, f"the header {key!r} is given twice")
        self.headers[key] = text


def parse_head(data: bytes) -> Head:
    """Read a request's head, which ends with an empty line. Raises: HttpError."""
    collected = Collected()
    parser = httptools.HttpRequestParser(collected)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade as offer:
        # An offer to upgrade may be ignored (RFC 9110, 7.8); CONNECT finds no route.
        del offer
    except httptools.HttpParserError as error:
        if isinstance(error.__context__, HttpError):
            raise error.__context__ from None
        raise HttpError(400, f"not an HTTP/1.1 request: {error}") from error
    headers = collected.headers
    is_chunked = "transfer-encoding" in headers
    if is_chunked and headers["transfer-encoding"].strip().lower() != "chunked":
        raise HttpError(501, "the only transfer encoding taken here is 'chunked'")
    try:
        url = urlsplit(collected.url.decode("ascii"))
        query = dict(parse_qsl(url.query, max_num_fields=32))
        length = None if is_chunked else int(headers.get("content-length", "0"))
    except ValueError as error:
        raise HttpError(400, f"the request target or length cannot be read: {error}") from error
    return Head(
        method=parser.get_method().decode(),
        path=unquote(url.path),
        query=query,
        headers=headers,
        length=length,
        keep_alive=bool(parser.should_keep_alive()) and not is_chunked,
    )
