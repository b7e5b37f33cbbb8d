"""Which bucket a call runs in, and its inputs brought to that bucket's size.

A model takes a few sizes of one axis (`edgekit.manifest.Buckets`), each compiled for itself.

Always true
 1. A call runs in the smallest bucket that holds it; what is larger than the largest is refused, never cut.
 2. Inputs are padded with zeros at the end of the axis, after pre-processing. All that have the axis have the same size.
 3. Outputs are what the model gives for the padded inputs: nothing of them is cut off.

Pure: shapes and arrays in, sizes and arrays out.
"""

from collections.abc import Mapping

import numpy as np

from edgekit.errors import InputError
from edgekit.manifest import Buckets
from edgekit.tensors import Array

# Beside the models of several buckets: what they have in common, where their format lets it lie in another file.
SHARED_WEIGHTS = "weights.bin"


def bucket_of(buckets: Buckets, inputs: Mapping[str, Array]) -> int:
    """The size that these inputs, which have all their axes, run in. Raises: InputError."""
    have = {name: inputs[name].shape[axis] for name, axis in buckets.axes.items()}
    name, size = next(iter(have.items()))
    if len(set(have.values())) > 1:
        told = ", ".join(f"{name} {size} along axis {buckets.axes[name]}" for name, size in have.items())
        raise InputError(f"inputs that step together must be of one size; these are {told}", "wrong-shape")
    found = next((fitting for fitting in buckets.sizes if size <= fitting), None)
    if found is None or not size:
        raise InputError(
            f"input {name!r} has {size} along axis {buckets.axes[name]}; this model takes 1 to {buckets.sizes[-1]}",
            "wrong-shape",
        )
    return found


def fitted(buckets: Buckets, inputs: Mapping[str, Array], size: int) -> dict[str, Array]:
    """The inputs at exactly that size: padded with zeros at the end of the axis, or cut there."""
    return {
        name: _fitted(array, buckets.axes[name], size) if name in buckets.axes else array
        for name, array in inputs.items()
    }


def padded(buckets: Buckets, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs as their bucket takes them. Raises: InputError."""
    return fitted(buckets, inputs, bucket_of(buckets, inputs))


def _fitted(array: Array, axis: int, size: int) -> Array:
    have = array.shape[axis]
    if have == size:
        return array
    if have > size:
        return np.ascontiguousarray(array[(slice(None),) * axis + (slice(size),)])
    made = np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
    made[(slice(None),) * axis + (slice(have),)] = array
    return made
