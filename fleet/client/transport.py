"""How the client speaks to the service: requests, answers, errors, pages and the stream of events.

Always true
 1. An error of the service comes back as the class that raised it there, so that commands end with the right exit code.
 2. A POST carries a key (`Idempotency-Key`): where the connection breaks it is sent again, and done once.
 3. A name never becomes part of a path as it is.
"""

import ssl
import uuid
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from edgekit import errors, safe
from edgekit.errors import EdgeKitError, FleetError, UsageError
from fleet import api
from fleet.client.config import Access

T = TypeVar("T")
Content = bytes | Iterator[bytes] | None
ROOT = "/api/v1"
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# What a service syncs and hashes in a second at the least: it answers after that, and a bundle may have gigabytes.
_LEAST_BYTES_S = 20_000_000
# Longer than the service is silent on a stream (15 s).
_STREAM_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
# What may have happened before or after the service did what was asked.
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
# The service's error classes by their `code`.
_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EdgeKitError) and "code" in vars(kind)
}


class AwayError(FleetError):
    """The service did not answer; it may the next time."""


def part(name: str) -> str:
    """A name as one part of a path, whatever is in it. Raises: UsageError if there is none."""
    if not name:
        raise UsageError("a name is empty; which one is meant?")
    # A dot alone would be taken for a step in the path.
    return (
        name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="@", errors="surrogateescape")
    )


def at(template: str, *names: str) -> str:
    """A path with these names in its places: `at("/devices/{}/explain", device)`. Raises: UsageError."""
    return template.format(*map(part, names))


class Transport:
    """One fleet service."""

    def __init__(self, access: Access, timeout: httpx.Timeout = TIMEOUT) -> None:
        """Raises: UsageError if `ca` is no PEM text."""
        self._access = access
        self.url = access.url
        self._http = httpx.Client(
            base_url=f"{access.url}{ROOT}",
            headers={"Authorization": f"Bearer {access.token}"} if access.token else {},
            timeout=timeout,
            # The service is where the file says; a proxy set for the web has no part in it.
            trust_env=False,
            verify=_pinned(access) if access.ca else True,
        )

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Any = None,
        *,
        if_match: str = "",
        handled_bytes: int = 0,
    ) -> T:
        """Ask, and read the answer. With `if_match` only if the thing still has this `tag`; the answer may take as long as
        the service needs for `handled_bytes` of files.

        Raises: what the service refused with (ChangedMeanwhileError, NotFoundError, …); FleetError.
        """
        content = msgspec.json.encode(body) if body is not None else None
        headers = {"If-Match": f'"{if_match}"'} if if_match else {}
        response = self.send(method, path, content, headers, handled_bytes=handled_bytes)
        return self.read(response, method, path, kind)

    def pages(self, path: str, kind: type[T]) -> Iterator[T]:
        """The items of a list, however many pages it has; each is fetched when it is come to."""
        while path:
            response = self.send("GET", path)
            yield from self.read(response, "GET", path, list[kind])  # type: ignore[valid-type]  # made at run time
            path = response.links.get("next", {}).get("url", "").removeprefix(ROOT)

    def send(
        self,
        method: str,
        path: str,
        content: Content = None,
        headers: dict[str, str] | None = None,
        *,
        handled_bytes: int = 0,
    ) -> httpx.Response:
        """Raises: as `call`."""
        headers = {
            **(headers or {}),
            **({"Idempotency-Key": f'"{uuid.uuid4()}"'} if method == "POST" else {}),
        }
        try:
            response = self._request(method, path, content, headers, self._patience(handled_bytes))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response
        raise error_of(response)

    def _patience(self, handled_bytes: int) -> httpx.Timeout:
        usual = self._http.timeout
        if usual.read is None or not handled_bytes:
            return usual
        longer = usual.read + handled_bytes / _LEAST_BYTES_S
        return httpx.Timeout(connect=usual.connect, read=longer, write=usual.write, pool=usual.pool)

    def _request(
        self, method: str, path: str, content: Content, headers: dict[str, str], timeout: httpx.Timeout
    ) -> httpx.Response:
        try:
            return self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        except _BROKEN:
            if method not in ("GET", "POST"):
                raise
            return self._http.request(method, path, content=content, headers=headers, timeout=timeout)

    def read(self, response: httpx.Response, method: str, path: str, kind: type[T]) -> T:
        """Raises: FleetError for an answer of another kind."""
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as error:
            raise FleetError(
                f"{self._access.url} answered {method} {path} with something this client does not understand ({error}); "
                "are both the same version of EdgeKit?"
            ) from error

    def events(self, since: str = "") -> Iterator[tuple[str, api.Change]]:
        """(id of the newest event, what changed) until the connection ends; `since` is an id that came earlier.

        An event without an id of its own has the one before it. Raises: as `call`.
        """
        headers = {"Last-Event-ID": since} if since else {}
        try:
            with self._http.stream("GET", "/events", headers=headers, timeout=_STREAM_TIMEOUT) as response:
                if not response.is_success:
                    response.read()
                    raise error_of(response)
                yield from _events(response.iter_lines(), since)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> AwayError:
        return AwayError(
            f"the fleet at {self._access.url} cannot be reached ({error}); is 'edgekit fleet up' running?"
        )


def _events(lines: Iterator[str], newest: str) -> Iterator[tuple[str, api.Change]]:
    """Of the lines of a stream (HTML Living Standard, 9.2.6)."""
    data = ""
    for line in lines:
        name, _, value = line.partition(":")
        if name == "id":
            newest = value.strip()
        elif name == "data":
            data += value.strip()
        elif not line and data:
            yield newest, msgspec.json.decode(data, type=api.Change)
            data = ""


def _pinned(access: Access) -> ssl.SSLContext:
    """TLS that believes the fleet's own authority only. Raises: UsageError."""
    try:
        made = ssl.create_default_context(cadata=access.ca)
    except ssl.SSLError as error:
        raise UsageError(f"the fleet's 'ca' cannot be read ({error}); copy client.toml again") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def error_of(response: httpx.Response) -> EdgeKitError:
    """What the service refused with."""
    try:
        found = msgspec.json.decode(response.content, type=api.ErrorAnswer).error
    except msgspec.DecodeError:
        return FleetError(f"the fleet answered {response.status_code} {response.reason_phrase}")
    return _BY_CODE.get(found.code, FleetError)(safe.lines(found.message))
