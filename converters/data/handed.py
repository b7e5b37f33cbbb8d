"""Samples that one process of a build hands to the others: a generator of the user's runs once, and memory is shared.

The files live in the build's own folder, as long as it does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.samples import Samples, is_ragged
from edgekit.tensors import Array


@dataclass(frozen=True)
class Handed:
    """The files of samples: of each input, and of what else there is."""

    inputs: dict[str, Path]
    rest: dict[str, Path]

    def taken(self) -> Samples:
        """As they were given; pages are read when they are looked at, and what is written to stays with the writer."""
        rest = _loaded(self.rest)
        sequence, slices = rest.get("sequence"), rest.get("slices")
        return Samples(
            _loaded(self.inputs),
            rest.get("labels"),
            None if sequence is None else sequence.astype(np.int64, copy=False),
            None if slices is None else slices.astype(np.str_, copy=False),
        )


def hand(samples: Samples, folder: Path) -> Handed | None:
    """Write them into an empty folder; None for what cannot be mapped: samples of several shapes, or of no values."""
    rest = {"labels": samples.labels, "sequence": samples.sequence, "slices": samples.slices}
    known = {name: array for name, array in rest.items() if array is not None}
    if any(is_ragged(array) or not array.size for array in (*samples.inputs.values(), *known.values())):
        return None
    return Handed(_saved(samples.inputs, folder, "input"), _saved(known, folder, "rest"))


def _saved(arrays: dict[str, Array], folder: Path, what: str) -> dict[str, Path]:
    # Names may be anything, also what no file can be called.
    files = {name: folder / f"{what}-{index}.npy" for index, name in enumerate(arrays)}
    for name, file in files.items():
        np.save(file, arrays[name], allow_pickle=False)
    return files


def _loaded(files: dict[str, Path]) -> dict[str, Array]:
    return {
        name: np.asarray(np.load(file, mmap_mode="c", allow_pickle=False)) for name, file in files.items()
    }
