"""The short way to a bundle: a delta from one that a slot holds, where the publisher signed such a delta.

Always true
 1. What a delta gives becomes the bundle only if it has just the signed length and digest: a wrong delta wastes a
    download, never more.
 2. Whatever is wrong with the delta, its base or the server that should have it, the whole bundle is fetched in the same
    try. A delta that was applied once, or begun to be, is not applied again: it is marked before. A link that fails is
    nobody's fault: the delta is gone on with, `MAX_TRIES` times.
 3. No delta is asked for unless the slot still is, byte for byte, the bundle that the delta begins from.

Blocking; the reconciler calls it in a thread.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from device_agent import durable, log
from device_agent.blocking import Stopper
from device_agent.folder import DeploymentFolder
from device_agent.tuf.question import Listed
from device_agent.update.fetch import (
    FetchError,
    Part,
    Received,
    Source,
    WithheldError,
    check_space,
    download,
    fetch,
)
from device_agent.update.patching import patched
from edgekit.bundle import Bundle, sha256_file
from edgekit.errors import EdgeKitError
from edgekit.extracted import Extracted
from edgekit.manifest import Sha256
from edgekit.wire.messages import OrderedBundle

MAX_TRIES = 3


class Offer(NamedTuple):
    """A signed delta from the bundle `base` in `slot`."""

    slot: Path
    base: Sha256
    delta: Listed


class _UselessError(EdgeKitError):
    """Nothing comes of this delta; the whole bundle is fetched."""


class Shortcuts:
    """Of one deployment."""

    def __init__(self, folder: DeploymentFolder, source: Source) -> None:
        self._folder = folder
        self._source = source
        self._tries: Counter[Sha256] = Counter()

    def bring(
        self, wanted: OrderedBundle, offers: Iterable[Offer], stopping: Stopper, received: Received
    ) -> Bundle:
        """The checked bundle, by the shortest of `offers` if that works, else whole. Raises: FetchError, OSError."""
        folder = self._folder.fetch
        offer = min(offers, key=lambda one: one.delta.length, default=None)
        if offer is not None and not (folder / f"{wanted.sha256}.edgekit").is_file():
            try:
                self._take(wanted, offer, stopping, received)
            except (_UselessError, WithheldError) as error:
                log.trouble("update: the delta is of no use, fetching the whole bundle", reason=error)
        bundle = fetch(self._source, wanted, folder, stopping, received)
        received.is_whole = True
        way = "delta" if received.by_delta else "whole"
        log.event("fetched", bundle=wanted.target, bytes=received.size, of=wanted.length, way=way)
        return bundle

    def _take(self, wanted: OrderedBundle, offer: Offer, stopping: Stopper, received: Received) -> None:
        folder, delta = self._folder.fetch, offer.delta
        mark = folder / f"{wanted.sha256}.{delta.sha256}.tried"
        durable.make_folder(folder)
        for stale in folder.iterdir():
            if not stale.name.startswith((wanted.sha256, delta.sha256)):
                durable.remove(stale)
        if mark.exists():
            raise _UselessError("it was tried before")
        whole = Part.find(folder, wanted.sha256, wanted.length)
        part = Part.find(folder, delta.sha256, delta.length)
        if wanted.length - whole.synced <= delta.length - part.synced:
            raise _UselessError("less is missing of the bundle")
        _check_base(offer)
        _check_space(folder, wanted.length + delta.length, part.synced)
        self._download(wanted, delta, part, stopping, received)
        durable.write(mark, b"")
        try:
            self._apply(wanted, offer, part.path, stopping)
        except OSError:
            # The disk's fault, or the machine's: this was no try.
            with contextlib.suppress(OSError):
                durable.remove(mark)
            raise
        received.by_delta = True

    def _download(
        self, wanted: OrderedBundle, delta: Listed, part: Part, stopping: Stopper, received: Received
    ) -> None:
        name = f"the delta to {wanted.target}"
        try:
            download(
                self._source, delta.sha256, name, delta.length, part, stopping=stopping, received=received
            )
        except WithheldError:
            raise
        except FetchError as error:
            self._tries[delta.sha256] += 1
            if self._tries[delta.sha256] < MAX_TRIES or stopping.is_set:
                raise
            raise _UselessError(f"{error}, {MAX_TRIES} times") from error
        if sha256_file(part.path) != delta.sha256:
            durable.remove(part.path)
            raise _UselessError("altered or damaged on the way, not what was signed")

    def _apply(self, wanted: OrderedBundle, offer: Offer, patch: Path, stopping: Stopper) -> None:
        made = patch.with_name(f"{wanted.sha256}.made")
        digest = hashlib.sha256()
        pieces = patched(self._folder.state, offer.slot, patch, wanted.length, stopping)
        try:
            with contextlib.closing(pieces), durable.writing(made) as sink:
                for piece in pieces:
                    if sink.position + len(piece) > wanted.length:
                        break
                    digest.update(piece)
                    sink.write(piece)
            if stopping.is_set:
                raise InterruptedError(f"{wanted.target}: told to stop")
            if digest.hexdigest() != wanted.sha256:
                raise _UselessError("what it gives is not the signed bundle")
            durable.rename(made, made.with_suffix(".edgekit"))
        finally:
            # There no more if it was right. A full disk gets back what it took.
            with contextlib.suppress(OSError):
                durable.remove(made)


def _check_space(folder: Path, length: int, have: int) -> None:
    """Raises: _UselessError: the whole bundle takes less."""
    try:
        check_space(folder, length, have)
    except FetchError as error:
        raise _UselessError(str(error)) from error


def _check_base(offer: Offer) -> None:
    """Raises: _UselessError unless the slot is the bundle that it says it is."""
    try:
        with Extracted(offer.slot) as base:
            digest = base.sha256()
    except (OSError, EdgeKitError) as error:
        raise _UselessError(f"{offer.slot.name}: {error}") from error
    if digest != offer.base:
        raise _UselessError(f"{offer.slot.name} is not the bundle that it begins from any more")
