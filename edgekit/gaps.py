"""Two arrays of numbers apart: what a parity gate, a tolerance and a self-test all mean by a difference.

Always true
 1. Infinities of one sign at the same place agree: a mask writes them by design. Anywhere else an infinity is infinitely
    far off.
 2. NaN agrees with nothing, not with itself either.
 3. A magnitude is that of the finite entries.
"""

import numpy as np
from numpy.typing import NDArray

from edgekit.samples import is_ragged
from edgekit.tensors import Array

INFINITE = float("inf")


def largest_gap(ours: Array, theirs: Array) -> float:
    """Largest |ours - theirs|; 0 for empty arrays, infinite where they differ in shape or in what is not finite."""
    if is_ragged(ours) or is_ragged(theirs):
        if not (is_ragged(ours) and is_ragged(theirs)) or len(ours) != len(theirs):
            return INFINITE
        pairs = zip(ours, theirs, strict=True)
        return max((largest_gap(np.asarray(one), np.asarray(other)) for one, other in pairs), default=0.0)
    if ours.shape != theirs.shape:
        return INFINITE
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    # NaN is not equal to itself.
    if not np.array_equal(left[~finite], right[~finite]):
        return INFINITE
    return float(np.abs(left[finite] - right[finite]).max(initial=0.0))


def largest(array: Array) -> float:
    """Largest magnitude of the finite entries; 0 where there are none."""
    if is_ragged(array):
        return max((largest(np.asarray(part)) for part in array), default=0.0)
    values = array.astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def agreed(ours: Array, theirs: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in float64 with zeros where an infinity of one is that of the other; what is left of infinities differs."""
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    same = np.isinf(left) & (left == right)
    return np.where(same, 0.0, left), np.where(same, 0.0, right)
