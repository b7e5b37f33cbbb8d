"""Inputs unlike all that a model was made for, to judge its guard on: built-in ones, made of the evaluation inputs.

Types and ranges of the inputs stay, so that nothing is told by its range alone. What is no signal (`shifted.is_signal`)
stays as it is. Deterministic by seed.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from converters.data.shifted import is_signal, within
from edgekit.samples import Samples, flat, is_ragged, stacked
from edgekit.tensors import Array

Values = NDArray[np.float64]
# A sample's values, the range of all samples, and where chance comes from.
Make = Callable[[Values, tuple[float, float], np.random.Generator], Values]


def _noise(values: Values, ends: tuple[float, float], random: np.random.Generator) -> Values:
    return random.uniform(*ends, values.shape)


def _inverted(values: Values, ends: tuple[float, float], _random: np.random.Generator) -> Values:
    return sum(ends) - values


def _shuffled(values: Values, _ends: tuple[float, float], random: np.random.Generator) -> Values:
    """The same values at other places."""
    return random.permutation(values.ravel()).reshape(values.shape)


def _blank(values: Values, _ends: tuple[float, float], _random: np.random.Generator) -> Values:
    """A covered lens, a dead line: the sample's mean everywhere."""
    return np.full(values.shape, values.mean())


BUILT_IN: Mapping[str, Make] = {
    "noise": _noise,
    "inverted": _inverted,
    "shuffled": _shuffled,
    "blank": _blank,
}


def made(samples: Samples, seed: int) -> dict[str, Samples]:
    """Each kind of unfamiliar inputs by its name, as many samples as there are."""
    random = np.random.default_rng(seed)
    return {
        name: Samples(
            {
                key: _of(array, make, random) if is_signal(array) else array
                for key, array in samples.inputs.items()
            },
            sequence=samples.sequence,
        )
        for name, make in BUILT_IN.items()
    }


def _of(array: Array, make: Make, random: np.random.Generator) -> Array:
    values = flat(array)
    ends = (float(values.min()), float(values.max()))
    parts = [make(np.asarray(part, np.float64), ends, random) for part in array]
    within_ends = [within(part, *ends, values.dtype) for part in parts]
    return stacked(within_ends) if is_ragged(array) else np.stack(within_ends)
