"""Asking a mirror, which may lie, hang, or send without end.

Always true
 1. No document is read beyond its bound, in bytes and in time.
 2. No redirect is followed, and nothing is spoken to that the opener refuses.
"""

import http.client
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from device_agent.update.fetch import FetchError
from edgekit.errors import UsageError

# Raises: UsageError for an address that is not to be spoken to.
Opener = Callable[[str], http.client.HTTPConnection]

# For one whole metadata file: a byte every few seconds must not hold an update for days.
DOCUMENT_S = 120.0
PLAIN_TIMEOUT_S = 30.0
_CHUNK_BYTES = 64 * 1024
# What may stand in a path as it is (RFC 3986, pchar), the separator, and a query's mark: a target's name is part of a
# URL already, and says itself what it has encoded.
_AS_IT_IS = "/:@!$&'()*+,;=?%"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class HTTPStatusError(FetchError):
    """The mirror answered, but not with the file."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Web:
    """`open` gives a connection for an address, not yet made, or refuses it; `headers` go along with every request."""

    open: Opener
    headers: Mapping[str, str] = field(default_factory=dict)
    document_s: float = DOCUMENT_S

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
        """The answer to a GET, whatever its status. Raises: FetchError."""
        place = urlsplit(url).netloc
        connection = None
        try:
            connection = self.open(url)
            connection.connect()
            # As it was written: taking it apart would lose a lone question mark.
            _, slash, path = url.partition("://")[2].partition("/")
            connection.request("GET", slash + path or "/", headers={**self.headers, **(headers or {})})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, UsageError) as error:
            if connection is not None:
                connection.close()
            raise FetchError(f"{place}: {error or type(error).__name__}") from error
        try:
            yield response
        finally:
            connection.close()

    def document(self, url: str, limit: int) -> bytes:
        """A whole file of at most `limit` bytes. Raises: FetchError; HTTPStatusError for any status but 200."""
        deadline = time.monotonic() + self.document_s
        with self.get(url) as response:
            if response.status != 200:
                raise HTTPStatusError(f"{url}: {response.status} {response.reason}", response.status)
            if response.length is not None and response.length > limit:
                raise FetchError(f"{url}: {response.length} bytes are announced, at most {limit} are taken")
            data = bytearray()
            while chunk := _piece(response, min(_CHUNK_BYTES, limit + 1 - len(data))):
                data += chunk
                if len(data) > limit:
                    raise FetchError(f"{url}: longer than {limit} bytes")
                if time.monotonic() > deadline:
                    raise FetchError(f"{url}: not all there after {self.document_s:.0f} s")
            if response.length:
                raise FetchError(f"{url}: ended {response.length} bytes early")
        return bytes(data)


def _piece(response: http.client.HTTPResponse, length: int) -> bytes:
    try:
        return response.read1(length)
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"the link failed: {error or type(error).__name__}") from error


def below(base: str, name: str) -> str:
    """The address of `name` below `base`; of the name only what cannot stand in a URL is encoded."""
    whole = _LONE_PERCENT.sub("%25", name)
    return f"{base.rstrip('/')}/{quote(whole, safe=_AS_IT_IS)}"


def plain(url: str) -> http.client.HTTPConnection:
    """A connection to a mirror on this machine, for tests and tools: neither proxies nor TLS. Raises: UsageError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise UsageError(f"{url!r} is no http address")
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=PLAIN_TIMEOUT_S)
