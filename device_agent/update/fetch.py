"""Bringing a bundle onto this device: from the pinned artifact address to a file whose every byte was signed.

Always true
 1. It begins only after `tuf.lookup` found the order's bundle among what the publisher signed, with its length and hash.
 2. Nothing is received beyond the signed length, and nothing is opened before length and hash matched.
 3. No address comes from an order, no redirect is followed, only allowed hosts are spoken to.
 4. A download that was cut is `<sha256>.<n>.part`, of which the first n bytes were synced before it got that name;
    only they are gone on from.
 5. Nothing that a server, a proxy or a link does is held against the bundle: bytes that do not have its digest are not
    its bytes.

Blocking; the reconciler calls it in a thread and sets `stopping` to end it.
"""

import http.client
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from device_agent import durable
from device_agent.blocking import Stopper
from device_agent.network import Access
from device_agent.tuf.question import Listed
from device_agent.update.events import Cause
from edgekit import bundle as bundles
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EdgeKitError, ManifestError, UsageError
from edgekit.manifest import Sha256
from edgekit.protocol import room
from edgekit.wire.messages import OrderedBundle

CHUNK_BYTES = 256 * 1024
# How often a download that waits for its share of the line looks whether it is still wanted.
_LOOK_S = 0.2
# How much of a download a power cut may cost.
SYNC_BYTES = 4 << 20

# Ends well if the publisher signed just this bundle (`tuf.lookup`), with what he signed of deltas to it from any of
# these, by the base's digest. Raises: FetchError, OSError.
CheckSigned = Callable[[OrderedBundle, Iterable[Sha256]], Awaitable[Mapping[Sha256, Listed]]]
# A request for the file that is received, with these headers beside the usual ones.
Ask = Callable[[Mapping[str, str]], AbstractContextManager[http.client.HTTPResponse]]


class FetchError(EdgeKitError):
    """A bundle could not be brought here; `cause` says whose fault that is."""

    code = "fetch"

    def __init__(self, message: str, cause: Cause = Cause.PASSING) -> None:
        super().__init__(message)
        self.cause = cause


class WithheldError(FetchError):
    """The server answered, but not with the file."""


@dataclass
class Received:
    """What the network brought for the bundle `sha256`, all tries together; with at most `bytes_s` on average."""

    sha256: Sha256
    size: int = 0
    by_delta: bool = False
    is_whole: bool = False
    bytes_s: float | None = None


@dataclass(frozen=True)
class Source:
    """Where artifacts come from, as the enrolment pinned it."""

    artifact_url: str
    access: Access
    check_signed: CheckSigned
    # Why a download of so many bytes waits; empty if it need not.
    waits: Callable[[int], str] = lambda _size: ""


def fetch(
    source: Source, wanted: OrderedBundle, folder: Path, stopping: Stopper, received: Received
) -> Bundle:
    """The checked bundle, at `folder/<sha256>.edgekit`.

    Raises: FetchError; OSError if the disk takes it not.
    """
    durable.make_folder(folder)
    final = folder / f"{wanted.sha256}.edgekit"
    for stale in folder.iterdir():
        if not stale.name.startswith(wanted.sha256):
            durable.remove(stale)
    if not final.is_file():
        part = Part.find(folder, wanted.sha256, wanted.length)
        check_space(folder, wanted.length, part.synced)
        download(
            source, wanted.sha256, wanted.target, wanted.length, part, stopping=stopping, received=received
        )
        _check_download(wanted, part.path)
        durable.rename(part.path, final)
    return opened(wanted, folder)


def download(
    source: Source,
    sha256: Sha256,
    name: str,
    length: int,
    part: "Part",
    *,
    stopping: Stopper,
    received: Received,
) -> None:
    """Fill `part` with one artifact, whose digest is not looked at yet. Raises: FetchError, OSError."""

    def ask(headers: Mapping[str, str]) -> AbstractContextManager[http.client.HTTPResponse]:
        return _asking(source, sha256, headers, stopping)

    if told := source.waits(length - part.synced):
        raise FetchError(told)
    part.throttle = Throttle(received.bytes_s)
    try:
        receive(ask, name, length, part, stopping)
    finally:
        received.size += part.received


def check_space(folder: Path, length: int, have: int) -> None:
    if refusal := room.refusal(shutil.disk_usage(folder).free, length, have):
        raise FetchError(refusal)


@dataclass
class Throttle:
    """Keeps the average of what is taken at `bytes_s`; None is as fast as it comes."""

    bytes_s: float | None = None
    taken: int = 0
    since: float | None = None

    @property
    def piece(self) -> int:
        """How many bytes to take at once: a quarter of a second's, so that the line is used evenly."""
        return CHUNK_BYTES if self.bytes_s is None else max(1024, min(CHUNK_BYTES, int(self.bytes_s / 4)))

    def took(self, count: int, stopping: Stopper) -> None:
        """Wait until that much may have been taken; no longer than until `stopping` is set."""
        if self.bytes_s is None:
            return
        self.since = self.since if self.since is not None else time.monotonic()
        self.taken += count
        while not stopping.is_set:
            ahead_s = self.taken / self.bytes_s - (time.monotonic() - self.since)
            if ahead_s <= 0:
                return
            time.sleep(min(ahead_s, _LOOK_S))


@dataclass
class Part:
    """A download under way; `synced` bytes of `path` are on the medium, and its name says so."""

    path: Path
    synced: int
    # What came over the network, kept or not.
    received: int = 0
    throttle: Throttle = field(default_factory=Throttle)

    @classmethod
    def find(cls, folder: Path, key: str, length: int) -> "Part":
        """The one that an earlier try left, cut back to what is certain of it, or a new one.

        `key`, 64 hexadecimal digits, determines what the `length` bytes of the whole file are.
        """
        best = cls(cls._named(folder, key, 0), 0)
        for path in folder.glob(f"{key}.*.part"):
            match = re.fullmatch(r"[0-9a-f]{64}\.(\d+)\.part", path.name)
            synced = int(match[1]) if match else 0
            if match is None or not best.synced <= synced <= min(path.stat().st_size, length):
                durable.remove(path)
                continue
            if best.path != path and best.path.exists():
                durable.remove(best.path)
            best = cls(path, synced)
        return best

    @staticmethod
    def _named(folder: Path, sha256: str, synced: int) -> Path:
        return folder / f"{sha256}.{synced}.part"

    def fill(self, response: http.client.HTTPResponse, start: int, left: int, stopping: Stopper) -> int:
        """Append what comes, syncing now and then, and whatever came in the end; the bytes that did not come."""
        if start < self.synced:
            # Its name would promise what is being written anew.
            durable.remove(self.path)
            self.path, self.synced = self._named(self.path.parent, self.path.name[:64], 0), 0
        with durable.writing(self.path, at=start, sync=False) as sink:
            try:
                return self._receive(sink, response, left, stopping)
            finally:
                self._sync(sink)

    def _receive(
        self, sink: durable.Writer, response: http.client.HTTPResponse, left: int, stopping: Stopper
    ) -> int:
        while left and not stopping.is_set:
            chunk = _read(response, min(self.throttle.piece, left))
            if not chunk:
                break
            self.received += len(chunk)
            sink.write(chunk)
            left -= len(chunk)
            self.throttle.took(len(chunk), stopping)
            if sink.position - self.synced >= SYNC_BYTES:
                self._sync(sink)
        return left

    def _sync(self, sink: durable.Writer) -> None:
        if sink.position == self.synced:
            return
        target = self._named(self.path.parent, self.path.name[:64], sink.position)
        sink.adopt(target)
        self.path, self.synced = target, sink.position


def receive(ask: Ask, name: str, length: int, part: Part, stopping: Stopper) -> None:
    """Fill `part` up to the signed length, going on where an earlier try ended. Raises: FetchError, OSError."""
    have = part.synced
    if have == length:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with ask(headers) as response:
        if have and response.status not in (200, 206):
            # Perhaps it is the range that is refused (416): the next try asks for everything.
            durable.remove(part.path)
        _expect(response, (200, 206), name)
        start = have if response.status == 206 else 0
        _check_offer(response, name, start, length)
        left = part.fill(response, start, length - start, stopping)
    if left:
        raise FetchError(f"{name}: the download ended {left} bytes early")


def _check_offer(response: http.client.HTTPResponse, name: str, start: int, length: int) -> None:
    """What is announced must be the file: a proxy's page is not written over what came already."""
    told = response.headers.get("Content-Range", "")
    if response.status == 206 and told != f"bytes {start}-{length - 1}/{length}":
        raise WithheldError(f"{name}: the server answered another range ({told or 'none'})")
    offered = response.length
    if offered is not None and offered != length - start:
        raise WithheldError(f"{name}: the server has {offered} bytes, {length - start} are due")


def _check_download(wanted: OrderedBundle, path: Path) -> None:
    digest = bundles.sha256_file(path)
    if digest != wanted.sha256:
        durable.remove(path)
        raise FetchError(
            f"{wanted.target}: altered or damaged on the way (sha256 {digest[:12]}…, signed {wanted.sha256[:12]}…)"
        )


def opened(wanted: OrderedBundle, folder: Path) -> Bundle:
    """A fetched bundle, hashed before it is opened, its manifest held against the signed name.

    Raises: FetchError; with the bundle as its cause only if these are the signed bytes.
    """
    path = folder / f"{wanted.sha256}.edgekit"
    try:
        bundle = bundles.read(path, sha256=wanted.sha256, length=wanted.length)
    except (BundleError, ManifestError) as error:
        is_whole = path.is_file() and bundles.sha256_file(path) == wanted.sha256
        durable.remove(path)
        raise FetchError(str(error), Cause.BUNDLE if is_whole else Cause.PASSING) from error
    manifest = bundle.manifest
    own = f"{manifest.name}/{manifest.version}/{manifest.profile}/{bundle.sha256}.edgekit"
    if own != wanted.target:
        raise FetchError(f"the bundle calls itself {own}, it was signed as {wanted.target}", Cause.BUNDLE)
    return bundle


@contextmanager
def _asking(
    source: Source, name: str, headers: Mapping[str, str], stopping: Stopper
) -> Iterator[http.client.HTTPResponse]:
    """GET one artifact. Raises: FetchError for a host that is not allowed or a link that fails."""
    url = urlsplit(f"{source.artifact_url.rstrip('/')}/{name}")
    try:
        connection = source.access.open(url.geturl(), "models")
    except UsageError as error:
        raise FetchError(str(error)) from error
    try:
        connection.connect()
        stopping.watch(connection.sock)
        path = url.path + (f"?{url.query}" if url.query else "")
        connection.request(
            "GET", path, headers={"Authorization": f"Bearer {source.access.credential}", **headers}
        )
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise FetchError(f"{url.netloc}: {error or type(error).__name__}") from error
    # What the caller's disk does while it receives is not the link's fault, so it is not caught here.
    try:
        yield response
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, length: int) -> bytes:
    """Raises: FetchError for a link that fails."""
    try:
        return response.read(length)
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"the link failed: {error or type(error).__name__}") from error


def _expect(response: http.client.HTTPResponse, statuses: tuple[int, ...], what: str) -> None:
    if response.status not in statuses:
        raise WithheldError(f"{what}: the artifact server answered {response.status} {response.reason}")
