"""Built-in corruptions of evaluation inputs, as cheap or dirty sensors would give them: a table of small functions.

Deterministic by seed; types and ranges of the inputs stay. Integers other than 8-bit pixels are identifiers (tokens,
classes), which a gain would turn into other identifiers: of those some are replaced by what another sample has at the same
place. What holds two values at most is a mask or a flag and stays, and so does a single number a sample beside other
inputs, which may be a length.
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
# What identifiers meet, and the share of their entries that does.
RESAMPLE, REPLACED = "resample", 0.15
SIGNAL = "signal"
Values = NDArray[np.float64]


def named(text: str | Sequence[str]) -> tuple[str, ...] | None:
    """The corruptions that `[data] shifted` names, none for the default one; None where it is data."""
    if isinstance(text, str):
        return (text,) if text in CORRUPTIONS else None if text else ()
    return tuple(text)


def is_possible(samples: Samples) -> bool:
    """Whether any input can be corrupted."""
    return bool(_ways(samples))


def corrupted(samples: Samples, seed: int, names: Sequence[str] = (DEFAULT,)) -> Samples | None:
    """The same samples, signals each with the next of the named corruptions in turn, identifiers resampled; None where no
    input can be corrupted.
    """
    random = np.random.default_rng(seed)
    ways = _ways(samples)
    if not ways:
        return None
    inputs = dict(samples.inputs)
    for name, way in ways.items():
        array = samples.inputs[name]
        inputs[name] = _resampled(array, random) if way == RESAMPLE else _corrupt(array, random, names)
    return Samples(inputs=inputs, labels=samples.labels, sequence=samples.sequence)


def told(samples: Samples, names: Sequence[str] = (DEFAULT,)) -> str:
    """What the built-in shift does to these samples, for a reader: it says so where there is none."""
    ways = _ways(samples)
    if not ways:
        kinds = ", ".join(f"{name} ({_dtype(array)})" for name, array in samples.inputs.items())
        return f"no shift check: nothing of the inputs can be corrupted ({kinds}); give [data] shifted"
    done = [f"{name}: {'/'.join(names) if way == SIGNAL else way}" for name, way in ways.items()]
    return f"shift check: {', '.join(done)}"


def _ways(samples: Samples) -> dict[str, str]:
    """How each input that can be corrupted is."""
    signals = {name: SIGNAL for name, array in samples.inputs.items() if is_signal(array)}
    ids = {name: array for name, array in samples.inputs.items() if _is_identifiers(array)}
    many = [name for name, array in ids.items() if is_ragged(array) or array[0].size > 1]
    return signals | dict.fromkeys(many or ([] if signals else ids), RESAMPLE)


def is_signal(array: Array) -> bool:
    """Whether samples are measurements, real numbers or pixels, and no identifiers."""
    dtype = _dtype(array)
    return bool(np.issubdtype(dtype, np.floating) or dtype == np.uint8)


def _is_identifiers(array: Array) -> bool:
    dtype = _dtype(array)
    return bool(np.issubdtype(dtype, np.integer)) and dtype != np.uint8 and len(np.unique(flat(array))) > 2


def _dtype(array: Array) -> np.dtype[Any]:
    dtype: np.dtype[Any] = array[0].dtype if is_ragged(array) else array.dtype
    return dtype


def _resampled(array: Array, random: np.random.Generator) -> Array:
    """A share of the entries, each replaced by another sample's at the same place; samples of one shape lend to each
    other.
    """
    parts = [np.array(part) for part in array]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, part in enumerate(parts):
        shapes.setdefault(part.shape, []).append(index)
    for shape, own in shapes.items():
        if len(own) < 2:
            continue
        stack = np.stack([parts[index] for index in own])
        # Never from itself.
        other = (
            np.arange(len(own)).reshape(-1, *[1] * len(shape)) + random.integers(1, len(own), stack.shape)
        ) % len(own)
        lent = np.take_along_axis(stack, other, axis=0)
        made = np.where(random.random(stack.shape) < REPLACED, lent, stack)
        for index, part in zip(own, made, strict=True):
            parts[index] = part
    return stacked(parts)


def _corrupt(array: Array, random: np.random.Generator, names: Sequence[str]) -> Array:
    values = flat(array)
    low, high, spread = float(values.min()), float(values.max()), float(values.std())
    if is_ragged(array):
        parts = (
            CORRUPTIONS[names[index % len(names)]](part[None].astype(np.float64), spread, random)[0]
            for index, part in enumerate(array)
        )
        return stacked([within(part, low, high, values.dtype) for part in parts])
    changed = np.empty(array.shape)
    for turn, name in enumerate(names):
        part = array[turn :: len(names)].astype(np.float64)
        changed[turn :: len(names)] = CORRUPTIONS[name](part, spread, random)
    return within(changed, low, high, array.dtype)


def within(changed: Values, low: float, high: float, dtype: np.dtype[Any]) -> Array:
    """As inputs of that type and range."""
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
