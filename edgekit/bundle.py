"""Bundles: deterministic zips that are checked before a byte of them is trusted.

Always true
 1. The same manifest and files give the same bytes: fixed order, fixed time, fixed attributes, stored.
 2. `read` opens the zip only after its length and digest matched, where the caller knows them.
 3. Nothing is written to disk before every member's name, size, method and hash has been checked.
 4. What is extracted is exactly what the manifest lists.

Zip layout: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory).
"""

import hashlib
import io
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from edgekit import manifest as manifests
from edgekit import stored
from edgekit.errors import BundleError
from edgekit.manifest import MANIFEST_NAME, FileEntry, Manifest

CHUNK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 4 << 20
MAX_MEMBERS = 4096
# What a build takes; torch's are zips too, and failed by a member's name.
_MODELS = frozenset({".onnx", ".pt", ".pt2", ".tflite", ".keras", ".h5"})


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_entry(path: str, data: bytes | Path) -> FileEntry:
    """The manifest's entry for one member."""
    if isinstance(data, Path):
        return FileEntry(path=path, sha256=sha256_file(data), size=data.stat().st_size)
    return FileEntry(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def write(target: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> str:
    """Write a bundle atomically and return its sha256.

    `files` holds the content of every path in `manifest.files`.

    Raises: BundleError if the two disagree, or for more than a bundle holds; OSError, which names the bundle.
    """
    listed = {entry.path: entry for entry in manifest.files}
    if set(listed) != set(files):
        raise BundleError(
            f"{target.name}: the manifest and the files differ in {sorted(set(listed) ^ set(files))}"
        )
    first = manifests.encode(manifest)
    size = stored.size_of({MANIFEST_NAME: len(first), **{path: entry.size for path, entry in listed.items()}})
    if size > stored.MOST_BYTES:
        raise BundleError(
            f"{target.name}: {size / 1e9:.1f} GB, and a bundle holds less than {stored.MOST_BYTES / 1e9:.1f} GB; ship a"
            " recipe with weights in fewer bits (--recipe '*int8*')"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as sink:
            central = _appended(sink, MANIFEST_NAME, first)[0]
            for path in sorted(files):
                entry, found = _appended(sink, path, files[path])
                if found != listed[path]:
                    raise BundleError(f"{target.name}: {path} changed after the manifest was made")
                central += entry
            sink.write(central + stored.end(len(files) + 1, len(central), sink.tell()))
        digest = sha256_file(partial)
        partial.replace(target)
    except OSError as error:
        # A full disk is told by a call that knows no name.
        error.filename = str(target)
        raise
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _appended(sink: BinaryIO, name: str, data: bytes | Path) -> tuple[bytes, FileEntry]:
    """Write a member, piece by piece; gives its entry in the zip's directory, and what the manifest should say of it."""
    start = sink.tell()
    sink.write(stored.local(name, 0, 0))
    digest, crc, length = hashlib.sha256(), 0, 0
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as content:
        while piece := content.read(CHUNK_BYTES):
            sink.write(piece)
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            length += len(piece)
    end = sink.tell()
    if end > stored.MOST_BYTES:
        raise BundleError(f"{name} grew while the bundle was written")
    # Its check sum is known only now.
    sink.seek(start)
    sink.write(stored.local(name, length, crc))
    sink.seek(end)
    return stored.central(name, length, crc, start), FileEntry(name, digest.hexdigest(), length)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose structure and hashes have been checked."""

    path: Path
    manifest: Manifest
    sha256: str
    size_bytes: int

    def read(self, member: str) -> bytes:
        """The bytes of one listed file. Raises: BundleError if it is not listed."""
        if member not in {entry.path for entry in self.manifest.files}:
            raise BundleError(f"{self.path.name} has no file {member!r}")
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(member)

    def members(self) -> Iterator[tuple[str, IO[bytes]]]:
        """The manifest and the files, each with its name and its open content, as the digest-checked bundle has them."""
        with zipfile.ZipFile(self.path) as archive:
            for member in (MANIFEST_NAME, *(entry.path for entry in self.manifest.files)):
                with archive.open(member) as source:
                    yield member, source

    def extract(self, folder: Path) -> None:
        """Write manifest and files below `folder`."""
        for member, source in self.members():
            target = folder / member
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)


def read(path: Path, *, sha256: str | None = None, length: int | None = None) -> Bundle:
    """Check a bundle and return it; give `sha256` and `length` where they are known from a signature.

    Raises: BundleError for anything that is not exactly a bundle; ManifestError for its manifest.
    """
    if not path.is_file():
        raise BundleError(f"{path}: there is no such file")
    if path.suffix.lower() in _MODELS:
        raise BundleError(
            f"{path.name}: a model, not a bundle; `edgekit build {path.name}` makes bundles of it"
        )
    size = path.stat().st_size
    if length is not None and size != length:
        raise BundleError(f"{path.name}: {size} bytes long, but {length} were signed; fetch it again")
    digest = sha256_file(path)
    if sha256 is not None and digest != sha256:
        raise BundleError(f"{path.name}: altered or damaged (sha256 {digest[:12]}…, signed {sha256[:12]}…)")
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = _checked_members(path, archive, stream, size)
                manifest = _read_manifest(path, archive, members)
                _check_files(path, archive, members, manifest)
        except (
            zipfile.BadZipFile,
            struct.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            UnicodeDecodeError,
        ) as error:
            raise BundleError(f"{path.name}: not a bundle, or truncated ({error})") from error
    return Bundle(path=path, manifest=manifest, sha256=digest, size_bytes=size)


def _checked_members(
    path: Path, archive: zipfile.ZipFile, stream: BinaryIO, size: int
) -> dict[str, zipfile.ZipInfo]:
    """Members by name after the structural checks: the file is a gapless row of stored regular members."""
    infos = archive.infolist()
    if not 0 < len(infos) <= MAX_MEMBERS:
        raise BundleError(f"{path.name}: {len(infos)} members; a bundle has 1 to {MAX_MEMBERS}")
    members: dict[str, zipfile.ZipInfo] = {}
    position = 0
    for info in infos:
        name = info.filename
        if name in members:
            raise BundleError(f"{path.name}: member {name!r} appears twice")
        if name != MANIFEST_NAME and not manifests.safe_member_path(name):
            raise BundleError(f"{path.name}: member {name!r} is not a plain path below a bundle's folders")
        mode = info.external_attr >> 16
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise BundleError(f"{path.name}: member {name!r} is compressed; bundles store")
        if info.flag_bits & ~0x800 or info.extra or info.comment or not stat.S_ISREG(mode):
            raise BundleError(f"{path.name}: member {name!r} is encrypted, a link, or carries extra data")
        position = _end_of_member(path, stream, info, position)
        members[name] = info
    if archive.comment or archive.start_dir != position or _central_end(archive, infos) != size:
        raise BundleError(f"{path.name}: data before, between or after the members")
    return members


def _end_of_member(path: Path, stream: BinaryIO, info: zipfile.ZipInfo, position: int) -> int:
    """Where the member's data ends, having compared its local header with the central directory."""
    if info.header_offset != position:
        raise BundleError(f"{path.name}: member {info.filename!r} overlaps another or leaves a gap")
    stream.seek(position)
    fields = stored.LOCAL.unpack(stream.read(stored.LOCAL.size))
    signature, _version, flags, method, _time, _date, crc, packed, unpacked, name_length, extra_length = (
        fields
    )
    name = stream.read(name_length)
    agrees = (
        signature == b"PK\x03\x04"
        and (flags, method, crc) == (info.flag_bits, info.compress_type, info.CRC)
        and packed == unpacked == info.file_size
        and name == info.filename.encode()
        and extra_length == 0
    )
    if not agrees:
        raise BundleError(f"{path.name}: the two headers of member {info.filename!r} differ")
    return int(position + stored.LOCAL.size + name_length + info.file_size)


def _central_end(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> int:
    """Where the file must end: central entries (46 bytes and the name each), then the 22-byte end record."""
    return int(
        archive.start_dir
        + sum(stored.CENTRAL.size + len(info.filename.encode()) for info in infos)
        + stored.END.size
    )


def _read_manifest(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> Manifest:
    info = members.get(MANIFEST_NAME)
    if info is None:
        raise BundleError(f"{path.name}: no {MANIFEST_NAME}")
    if info.file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path.name}: {MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    return manifests.decode(archive.read(info))


def _check_files(
    path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], manifest: Manifest
) -> None:
    listed = {entry.path: entry for entry in manifest.files}
    if set(members) - {MANIFEST_NAME} != set(listed):
        raise BundleError(
            f"{path.name}: members and manifest differ in {sorted((set(members) - {MANIFEST_NAME}) ^ set(listed))}"
        )
    for name, entry in listed.items():
        if members[name].file_size != entry.size:
            raise BundleError(
                f"{path.name}: {name} has {members[name].file_size} bytes, the manifest says {entry.size}"
            )
        with archive.open(name) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # a ZipExtFile is readable
        if digest != entry.sha256:
            raise BundleError(f"{path.name}: {name} does not match its sha256 in the manifest")
