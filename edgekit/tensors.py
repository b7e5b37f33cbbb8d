"""Arrays against the tensors that a manifest declares: dtype, shape, and whether one fits."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import InputError
from edgekit.manifest import TensorSpec

Array = NDArray[np.generic]

# One table for every place that names a type: numpy, and the Open Inference Protocol (v2, "Tensor Data Types").
V2_DTYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}


def fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    """Whether a concrete shape is one that `spec` admits."""
    return len(shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, shape, strict=True)
    )


def zeros_of(spec: TensorSpec) -> Array:
    """What a state starts as."""
    return np.zeros([dim or 1 for dim in spec.shape], np.dtype(spec.dtype))


_DTYPES: Mapping[str, np.dtype[np.generic]] = {name: np.dtype(name) for name in V2_DTYPES}


def _is_ready(spec: TensorSpec, array: Array | None) -> bool:
    """Whether an array is exactly what the spec says, every dimension given, and lies in C order."""
    return (
        type(array) is np.ndarray
        and array.dtype == _DTYPES.get(spec.dtype)
        and array.shape == spec.shape
        and array.flags.c_contiguous
    )


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs as C-contiguous arrays of the declared dtypes.

    A float array is converted between float widths; any other dtype difference is refused, never cast.

    Raises: InputError naming the tensor, what came and what is expected.
    """
    # What fits as it is goes through at once: of a model of microseconds, looking closer would be a fifth of its time.
    if len(inputs) == len(specs) and all(_is_ready(spec, inputs.get(spec.name)) for spec in specs):
        return dict(inputs)
    by_name = {spec.name: spec for spec in specs}
    for name in inputs:
        if name not in by_name:
            raise InputError(
                f"unknown input {name!r}; this model takes {', '.join(sorted(by_name))}", "unknown-input"
            )
    checked: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in inputs:
            raise InputError(f"input {spec.name!r} is missing; expected {spec.describe()}", "missing-input")
        array = inputs[spec.name]
        if not fits(spec, array.shape):
            have = "x".join(map(str, array.shape)) or "scalar"
            raise InputError(
                f"input {spec.name!r} has shape {have}; expected {spec.describe()}", "wrong-shape"
            )
        wanted = np.dtype(spec.dtype)
        if array.dtype != wanted:
            if not (np.issubdtype(array.dtype, np.floating) and np.issubdtype(wanted, np.floating)):
                raise InputError(
                    f"input {spec.name!r} has dtype {array.dtype}; expected {spec.describe()}", "wrong-dtype"
                )
            array = array.astype(wanted)
        checked[spec.name] = np.asarray(array, order="C")
    return checked
