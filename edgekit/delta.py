"""Deltas: what turns one bundle file into another, in the format of bsdiff 4.3 (`BSDIFF40`).

A header (magic, lengths of the first two blocks, length of the result; 8 bytes each, sign and magnitude), then three bzip2
blocks: control (triples: so many bytes are differences to the old file, so many are new, so far to go in the old file),
differences, new bytes. After C. Percival, "Naive differences of executable code" (2003).

A fine-tuned model keeps its shape: most of its bytes are where they were and differ by little or nothing, which is what
differences compress to almost nothing, and what a dictionary of equal strings finds none of.

Always true
 1. Nothing is believed of a delta but that it may be wrong: what it gives is never longer than `length`, lengths and
    places outside the old file are refused, and what comes of it is judged by its own digest, by the caller.
 2. Memory does not grow with either file: three decompressors (4 MB each) and one piece.
"""

import bz2
import struct
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from edgekit.errors import BundleError
from edgekit.manifest import Sha256

METHOD = "bsdiff40"
MAGIC = b"BSDIFF40"
# Steps are taken in pieces of so many bytes, however long the control block says that they are.
PIECE_BYTES = 64 * 1024
HEADER = struct.Struct("<8s3Q")
TRIPLE = struct.Struct("<3Q")
_SIGN = 1 << 63


class DeltaError(BundleError):
    """No delta from that file to one of that length."""


class Base(Protocol):
    """The old file."""

    size: int

    def read(self, at: int, length: int) -> bytes: ...


def path(target: str, base: Sha256, sha256: Sha256) -> str:
    """The TUF target path of the delta from the bundle `base` to the one of the target path `target`."""
    return f"{target.rpartition('/')[0]}/{base}-{sha256}.delta"


def is_to(path: str, target: str) -> bool:
    """Whether the target path `path` names a delta to the bundle of the target path `target`."""
    folder, _, file = target.rpartition("/")
    return path.startswith(f"{folder}/") and path.endswith(f"-{file.removesuffix('.edgekit')}.delta")


def apply(base: Base, patch: BinaryIO, length: int) -> Iterator[bytes]:
    """The new file of `length` bytes, piece by piece. Raises: DeltaError, in the middle too; OSError."""
    control, differences, news = _blocks(patch, length)
    position = done = 0
    was_empty = False
    while done < length:
        numbers = (number(word) for word in TRIPLE.unpack(control.take(TRIPLE.size)))
        changed, added, distance = numbers
        if changed < 0 or added < 0 or changed + added > length - done:
            raise DeltaError("a step is longer than the file")
        if changed and not 0 <= position <= base.size - changed:
            raise DeltaError("a step leaves the old file")
        is_empty = changed == added == 0
        if is_empty and was_empty:
            raise DeltaError("steps without end")
        was_empty = is_empty
        for size in _sizes(changed):
            yield _added(base.read(position, size), differences.take(size))
            position += size
        for size in _sizes(added):
            yield news.take(size)
        done += changed + added
        position += distance


def number(word: int) -> int:
    """From sign and magnitude."""
    return word if word < _SIGN else _SIGN - word


def word(value: int) -> int:
    """To sign and magnitude."""
    return value if value >= 0 else _SIGN - value


def _blocks(patch: BinaryIO, length: int) -> tuple["_Block", "_Block", "_Block"]:
    patch.seek(0, 2)
    size = patch.tell()
    patch.seek(0)
    head = patch.read(HEADER.size)
    if len(head) != HEADER.size or not head.startswith(MAGIC):
        raise DeltaError("this is no delta")
    _magic, of_control, of_differences, told = HEADER.unpack(head)
    if told != length:
        raise DeltaError(f"the delta makes {told} bytes, {length} were signed")
    first = HEADER.size + of_control
    second = first + of_differences
    if not HEADER.size <= first <= second <= size:
        raise DeltaError("the delta's blocks are longer than the delta")
    return _Block(patch, HEADER.size, first), _Block(patch, first, second), _Block(patch, second, size)


class _Block:
    """One compressed block, of which no more is unpacked than is asked for."""

    def __init__(self, patch: BinaryIO, start: int, end: int) -> None:
        self._patch = patch
        self._at = start
        self._end = end
        self._bz2 = bz2.BZ2Decompressor()

    def take(self, size: int) -> bytes:
        """Just `size` bytes, at most a piece's. Raises: DeltaError."""
        taken = b""
        while len(taken) < size:
            packed = b""
            if self._bz2.eof:
                raise DeltaError("a block of the delta ends too early")
            if self._bz2.needs_input:
                self._patch.seek(self._at)
                packed = self._patch.read(min(PIECE_BYTES, self._end - self._at))
                self._at += len(packed)
                if not packed:
                    raise DeltaError("a block of the delta ends too early")
            try:
                taken += self._bz2.decompress(packed, size - len(taken))
            except (OSError, ValueError) as error:
                raise DeltaError(f"a block of the delta is damaged ({error})") from error
        return taken


def _sizes(total: int) -> Iterator[int]:
    while total > 0:
        size = min(total, PIECE_BYTES)
        yield size
        total -= size


def _added(old: bytes, differences: bytes) -> bytes:
    """The sums of two equally long strings, byte by byte, modulo 256; without numpy, which the supervisor does without.

    All bytes at once: the lower seven bits are added, where nothing is carried into a neighbour, then the upper ones.
    """
    size = len(differences)
    if len(old) != size:
        raise DeltaError("the old file is shorter than it was")
    if differences.count(0) == size:
        return old
    low = _LOW if size == PIECE_BYTES else int.from_bytes(b"\x7f" * size, "little")
    one, other = int.from_bytes(old, "little"), int.from_bytes(differences, "little")
    high = (one ^ other) & ~low
    return (((one & low) + (other & low)) ^ high).to_bytes(size, "little")


_LOW = int.from_bytes(b"\x7f" * PIECE_BYTES, "little")
