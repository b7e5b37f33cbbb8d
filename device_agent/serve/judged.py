"""What a bundle was judged on, as far as serving needs it: which outputs are finite, and how large inputs were."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit import selftest
from edgekit.engines import LoadedBundle
from edgekit.manifest import Manifest
from edgekit.samples import flat, load_arrays
from edgekit.tensors import Array

# Inputs so many times larger than any golden one are unlike all that the model was judged on.
_FAR_BEYOND = 1000.0


@dataclass(frozen=True)
class Judged:
    """Outputs that are finite throughout the golden data, and the largest magnitude of each input there."""

    finite: frozenset[str] = frozenset()
    largest: Mapping[str, float] = field(default_factory=dict)

    def not_finite(self, outputs: Mapping[str, Array]) -> str | None:
        """An output that is not finite and ought to be."""
        return next((name for name in self.finite if not np.isfinite(outputs[name]).all()), None)

    def unlike(self, inputs: Mapping[str, Array]) -> str | None:
        """A float input with NaN, infinity, or values far beyond all golden ones."""
        return next((name for name, array in inputs.items() if self._is_wild(name, array)), None)

    def _is_wild(self, name: str, array: Array) -> bool:
        if array.dtype.kind != "f" or not array.size:
            return False
        largest = float(np.abs(array).max())
        # Written so that NaN, which compares false, is wild.
        return not largest <= _FAR_BEYOND * max(self.largest.get(name, 1.0), 1.0)


def judge(manifest: Manifest, loaded: LoadedBundle, folder: Path) -> Judged:
    """Run the first golden input, and read what the golden outputs were.

    An engine that cannot run the model fails here, before the first request. Raises: EngineError, DataError.
    """
    largest: dict[str, float] = {}

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in inputs.items():
            if array.dtype.kind == "f" and array.size:
                largest[name] = float(np.abs(array).max())
        return loaded.run(inputs)

    golden = selftest.golden_inputs(manifest, folder).take([0])
    selftest.run_samples(run, manifest.admitted, manifest.state, manifest.preprocess, golden)
    recorded = load_arrays(folder / manifest.selftest.artifact, stored_only=True)
    finite = frozenset(
        spec.name
        for spec in manifest.outputs
        if spec.name in recorded
        and (values := flat(recorded[spec.name])).dtype.kind == "f"
        and np.isfinite(values).all()
    )
    return Judged(finite, largest)
