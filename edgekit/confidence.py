"""How sure a model is of its answer: the probability of the likeliest class, as the build and devices both count it.

Pure. The highest softmax probability is low on most of what a network gets wrong or never saw.
Source: Hendrycks, Gimpel (2017), "A Baseline for Detecting Misclassified and Out-of-Distribution Examples".
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.manifest import Histogram, Step
from edgekit.selftest import class_axis
from edgekit.tensors import Array

# Steps whose output holds classes.
_OF_CLASSES = ("softmax", "top_k")
# Positions of a map that are looked at.
_POSITIONS = 64


def is_told(postprocess: Sequence[Step], name: str) -> bool:
    """Whether post-processing takes output `name` for classes."""
    return any(step.op in _OF_CLASSES and step.args.get("output") == name for step in postprocess)


def has_classes(values: Array) -> bool:
    """Whether a sample's output (*shape) may be classes: floats, several along their axis."""
    return (
        values.dtype.kind == "f" and values.size > 0 and values.ndim > 0 and values.shape[_axis(values)] > 1
    )


def is_probability(seen: Histogram) -> bool:
    """Whether an output gave nothing outside 0 to 1 at build: then no softmax is taken of it."""
    return seen.edges[0] >= 0 and seen.edges[-1] <= 1


def top(values: Array, *, is_probability: bool) -> NDArray[np.float64]:
    """The highest probability at each position of one sample's output (*shape), of up to 64 positions; finite ones only."""
    axis = _axis(values)
    moved = np.moveaxis(values, axis, -1)
    count = math.prod(moved.shape[:-1])
    chosen = np.arange(0, count, max(1, count // _POSITIONS))
    # Only what is looked at is copied.
    picked = moved[np.unravel_index(chosen, moved.shape[:-1])] if moved.ndim > 1 else moved[None]
    rows: NDArray[np.float64] = picked.astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    best: NDArray[np.float64] = rows.max(axis=1, initial=-np.inf)
    if is_probability or not rows.size:
        return best
    over: NDArray[np.float64] = np.exp(rows - best[:, None]).sum(axis=1)
    return np.float64(1.0) / over


def _axis(values: Array) -> int:
    """Of the classes, in a sample without the axis of samples."""
    found = class_axis((1, *values.shape))
    return found if found < 0 else found - 1
