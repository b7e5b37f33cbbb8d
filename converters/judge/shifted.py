"""A built-in corruption of evaluation inputs: dimmer (or quieter) and noisy, as a cheap sensor would give them.

Deterministic by seed; types and ranges of the inputs stay. Integers other than 8-bit pixels are identifiers, which a
gain would turn into other identifiers: they are left alone.
"""

import numpy as np

from edgekit.samples import Samples
from edgekit.tensors import Array

GAIN = 0.8
# Standard deviation of the noise as a share of the input's own.
NOISE = 0.15


def corrupted(samples: Samples, seed: int) -> Samples | None:
    """The same samples, corrupted; None where no input can be."""
    random = np.random.default_rng(seed)
    inputs = {
        name: _corrupt(array, random) if _is_signal(array) else array
        for name, array in samples.inputs.items()
    }
    if not any(_is_signal(array) for array in samples.inputs.values()):
        return None
    return Samples(inputs=inputs, labels=samples.labels, sequence=samples.sequence)


def _is_signal(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating) or array.dtype == np.uint8)


def _corrupt(array: Array, random: np.random.Generator) -> Array:
    low, high = float(array.min()), float(array.max())
    noise = random.standard_normal(array.shape) * (float(array.std()) * NOISE)
    changed = np.clip(array.astype(np.float64) * GAIN + noise, low, high)
    result: Array = (np.rint(changed) if array.dtype == np.uint8 else changed).astype(array.dtype)
    return result
