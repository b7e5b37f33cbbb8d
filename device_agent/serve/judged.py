"""What a bundle was judged on, as far as serving needs it: which outputs are finite, and how large inputs were."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit import selftest
from edgekit.engines import LoadedBundle
from edgekit.manifest import Manifest
from edgekit.samples import Samples, flat, load_arrays
from edgekit.tensors import Array
from edgekit.transforms import prepare

# Inputs so many times larger than any golden one are unlike all that the model was judged on.
_FAR_BEYOND = 1000.0
# Golden inputs whose range is taken, at each start of a worker.
_LOOKED_AT = 8


@dataclass(frozen=True)
class Judged:
    """Outputs that are finite throughout the golden data, and the smallest and largest value of each input there."""

    finite: frozenset[str] = frozenset()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def not_finite(self, outputs: Mapping[str, Array]) -> str | None:
        """An output that is not finite and ought to be."""
        return next((name for name in self.finite if not np.isfinite(outputs[name]).all()), None)

    def unlike(self, inputs: Mapping[str, Array]) -> str | None:
        """An input unlike all golden ones: floats with NaN, infinity or magnitudes far beyond, integers outside the range.

        Asked only after a call went wrong: to tell whose fault it was, not what may be sent.
        """
        return next((name for name, array in inputs.items() if self._is_wild(name, array)), None)

    def _is_wild(self, name: str, array: Array) -> bool:
        if not array.size or name not in self.ranges:
            return False
        low, high = self.ranges[name]
        if array.dtype.kind in "iu":
            return bool(array.min() < low or array.max() > high)
        if array.dtype.kind != "f":
            return False
        # Written so that NaN, which compares false, is wild.
        return not float(np.abs(array).max()) <= _FAR_BEYOND * max(-low, high, 1.0)


def judge(manifest: Manifest, loaded: LoadedBundle, folder: Path) -> Judged:
    """Run the first golden input, and read what the golden data holds.

    An engine that cannot run the model fails here, before the first request. Raises: EngineError, DataError.
    """
    golden = selftest.golden_inputs(manifest, folder)
    selftest.run_samples(loaded.run, manifest.admitted, manifest.state, manifest.preprocess, golden.take([0]))
    recorded = load_arrays(folder / manifest.selftest.artifact, stored_only=True)
    finite = frozenset(
        spec.name
        for spec in manifest.outputs
        if spec.name in recorded
        and (values := flat(recorded[spec.name])).dtype.kind == "f"
        and np.isfinite(values).all()
    )
    return Judged(finite, _ranges(manifest, golden))


def _ranges(manifest: Manifest, golden: Samples) -> dict[str, tuple[float, float]]:
    """Of the inputs as the model takes them."""
    ranges: dict[str, tuple[float, float]] = {}
    for index in range(min(len(golden), _LOOKED_AT)):
        ready = prepare(manifest.admitted, manifest.preprocess, golden.sample(index))
        for name, array in ready.items():
            if array.size and array.dtype.kind in "iuf":
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return ranges
