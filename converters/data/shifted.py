"""Built-in corruptions of evaluation inputs, as cheap or dirty sensors would give them: a table of small functions.

Deterministic by seed; types and ranges of the inputs stay. Integers other than 8-bit pixels are identifiers, which a
gain would turn into other identifiers: they are left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.samples import Samples, flat, is_ragged, stacked
from edgekit.tensors import Array

GAIN = 0.8
# Standard deviation of the noise as a share of the input's own.
NOISE = 0.15
CONTRAST = 0.6
# A last axis of at most this many entries holds colours.
COLOURS = 4
# What inputs meet unless the project names something else: dimmer (or quieter) and noisy.
DEFAULT = "dim"
Values = NDArray[np.float64]


def named(text: str | Sequence[str]) -> tuple[str, ...] | None:
    """The corruptions that `[data] shifted` names, none for the default one; None where it is data."""
    if isinstance(text, str):
        return (text,) if text in CORRUPTIONS else None if text else ()
    return tuple(text)


def corrupted(samples: Samples, seed: int, names: Sequence[str] = (DEFAULT,)) -> Samples | None:
    """The same samples, each with the next of the named corruptions in turn; None where no input can be corrupted."""
    random = np.random.default_rng(seed)
    inputs = {
        name: _corrupt(array, random, names) if _is_signal(array) else array
        for name, array in samples.inputs.items()
    }
    if not any(_is_signal(array) for array in samples.inputs.values()):
        return None
    return Samples(inputs=inputs, labels=samples.labels, sequence=samples.sequence)


def _is_signal(array: Array) -> bool:
    dtype = array[0].dtype if is_ragged(array) else array.dtype
    return bool(np.issubdtype(dtype, np.floating) or dtype == np.uint8)


def _corrupt(array: Array, random: np.random.Generator, names: Sequence[str]) -> Array:
    values = flat(array)
    low, high, spread = float(values.min()), float(values.max()), float(values.std())
    if is_ragged(array):
        parts = (
            CORRUPTIONS[names[index % len(names)]](part[None].astype(np.float64), spread, random)[0]
            for index, part in enumerate(array)
        )
        return stacked([_within(part, low, high, values.dtype) for part in parts])
    changed = np.empty(array.shape)
    for turn, name in enumerate(names):
        part = array[turn :: len(names)].astype(np.float64)
        changed[turn :: len(names)] = CORRUPTIONS[name](part, spread, random)
    return _within(changed, low, high, array.dtype)


def _within(changed: Values, low: float, high: float, dtype: np.dtype[Any]) -> Array:
    changed = np.clip(changed, low, high)
    result: Array = (np.rint(changed) if dtype == np.uint8 else changed).astype(dtype)
    return result


def _noise(values: Values, spread: float, random: np.random.Generator) -> Values:
    return values + random.standard_normal(values.shape) * (spread * NOISE)


def _gain(values: Values, _spread: float, _random: np.random.Generator) -> Values:
    return values * GAIN


def _dim(values: Values, spread: float, random: np.random.Generator) -> Values:
    return _noise(values * GAIN, spread, random)


def _contrast(values: Values, _spread: float, _random: np.random.Generator) -> Values:
    """Everything closer to the sample's mean."""
    means: Values = values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
    return means + (values - means) * CONTRAST


def _blur(values: Values, _spread: float, _random: np.random.Generator) -> Values:
    """A mean over three neighbours along the last two axes of an image, or the last of anything else."""
    last = values.ndim - 1
    if values.ndim > 3 and values.shape[-1] <= COLOURS:
        axes: tuple[int, ...] = (last - 2, last - 1)
    elif values.ndim > 2:
        axes = (last - 1, last)
    else:
        axes = (last,)
    for axis in axes:
        count = values.shape[axis]
        before = np.take(values, np.maximum(np.arange(count) - 1, 0), axis)
        after = np.take(values, np.minimum(np.arange(count) + 1, count - 1), axis)
        values = (before + values + after) / 3
    return values


CORRUPTIONS: Mapping[str, Callable[[Values, float, np.random.Generator], Values]] = {
    DEFAULT: _dim,
    "noise": _noise,
    "gain": _gain,
    "contrast": _contrast,
    "blur": _blur,
}
