"""The groups that evaluation samples belong to, where the project names them beside the data."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.source import code
from edgekit.errors import DataError
from edgekit.samples import SLICES, Samples, load_arrays, slice_names


def read(text: str, folder: Path, gate: code.CodeGate, samples: Samples, skipped: int) -> NDArray[np.str_]:
    """Each sample's group. `skipped`: samples of a file's start that are not for evaluation.

    Raises: DataError for what names no groups; SourceError with `--no-code`.
    """
    if not code.is_reference(text):
        arrays = load_arrays(folder / text)
        if SLICES not in arrays:
            raise DataError(f"{folder / text}: has no array {SLICES!r}, one name a sample")
        return slice_names(text, arrays[SLICES])[skipped:]
    function = code.load(text, folder, "slices", gate)
    try:
        found = np.asarray(function(samples.inputs, samples.labels))
    except Exception as error:
        raise DataError(f"{text}: the function of slices failed: {code.told(error)}") from error
    return slice_names(text, found)
