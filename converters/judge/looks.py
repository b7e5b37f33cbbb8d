"""How outputs look: where their classes stand, whether scores, logits or unit vectors are in them.

Pure. Outputs are (N, *sample shape), perhaps ragged, without the batch axis of 1 that a sample may have of its own.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.samples import is_ragged
from edgekit.selftest import class_axis as map_axis
from edgekit.tensors import Array

# How far sums and norms may lie from 1: half precision.
UNIT = 2e-3
# The mean largest softmax probability of logits stands this far between flat (0) and certain (1).
PEAKED = 0.25
# Logits of one place lie closer together than this; pixels, degrees and dB do not.
LOGIT_SPAN = 100.0
# Channels whose ranges lie further apart do not compete on one scale.
RANGES = 30.0
# Neighbouring channels that are more alike than this are a signal's places, not classes, from so many channels on.
ALIKE, ALIKE_FROM = 0.8, 16
# Few channels that all move together are colours or coordinates, up to so many.
TOGETHER, TOGETHER_UP_TO = 0.8, 64

Floats = NDArray[np.float64]


def axes_of(array: Array) -> int:
    """Of a sample."""
    return int(array[0].ndim) if is_ragged(array) else array.ndim - 1


def is_map(array: Array) -> bool:
    return axes_of(array) >= 3 and bool(min(array[0].shape[-2:]) > 1)


def default_axis(array: Array) -> int:
    """Where classes or channels stand, from the end: of an image before or after its pixels, otherwise last."""
    axes, shape = axes_of(array), array[0].shape
    if axes == 4:  # a volume
        return -4 if shape[0] <= shape[-1] else -1
    return -3 if axes == 3 and map_axis((1, *shape)) == 1 else -1


# Where probabilities may stand besides, by the number of a sample's axes: (classes, steps), (classes, height, width).
_OTHER_AXES: Mapping[int, tuple[int, ...]] = {2: (-2,), 3: (-3,)}


def class_axis(array: Array, *, may_be_logits: bool = True) -> int | None:
    """The axis of class scores; None for what holds none. Without `may_be_logits` only structure counts as such."""
    if not axes_of(array):
        return None
    default = default_axis(array)
    for axis in (default, -1, *_OTHER_AXES.get(axes_of(array), ())):
        rows = places(array, axis)
        if rows is not None and (_sums_to_one(rows) or _are_logarithms(rows)):
            return axis
    if not may_be_logits:
        return None
    rows = places(array, default)
    return default if rows is not None and not is_unit(array) and _are_logits(rows) else None


def places(array: Array, axis: int) -> Floats | None:
    """(places of all samples, channels); None where there are fewer than two channels, or samples differ in them."""
    parts = (
        [np.moveaxis(part, axis, -1) for part in array]
        if is_ragged(array)
        else [np.moveaxis(array, axis, -1)]
    )
    widths = {part.shape[-1] for part in parts}
    if len(widths) > 1 or min(widths) < 2 or not any(part.size for part in parts):
        return None
    width = widths.pop()
    return np.concatenate([part.reshape(-1, width) for part in parts]).astype(np.float64)


def _sums_to_one(rows: Floats) -> bool:
    return bool(np.all(rows >= -1e-6) and np.all(np.abs(rows.sum(axis=1) - 1) < UNIT))


def _are_logarithms(rows: Floats) -> bool:
    if np.isnan(rows).any() or rows.max() > 1e-3:
        return False
    return _sums_to_one(np.exp(rows))


def _are_logits(rows: Floats) -> bool:
    """Whether (places, classes) look like logits. -inf forbids a class, which is done to nothing but logits."""
    if np.isnan(rows).any() or np.isposinf(rows).any():
        return False
    is_finite = np.isfinite(rows)
    rows = rows[is_finite.any(axis=1)]
    if len(np.unique(rows.argmax(axis=1))) < 2:
        return False
    if not is_finite.all():
        return True
    best = rows.max(axis=1, keepdims=True)
    peak = float((1 / np.exp(rows - best).sum(axis=1)).mean())
    flat = 1 / rows.shape[1]
    return (
        peak >= flat + PEAKED * (1 - flat)
        and float(np.median(best[:, 0] - rows.min(axis=1))) <= LOGIT_SPAN
        and _are_one_scale(rows)
        and not _are_measurements(rows)
    )


def _are_one_scale(rows: Floats) -> bool:
    """Whether all channels vary, with ranges of one size; a class that is always forbidden is none."""
    reach = np.abs(centred(rows)).max(axis=0)[np.isfinite(rows).any(axis=0)]
    return bool(len(reach) > 1 and reach.max() <= RANGES * reach.min())


def _are_measurements(rows: Floats) -> bool:
    """Whether neighbouring channels are alike, or all channels move together."""
    width = rows.shape[1]
    rows = centred(rows)
    if width >= ALIKE_FROM and likeness(rows) > ALIKE:
        return True
    scale = np.sqrt((rows**2).mean(axis=0))
    moving = rows[:, scale > 0] / scale[scale > 0]
    if moving.shape[1] < 2 or width > TOGETHER_UP_TO:
        return False
    count = moving.shape[1]
    # The mean correlation of all pairs, from the variance of their sum.
    mean = (float((moving.sum(axis=1) ** 2).mean()) - count) / (count * (count - 1))
    return bool(mean > TOGETHER)


def centred(rows: Floats) -> Floats:
    """Less each channel's mean; what is not finite becomes 0."""
    is_finite = np.isfinite(rows)
    means = np.where(is_finite, rows, 0).sum(axis=0) / np.maximum(is_finite.sum(axis=0), 1)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(is_finite, rows - means, 0.0)
    return found


def likeness(centred: Floats) -> float:
    """Correlation of neighbouring entries along the last axis."""
    left, right = centred[:, :-1], centred[:, 1:]
    power = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / power if power > 0 else 0.0


def is_unit(array: Array) -> bool:
    """Whether vectors along the last axis have length 1; a lone entry or probabilities have not."""
    rows = places(array, -1) if axes_of(array) else None
    if rows is None or rows.shape[1] < 4 or not np.isfinite(rows).all():
        return False
    return bool(np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) < UNIT))
