"""The file that an extracted bundle was, byte for byte, without writing it anew.

A device keeps a bundle as files. A delta begins from the bundle's own bytes: members as they lie there, headers as
`bundle.write` makes them, which follow from names, lengths and check sums alone.

Always true
 1. `read` gives what the bundle file had at that place, if `sha256` is the bundle's: whoever needs to know compares.
 2. Memory holds headers and one piece, never a whole member.

Layout: `edgekit.stored`.
"""

import hashlib
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from edgekit import manifest as manifests
from edgekit import stored
from edgekit.manifest import MANIFEST_NAME

CHUNK_BYTES = 256 * 1024


class Extracted:
    """The bundle below `folder`, which must not change meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Raises: OSError, ManifestError if that is no extracted bundle."""
        manifest = manifests.decode((folder / MANIFEST_NAME).read_bytes())
        self.size = 0
        self._starts: list[int] = []
        self._parts: list[bytes | Path] = []
        self._open: tuple[Path, int] | None = None
        central = b""
        members = [MANIFEST_NAME, *sorted(entry.path for entry in manifest.files)]
        for name in members:
            path = folder / name
            length, crc = _summed(path)
            central += stored.central(name, length, crc, self.size)
            self._add(stored.local(name, length, crc))
            self._add(path, length)
        self._add(central + stored.end(len(members), len(central), self.size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def read(self, at: int, length: int) -> bytes:
        """Fewer bytes than `length` only at the end. Raises: OSError."""
        pieces = []
        while length > 0 and 0 <= at < self.size:
            number = bisect_right(self._starts, at) - 1
            end = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
            piece = self._piece(self._parts[number], at - self._starts[number], min(length, end - at))
            if not piece:
                # A file that became shorter: the bytes that are missing are nobody's.
                break
            pieces.append(piece)
            at += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def sha256(self) -> str:
        """Of the whole bundle file. Raises: OSError."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        at = 0
        while piece := self.read(at, CHUNK_BYTES):
            yield piece
            at += len(piece)

    def _add(self, part: bytes | Path, length: int | None = None) -> None:
        size = len(part) if isinstance(part, bytes) else length or 0
        if size:
            self._starts.append(self.size)
            self._parts.append(part)
            self.size += size

    def _piece(self, part: bytes | Path, at: int, length: int) -> bytes:
        if isinstance(part, bytes):
            return part[at : at + length]
        if self._open is None or self._open[0] != part:
            self.__exit__()
            self._open = (part, os.open(part, os.O_RDONLY | os.O_CLOEXEC))
        return os.pread(self._open[1], length, at)


def _summed(path: Path) -> tuple[int, int]:
    """Length and CRC-32 of a file."""
    length = crc = 0
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            length += len(piece)
            crc = zlib.crc32(piece, crc)
    return length, crc
