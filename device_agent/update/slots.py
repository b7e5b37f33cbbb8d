"""Slots A and B of one deployment, and the link `current` that alone says what runs.

Always true
 1. A slot counts only with its `slot.json`, which is written after everything else in it was synced.
 2. `current` is replaced atomically; there is no moment without the old or the new target.
 3. A worker loads a slot only if every file in it still has the hash that the checked bundle gave it.
"""

import errno
from pathlib import Path

import msgspec

from device_agent import durable
from device_agent.folder import DeploymentFolder
from device_agent.update.events import SlotName
from edgekit import manifest as manifests
from edgekit.bundle import CHUNK_BYTES, Bundle, file_entry, sha256_file
from edgekit.errors import BundleError, ManifestError
from edgekit.manifest import MANIFEST_NAME, Manifest, Sha256
from edgekit.wire.messages import OrderedBundle

_MARK = "slot.json"
_NAMES: tuple[SlotName, ...] = ("A", "B")
# What a read says of a file that is gone or cannot be had any more; anything else is about the machine.
_DAMAGE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ}
)


class SlotMark(msgspec.Struct, frozen=True):
    """What the slot holds: the bundle's digest and its manifest's, as checked when it was staged."""

    sha256: Sha256
    manifest_sha256: Sha256
    target: str
    length: int


def mark_of(slot: Path) -> SlotMark | None:
    """None for a slot that is absent or was not finished."""
    try:
        return msgspec.json.decode((slot / _MARK).read_bytes(), type=SlotMark)
    except (OSError, msgspec.DecodeError):
        return None


def stage(folder: DeploymentFolder, name: SlotName, bundle: Bundle, target: str) -> None:
    """Extract a checked bundle into a slot, durably; whatever the slot held is gone first."""
    slot = folder.slot(name)
    if durable.remove(slot / _MARK):
        # Were the mark to come back after a power cut, it would vouch for what is removed next.
        durable.sync_folder(slot)
    durable.remove(slot)
    durable.make_folder(slot)
    for member, source in bundle.members():
        durable.make_folder((slot / member).parent, sync=False)
        with durable.writing(slot / member) as sink:
            while chunk := source.read(CHUNK_BYTES):
                sink.write(chunk)
    durable.sync_tree(slot)
    mark = SlotMark(bundle.sha256, sha256_file(slot / MANIFEST_NAME), target, bundle.size_bytes)
    durable.write(slot / _MARK, msgspec.json.encode(mark))


def load_checked(slot: Path) -> tuple[SlotMark, Manifest]:
    """The slot's mark and manifest after every file was hashed again.

    Raises: BundleError if anything differs from what was staged (a failing card, a hand that edited); OSError if the
    machine has no means to look.
    """
    mark = mark_of(slot)
    if mark is None:
        raise BundleError(f"{slot}: no finished bundle in this slot")
    try:
        data = (slot / MANIFEST_NAME).read_bytes()
        if file_entry(MANIFEST_NAME, data).sha256 != mark.manifest_sha256:
            raise BundleError(f"{slot}: {MANIFEST_NAME} was altered after it was staged")
        manifest = manifests.decode(data)
        for entry in manifest.files:
            if file_entry(entry.path, slot / entry.path) != entry:
                raise BundleError(f"{slot}: {entry.path} was altered after it was staged")
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        raise BundleError(f"{slot}: {error.filename} cannot be read ({error.strerror})") from error
    except ManifestError as error:
        raise BundleError(f"{slot}: {error}") from error
    return mark, manifest


def held(folder: DeploymentFolder) -> dict[SlotName, OrderedBundle]:
    """The finished bundles in the two slots, by their marks."""
    marks = {name: mark_of(folder.slot(name)) for name in _NAMES}
    return {
        name: OrderedBundle(target=mark.target, sha256=mark.sha256, length=mark.length)
        for name, mark in marks.items()
        if mark is not None
    }


def current(folder: DeploymentFolder) -> SlotName | None:
    """The slot that `current` names, if it is one with a finished bundle."""
    try:
        name = folder.current.readlink().name
    except OSError:
        return None
    for known in _NAMES:
        if name == known and mark_of(folder.slot(known)) is not None:
            return known
    return None


def point(folder: DeploymentFolder, name: SlotName) -> None:
    durable.point(folder.current, name)


def clear(folder: DeploymentFolder) -> None:
    """From now on the deployment runs nothing."""
    durable.remove(folder.current)
