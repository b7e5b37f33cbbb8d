"""Making deltas: the publisher's half of `edgekit.delta`.

Both files are bundles, and members of one name belong together. Where such a member kept its length, as a fine-tuned
model does, it is compared byte by byte with the old one at the same place: measured, that is as good as bsdiff's search
and a hundred times as fast. Where it did not, or where that is no good, bsdiff searches.

Always true
 1. The same two files give the same delta.
 2. What is given out was applied here first, and gave the new file.
 3. bsdiff takes 17 bytes of memory for each of the old file: what is longer than `WINDOW_BYTES` is searched in windows.
"""

import bz2
import io
import zipfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from edgekit import delta
from edgekit.delta import HEADER, MAGIC, TRIPLE, number, word

WINDOW_BYTES = 64 << 20
# A member compared at its place that comes to more than this share of its length is searched as well, unless so many of
# its bytes are what they were that it cannot have moved: float weights that all changed, which no search makes smaller.
GOOD = 0.3
IN_PLACE = 0.2
# A delta that saves less than half is not worth a second download that may fail.
WORTH = 0.5


class Region(NamedTuple):
    """A part of a bundle file: a member with its header, or, with an empty name, all that follows the last."""

    name: str
    start: int
    data: memoryview


class Step(NamedTuple):
    """`differences` to the old file from `position` on, then `new` bytes."""

    position: int
    differences: bytes
    new: bytes


class Memory:
    """A file in memory, as `delta.apply` reads the old one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, at: int, length: int) -> bytes:
        return self._data[at : at + length]


def make(old: bytes, new: bytes) -> bytes | None:
    """The delta from one bundle file to another, None if it is not worth having.

    Raises: zipfile.BadZipFile for what is no bundle; AssertionError if it does not give the new file.
    """
    before = {region.name: region for region in regions(old)}
    steps: list[Step] = []
    for region in regions(new):
        steps += _steps(before.get(region.name), region)
    made = _written(steps, len(new))
    if len(made) > WORTH * len(new):
        return None
    given = b"".join(delta.apply(Memory(old), io.BytesIO(made), len(new)))
    assert given == new, "a delta that was just made gives another file"
    return made


def regions(data: bytes) -> list[Region]:
    """A bundle file's parts, which together are all of it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        starts = [(info.filename, info.header_offset) for info in archive.infolist()]
        starts += [("", archive.start_dir), ("", len(data))]
    whole = memoryview(data)
    return [Region(name, start, whole[start:end]) for (name, start), (_name, end) in pairwise(starts)]


def _steps(old: Region | None, new: Region) -> list[Step]:
    if old is None:
        return [Step(0, b"", bytes(new.data))]
    if len(old.data) != len(new.data):
        return list(_searched(old, new))
    placed = [Step(old.start, _differences(old.data, new.data), b"")]
    size = _size(placed)
    equal = placed[0].differences.count(0)
    if size <= GOOD * len(new.data) or equal >= IN_PLACE * len(new.data):
        return placed
    searched = list(_searched(old, new))
    return searched if _size(searched) < size else placed


def _searched(old: Region, new: Region) -> Iterator[Step]:
    """Of bsdiff, window by window."""
    from bsdiff4 import core

    for start in range(0, len(new.data), WINDOW_BYTES):
        window = bytes(old.data[start : start + WINDOW_BYTES])
        control, differences, added = core.diff(window, bytes(new.data[start : start + WINDOW_BYTES]))
        position, taken, inserted = old.start + start, 0, 0
        for triple in TRIPLE.iter_unpack(control):
            same, fresh, distance = (number(one) for one in triple)
            yield Step(position, differences[taken : taken + same], added[inserted : inserted + fresh])
            taken, inserted = taken + same, inserted + fresh
            position += same + distance


def _differences(old: memoryview, new: memoryview) -> bytes:
    import numpy as np

    return bytes(np.frombuffer(new, np.uint8) - np.frombuffer(old, np.uint8))


def _size(steps: Iterable[Step]) -> int:
    differences, added = bz2.BZ2Compressor(), bz2.BZ2Compressor()
    size = 0
    for step in steps:
        size += len(differences.compress(step.differences)) + len(added.compress(step.new)) + TRIPLE.size // 3
    return size + len(differences.flush()) + len(added.flush())


def _written(steps: list[Step], length: int) -> bytes:
    steps = [step for step in steps if step.differences or step.new]
    # The first step begins at the beginning of the old file, wherever its own place is: an empty one leads there.
    numbers = [(0, 0, steps[0].position if steps else 0)]
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        same = len(step.differences)
        distance = after.position - step.position - same if after is not None else 0
        numbers.append((same, len(step.new), distance))
    control = bz2.compress(b"".join(TRIPLE.pack(*(word(one) for one in three)) for three in numbers))
    differences = bz2.compress(b"".join(step.differences for step in steps))
    added = bz2.compress(b"".join(step.new for step in steps))
    return HEADER.pack(MAGIC, len(control), len(differences), length) + control + differences + added
