"""Rows of an output that have values of their own magnitude, so that none drowns in another's.

Pure. A detector's boxes in pixels stand beside scores below one: noise that ends every score is nothing to the whole.
Rows are those along the shortest axis that has more than one; they fall into two groups at the largest gap between
their peaks, if that is wide.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgekit import noise
from edgekit.manifest import Floor, TensorSpec
from edgekit.tensors import Array

# Ratio of peaks from which on two rows are of different magnitude.
GAP = 8.0
# Share of the largest peak below which a row is as good as zero, and follows the rows above it.
ZERO = 1e-5


def floors(spec: TensorSpec, kept: int, source: Array) -> tuple[Floor, ...]:
    """One of the whole output, or two of its rows, for the record (N, *entries) of the float source; no level set yet."""
    whole = (Floor(0.0),)
    wide = [(dim, axis) for axis, dim in enumerate(spec.shape) if dim != 1]
    if len(wide) < 2 or any(dim is None for dim in spec.shape):
        return whole
    axis = min((dim or 0, axis) for dim, axis in wide)[1]
    rows = noise.along(spec, axis, kept)
    if rows is None:
        return whole
    known, peaks = _peaks(rows, source)
    order = np.argsort(-peaks, kind="stable")
    sorted_peaks = [peak for peak in peaks[order].tolist() if peak > ZERO * peaks.max(initial=0.0)]
    gaps = [before / after for before, after in pairwise(sorted_peaks)]
    if not gaps or max(gaps) < GAP:
        return whole
    split = gaps.index(max(gaps)) + 1
    return tuple(Floor(0.0, axis, _runs(np.sort(known[part]))) for part in (order[:split], order[split:]))


def _peaks(rows: NDArray[np.int64], source: Array) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows that have recorded entries, and the largest finite magnitude of each."""
    entries = np.abs(source.reshape(len(source), -1).astype(np.float64))
    largest = np.where(np.isfinite(entries), entries, 0).max(axis=0)
    known, at = np.unique(rows, return_inverse=True)
    peaks = np.zeros(len(known))
    np.maximum.at(peaks, at, largest)
    return known, peaks


def _runs(rows: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    ends = np.flatnonzero(np.diff(rows) > 1)
    starts = [0, *(ends + 1).tolist()]
    stops = [*ends.tolist(), len(rows) - 1]
    return tuple((int(rows[start]), int(rows[stop]) + 1) for start, stop in zip(starts, stops, strict=True))
