"""How far an input is from what a model was made with: the Mahalanobis distance of a few simple features.

Features of an input are its averages over a grid, and its mean, spread, ends and roughness; their mean and covariance come
from calibration data (`converters.work.guarding`). What is further away than the manifest's threshold is unfamiliar.

Always true
 1. The same bytes give the same distance on every machine, but for the last bits of a sum.
 2. What lies in a bundle is checked before it is used: arrays, shapes, sizes, finite values.
 3. An input whose distance is no number is unfamiliar.

Needs numpy alone.
Source: Mahalanobis (1936), "On the generalised distance in statistics", Proc. Natl. Inst. Sci. India 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BundleError, DataError
from edgekit.guard_section import Guard
from edgekit.manifest import Manifest, Step, TensorSpec
from edgekit.samples import Samples, load_arrays
from edgekit.tensors import Array
from edgekit.transforms import prepare

MAX_FEATURES = 320
# A channel axis of at most this many entries holds colours, each with a mean of its own.
COLOURS = 4
# What distances may differ by between machines, as a share.
ROUNDING = 0.01
Values = NDArray[np.float64]

MEAN, WHITENING, GOLDEN, TURNED = "mean", "whitening", "golden", "turned"


def features(array: Array, spec: TensorSpec, grid: int) -> Values:
    """(F,) of one input as the model takes it; F depends on `spec` and `grid` alone. NaN where the input is empty."""
    values = np.asarray(array, np.float32)
    if not values.size:
        whole = np.zeros([dim or 1 for dim in spec.shape], np.float32)
        return np.full(len(features(whole, spec, grid)), np.nan)
    colours, plane = _plane(values)
    cells = plane
    rough = []
    for axis, dim in enumerate(_spatial(spec.shape)):
        most = grid if plane.ndim > 1 else grid * grid
        cells = _averaged(cells, axis, min(most, dim or most))
        rough.append(np.abs(np.diff(plane, axis=axis)).mean() if plane.shape[axis] > 1 else 0.0)
    ends = (values.mean(), values.std(), values.min(), values.max())
    return np.concatenate([np.ravel(cells), colours, rough, ends]).astype(np.float64)


def _plane(values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means of the colours, where the input has such, and the input averaged over all but its spatial axes."""
    shape = values.shape
    axes = _spatial_axes(shape)
    others = tuple(axis for axis in range(len(shape)) if axis not in axes)
    plane = values.mean(axis=others) if others else values
    channels = [axis for axis in others if 1 < shape[axis] <= COLOURS]
    if len(axes) < 2 or not channels:
        return np.empty(0, np.float32), plane
    return values.mean(axis=tuple(axis for axis in range(len(shape)) if axis != channels[-1])), plane


def _spatial_axes(shape: Sequence[int | None]) -> tuple[int, ...]:
    """The last two axes, or those before the channels where these come last; of a row, its one axis."""
    first = next((axis for axis, dim in enumerate(shape) if dim != 1), max(0, len(shape) - 1))
    rest = tuple(range(first, len(shape)))
    if not rest:
        return ()
    if len(rest) == 1:
        return rest
    last = shape[-1]
    is_last = len(rest) > 2 and last is not None and last <= COLOURS
    return rest[-3:-1] if is_last else rest[-2:]


def _spatial(shape: Sequence[int | None]) -> tuple[int | None, ...]:
    return tuple(shape[axis] for axis in _spatial_axes(shape))


def _averaged(plane: NDArray[Any], axis: int, cells: int) -> NDArray[Any]:
    """Means over `cells` runs along an axis, about equally long; of a shorter axis entries stand twice."""
    starts = np.linspace(0, plane.shape[axis], cells, endpoint=False).astype(np.int64)
    lengths = np.maximum(1, np.diff(np.append(starts, plane.shape[axis])))
    sums = np.add.reduceat(plane, starts, axis=axis)
    return sums / lengths.reshape([-1 if at == axis else 1 for at in range(plane.ndim)])


@dataclass(frozen=True)
class Familiar:
    """What the model was made with: features' mean (F,), and the lower triangle (F, F) that makes their covariance one."""

    specs: tuple[TensorSpec, ...]
    grid: int
    mean: Values
    whitening: NDArray[np.float32]

    def distance(self, inputs: Mapping[str, Array]) -> float:
        """Of inputs as the model takes them; in standard deviations, √F for an ordinary one."""
        return self.distance_of(self.features(inputs))

    def features(self, inputs: Mapping[str, Array]) -> Values:
        return np.concatenate([features(inputs[spec.name], spec, self.grid) for spec in self.specs])

    def distance_of(self, found: Values) -> float:
        return float(np.linalg.norm(self.whitening @ (found - self.mean)))


def turned(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Each input turned round inside its own range, light for dark: unlike all that most models know."""
    return {
        name: (array.min() + (array.max() - array)).astype(array.dtype) if array.size else array
        for name, array in inputs.items()
    }


@dataclass(frozen=True)
class Watch:
    """A bundle's guard on a device. `golden` and `turned` are the distances that the build recorded, (N,) each."""

    guard: Guard
    familiar: Familiar
    golden: NDArray[np.float32]
    turned: NDArray[np.float32]

    def excess(self, inputs: Mapping[str, Array]) -> float:
        """The distance in thresholds: above 1 is unfamiliar. Never NaN."""
        found = self.familiar.distance(inputs) / self.guard.threshold
        return found if np.isfinite(found) else float("inf")


def load(manifest: Manifest, folder: Path) -> Watch | None:
    """The guard of an extracted bundle; None if it has none. Raises: BundleError for statistics that are none."""
    guard = manifest.guard or None
    if guard is None:
        return None
    try:
        arrays = load_arrays(folder / guard.statistics, stored_only=True)
    except DataError as error:
        raise BundleError(f"{manifest.title}: {guard.statistics}: {error}") from error
    specs = {spec.name: spec for spec in manifest.admitted}
    guarded = tuple(specs[name] for name in guard.inputs)
    if told := _trouble(arrays, manifest.selftest.samples):
        raise BundleError(f"{manifest.title}: {guard.statistics}: {told}")
    size = len(arrays[MEAN])
    whitening = np.zeros((size, size), np.float32)
    whitening[np.tril_indices(size)] = arrays[WHITENING]
    familiar = Familiar(guarded, guard.grid, arrays[MEAN].astype(np.float64), whitening)
    return Watch(guard, familiar, arrays[GOLDEN].astype(np.float32), arrays[TURNED].astype(np.float32))


def _trouble(arrays: Mapping[str, Array], samples: int) -> str:
    """What is wrong with a guard's statistics; empty if nothing."""
    names = (MEAN, WHITENING, GOLDEN, TURNED)
    if set(arrays) != set(names):
        return f"holds {', '.join(sorted(arrays))}; a guard's statistics are {', '.join(names)}"
    if any(array.dtype != np.float32 or array.ndim != 1 for array in arrays.values()):
        return "its arrays are not rows of float32"
    size = len(arrays[MEAN])
    if not 0 < size <= MAX_FEATURES or len(arrays[WHITENING]) != size * (size + 1) // 2:
        return f"{size} features and {len(arrays[WHITENING])} entries of a triangle do not fit together"
    if len(arrays[GOLDEN]) != samples or len(arrays[TURNED]) != samples:
        return f"its distances are not of the {samples} golden inputs"
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "a value of it is not finite"
    return ""


def dump(familiar: Familiar, golden: Sequence[float], other: Sequence[float]) -> dict[str, Array]:
    """A guard's statistics as they are stored; `golden` and `other` are what `distances` gave."""
    return {
        MEAN: familiar.mean.astype(np.float32),
        WHITENING: familiar.whitening[np.tril_indices(len(familiar.mean))].astype(np.float32),
        GOLDEN: np.asarray(golden, np.float32),
        TURNED: np.asarray(other, np.float32),
    }


def distances(
    familiar: Familiar,
    inputs: Sequence[TensorSpec],
    steps: Mapping[str, Sequence[Step]],
    samples: Samples,
) -> tuple[list[float], list[float]]:
    """Of raw samples, as they are and turned round. Raises: InputError for a sample that pre-processing refuses."""
    ready = [prepare(inputs, steps, samples.sample(index)) for index in range(len(samples))]
    return [familiar.distance(each) for each in ready], [familiar.distance(turned(each)) for each in ready]


def complaint(watch: Watch, manifest: Manifest, samples: Samples) -> str:
    """Why the guard does not do here what it did at build, on the self-test's inputs; empty if it does."""
    found = distances(watch.familiar, manifest.admitted, manifest.preprocess, samples)
    recorded = (watch.golden, watch.turned)
    counts = (watch.guard.golden_caught, watch.guard.turned_caught)
    for what, here, there, caught in zip(("", " turned round"), found, recorded, counts, strict=True):
        ours = np.asarray(here)
        if not np.allclose(ours, there, rtol=ROUNDING, atol=1e-6):
            worst = int(np.argmax(np.abs(ours - there)))
            return f"the guard finds golden input {worst}{what} {ours[worst]:.4g} away, at build it was {there[worst]:.4g}"
        limit = watch.guard.threshold
        least, most = (int((ours > limit * share).sum()) for share in (1 + ROUNDING, 1 - ROUNDING))
        if not least <= caught <= most:
            return f"the guard catches {most} of the golden inputs{what}, at build it caught {caught}"
    return ""
