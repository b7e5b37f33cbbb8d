"""Bringing a bundle onto this device: from the pinned artifact address to a file whose every byte was signed.

Always true
 1. The publisher's envelope is fetched and verified first; it and the order must say the same.
 2. Nothing is received beyond the signed length, and nothing is opened before length and hash matched.
 3. No address comes from an order, no redirect is followed, only allowed hosts are spoken to.

Blocking; the runner calls it in a thread and sets `stopping` to end it.
"""

import http.client
import shutil
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from device_agent import durable
from device_agent.blocking import Stopper
from edgekit import bundle as bundles
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EdgeKitError, ManifestError, SignatureRefusedError
from edgekit.protocol import room
from edgekit.trust import target as targets
from edgekit.trust.dsse import MAX_ENVELOPE_BYTES
from edgekit.wire.messages import OrderedBundle

CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 30.0
CHUNK_BYTES = 256 * 1024


class FetchError(EdgeKitError):
    """`is_passing`: trying again later may help. `blames_bundle`: the same bytes would be refused again."""

    code = "fetch"

    def __init__(self, message: str, *, is_passing: bool = False, blames_bundle: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing
        self.blames_bundle = blames_bundle


@dataclass(frozen=True)
class Source:
    """Where artifacts come from, as the enrolment pinned it."""

    artifact_url: str
    allowed_hosts: tuple[str, ...]
    publisher_keys: Mapping[str, str]
    credential: str


def fetch(source: Source, wanted: OrderedBundle, folder: Path, stopping: Stopper) -> Bundle:
    """The checked bundle, at `folder/<sha256>.edgekit`.

    Raises: FetchError.
    """
    durable.make_folder(folder)
    final = folder / f"{wanted.sha256}.edgekit"
    part = folder / f"{wanted.sha256}.part"
    for stale in folder.iterdir():
        if stale not in (final, part):
            durable.remove(stale)
    _check_envelope(source, wanted, stopping)
    if not final.is_file():
        _check_space(folder, wanted.length, part)
        _download(source, wanted, part, stopping)
        _check_download(wanted, part)
        durable.adopt(part, final)
    return opened(wanted, folder)


def _check_envelope(source: Source, wanted: OrderedBundle, stopping: Stopper) -> None:
    data = b""
    with _asking(source, f"{wanted.sha256}.dsse", {}, stopping) as response:
        _expect(response, (200,), f"the signature of {wanted.target}")
        data = response.read(MAX_ENVELOPE_BYTES + 1)
    try:
        signed = targets.verify(data, source.publisher_keys)
    except SignatureRefusedError as error:
        raise FetchError(f"{wanted.target}: {error}") from error
    if (signed.path, signed.sha256, signed.length) != (wanted.target, wanted.sha256, wanted.length):
        raise FetchError(
            f"the order wants {wanted.target} with {wanted.length} bytes,"
            f" the publisher signed {signed.path} with {signed.length}"
        )


def _check_space(folder: Path, length: int, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if refusal := room.refusal(shutil.disk_usage(folder).free, length, have):
        raise FetchError(refusal, is_passing=True)


def _download(source: Source, wanted: OrderedBundle, part: Path, stopping: Stopper) -> None:
    """Fill `part` up to the signed length, going on where an earlier try ended."""
    have = part.stat().st_size if part.is_file() else 0
    if have > wanted.length:
        durable.remove(part)
        have = 0
    if have == wanted.length:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _asking(source, wanted.sha256, headers, stopping) as response:
        _expect(response, (200, 206), wanted.target)
        is_continued = response.status == 206
        if is_continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise FetchError(f"{wanted.target}: the server answered another range", is_passing=True)
        left = wanted.length - (have if is_continued else 0)
        with part.open("ab" if is_continued else "wb") as sink:
            while left and not stopping.is_set:
                chunk = response.read(min(CHUNK_BYTES, left))
                if not chunk:
                    break
                sink.write(chunk)
                left -= len(chunk)
    if left:
        raise FetchError(f"{wanted.target}: the download ended {left} bytes early", is_passing=True)


def _check_download(wanted: OrderedBundle, part: Path) -> None:
    digest = bundles.sha256_file(part)
    if digest != wanted.sha256:
        durable.remove(part)
        raise FetchError(
            f"{wanted.target}: altered or damaged on the way (sha256 {digest[:12]}…, signed {wanted.sha256[:12]}…)"
        )


def opened(wanted: OrderedBundle, folder: Path) -> Bundle:
    """A fetched bundle, hashed before it is opened, its manifest held against the signed name. Raises: FetchError."""
    path = folder / f"{wanted.sha256}.edgekit"
    try:
        bundle = bundles.read(path, sha256=wanted.sha256, length=wanted.length)
    except (BundleError, ManifestError) as error:
        durable.remove(path)
        raise FetchError(str(error), blames_bundle=True) from error
    manifest = bundle.manifest
    own = f"{manifest.name}/{manifest.version}/{manifest.profile}/{bundle.sha256}.edgekit"
    if own != wanted.target:
        raise FetchError(
            f"the bundle calls itself {own}, it was signed as {wanted.target}", blames_bundle=True
        )
    return bundle


@contextmanager
def _asking(
    source: Source, name: str, headers: Mapping[str, str], stopping: Stopper
) -> Iterator[http.client.HTTPResponse]:
    """GET one artifact. Raises: FetchError for a host that is not allowed or a link that fails."""
    url = urlsplit(f"{source.artifact_url.rstrip('/')}/{name}")
    if url.hostname is None or not is_allowed(url.hostname, url.port, source.allowed_hosts):
        raise FetchError(f"{url.netloc} is not among the hosts that the enrolment allows")
    connection = open_connection(url.scheme, url.hostname, url.port)
    try:
        connect(connection)
        stopping.watch(connection.sock)
        path = url.path + (f"?{url.query}" if url.query else "")
        connection.request("GET", path, headers={"Authorization": f"Bearer {source.credential}", **headers})
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{url.netloc}: {error or type(error).__name__}", is_passing=True) from error
    finally:
        connection.close()


def open_connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    """A connection for `scheme`, not yet made; https verifies against the system's authorities."""
    if scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=context)
    return http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)


def connect(connection: http.client.HTTPConnection) -> None:
    """Connect; from then on an answer may take `TIMEOUT_S`. Raises: OSError."""
    connection.connect()
    connection.sock.settimeout(TIMEOUT_S)


def is_allowed(host: str, port: int | None, allowed: tuple[str, ...]) -> bool:
    """Whether `host`, or `host:port`, is in the list."""
    return host in allowed or f"{host}:{port}" in allowed


def _expect(response: http.client.HTTPResponse, statuses: tuple[int, ...], what: str) -> None:
    if response.status not in statuses:
        raise FetchError(
            f"{what}: the artifact server answered {response.status} {response.reason}",
            is_passing=response.status >= 500 or response.status in (408, 429),
        )
