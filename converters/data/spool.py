"""Calibration samples of a user's generator, kept in the build's folder as they are first read through.

Each static recipe reads them again, in several processes; what a generator does for a sample (decoding, a model of its
own) is done once.

Always true
 1. Later passes give what the first gave, in its order, but for labels and groups, which no calibration looks at.
 2. A pass that ends early keeps nothing; nor does one whose samples take more than `MOST_BYTES`, or find no room.
 3. One sample, or one sequence, is in memory at a time.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from converters.data import reading
from edgekit.samples import Samples, is_ragged
from edgekit.tensors import Array

# On the disk that holds the build's folder, for as long as the build runs.
MOST_BYTES = 1 << 29


@dataclass(frozen=True)
class Spool:
    """`path` is of the file, which is there as soon as one pass has ended; `open` finds the generator."""

    path: Path
    what: str
    open: Callable[[], reading.Source]

    def source(self) -> reading.Source:
        """Raises, when it is read: as `open`, and DataError of what the generator does."""
        return reading.Source(self.what, self._chunks)

    def _chunks(self) -> Iterator[Samples]:
        if self.path.exists():
            yield from _kept(self.path)
            return
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=self.path.name) as part:
            is_kept = True
            for chunk in self.open().chunks():
                is_kept = is_kept and _keeps(chunk, part.file)
                yield chunk
            # A pass beside this one may have been first.
            with suppress(OSError):
                if is_kept:
                    part.flush()
                    os.link(part.name, self.path)


def _keeps(chunk: Samples, sink: IO[bytes]) -> bool:
    """Write samples behind those before them, if they can be written."""
    sequence = np.zeros(0) if chunk.sequence is None else chunk.sequence
    arrays: list[Array] = [np.array(list(chunk.inputs), np.str_), sequence, *chunk.inputs.values()]
    if any(is_ragged(array) for array in arrays):
        return False
    try:
        for array in arrays:
            np.save(sink, array, allow_pickle=False)
    except OSError:
        return False
    return sink.tell() <= MOST_BYTES


def _kept(path: Path) -> Iterator[Samples]:
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            names, sequence = np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)
            inputs = {str(name): np.load(file, allow_pickle=False) for name in names}
            yield Samples(inputs, sequence=sequence.astype(np.int64) if sequence.size else None)
