"""`edgekit.load`: a bundle's model in this process, for scripts, tests and notebooks. Needs numpy and the bundle's engine.

Always true
 1. What comes in passes the checks and the steps that the agent would run; what does not fit is refused, never cast.
 2. Any number of threads may call it: engines are not safe for that, so calls wait for each other.
 3. After `close` nothing of the bundle is left on disk.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekit import local, selftest
from edgekit.errors import InputError, UsageError
from edgekit.inputs import read_input
from edgekit.manifest import Manifest, TensorSpec
from edgekit.rowset import described
from edgekit.samples import Samples
from edgekit.tensors import Array
from edgekit.transforms import JSON, postprocess

# One sample: arrays by input name, the array of the only input, or the path of a file that `edgekit run` takes.
Sample = Mapping[str, Any] | Any


class LoadedModel:
    """A bundle's model, loaded. `with edgekit.load(path) as model:` or `model.close()` gives it back."""

    def __init__(self, path: Path) -> None:
        self._held = ExitStack()
        self._here = self._held.enter_context(local.opened(path))
        self._lock = threading.Lock()
        self._is_open = True

    @property
    def manifest(self) -> Manifest:
        """All that the bundle says of itself: engine, recipe, contract, pre- and post-processing."""
        return self._here.manifest

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes after pre-processing, states left out; an open axis has buckets."""
        fed = {pair.input for pair in self.manifest.state}
        return tuple(spec for spec in self.manifest.admitted if spec.name not in fed)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives before post-processing, states left out; an open axis has as many rows as there are findings."""
        return tuple(spec for spec in self.manifest.given if spec.name not in self._internal)

    def predict(self, sample: Sample) -> dict[str, Any]:
        """The answer to one sample, by output name: what the bundle's post-processing words (`[{"index", "score",
        "label"}]` of a ranking), or where it has none the output's array, of the shape and type that `outputs` says.

        sample: raw, as the device gets it; each input of its declared shape (a leading 1 may be left out) and type, or what
        its pre-processing takes. Of a stateful model it is the first of a sequence (`predict_sequence` has the rest).

        Raises: InputError, DataError for what does not fit; EngineError; UsageError after `close`.
        """
        return self._worded(self.predict_raw(sample, with_states=True))

    def predict_raw(self, sample: Sample, *, with_states: bool = False) -> dict[str, Array]:
        """The model's outputs as arrays, post-processing left out. Raises: as `predict`."""
        return next(self._ran(iter([sample]), with_states=with_states))

    def predict_sequence(self, samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
        """The answer to each sample in turn; a stateful model's states go from one to the next, from zero at the first.

        Raises: as `predict`, at the sample that does not fit; UsageError for what is no row of samples.
        """
        if not isinstance(samples, Iterable) or isinstance(samples, str | bytes | Mapping):
            raise UsageError(
                f"a {type(samples).__name__} is no row of samples; give an iterable of samples, one after the other"
            )
        return map(self._worded, self._ran(iter(samples), with_states=True))

    def close(self) -> None:
        """Give back the engine and what was unpacked; again does nothing."""
        with self._lock:
            self._is_open = False
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = ", ".join(spec.describe() for spec in self.inputs)
        gives = ", ".join(
            f"{name}: {told}" for name, told in described(self.manifest).items() if name not in self._internal
        )
        return f"<edgekit bundle {self.manifest.title} ({self.manifest.recipe}): {takes} -> {gives}>"

    @property
    def _internal(self) -> set[str]:
        return {pair.output for pair in self.manifest.state}

    def _ran(self, samples: Iterator[Sample], *, with_states: bool) -> Iterator[dict[str, Array]]:
        """Outputs of the samples of one sequence."""
        states: dict[str, Array] = {}
        for sample in samples:
            raw = {**self._arrays(sample), **states}
            with self._lock:
                if not self._is_open:
                    raise UsageError(f"{self.manifest.title} was closed; edgekit.load it again")
                outputs, _ = next(
                    selftest.iter_samples(
                        self._here.loaded.run,
                        self.manifest.admitted,
                        self.manifest.state,
                        {
                            name: steps
                            for name, steps in self.manifest.preprocess.items()
                            if name not in states
                        },
                        Samples({name: array[None] for name, array in raw.items()}),
                    )
                )
            states = {pair.input: outputs[pair.output] for pair in self.manifest.state}
            yield {
                name: array for name, array in outputs.items() if with_states or name not in self._internal
            }

    def _worded(self, outputs: Mapping[str, Array]) -> dict[str, Any]:
        steps = self.manifest.postprocess
        if steps:
            worded: dict[str, JSON] = postprocess(steps, outputs)
            return dict(worded)
        return {name: array for name, array in outputs.items() if name not in self._internal}

    def _arrays(self, sample: Sample) -> dict[str, Array]:
        if isinstance(sample, str | PathLike):
            found = read_input(Path(sample), self.manifest)
            if len(found) != 1:
                raise InputError(f"{sample}: {len(found)} samples at once; give them one by one")
            return found.sample(0)
        if isinstance(sample, Mapping):
            return {str(name): _array(value) for name, value in sample.items()}
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"a bare array, and the model takes {names}; give {{name: array}}")
        return {self.inputs[0].name: _array(sample)}


def load(bundle: str | PathLike[str]) -> LoadedModel:
    """A bundle's model, ready to run on this machine.

    bundle: the path of a `.edgekit` file, or one of `edgekit.build(...).bundles`.

    Raises: UsageError, BundleError, ManifestError for what is no bundle; EngineMissingError where its engine is not installed here, or
    in another version; EngineError.
    """
    if not isinstance(bundle, str | PathLike):
        raise UsageError(f"a {type(bundle).__name__} is no bundle; give the path of a .edgekit file")
    return LoadedModel(Path(bundle))


def _array(value: Any) -> Array:
    """numpy's, of a tensor on any device too. Raises: InputError for what is not made of numbers."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "biuf":
        raise InputError(f"a {type(value).__name__} is not made of numbers")
    return array
