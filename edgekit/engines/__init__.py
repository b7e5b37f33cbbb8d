"""One `Engine` protocol over the on-device runtimes: the agent serves with it, the converters measure with it.

Every module here whose name does not begin with an underscore is an adapter, and other distributions may bring more
(`edgekit.plugins`). An adapter is imported only when its engine is asked for, so an agent needs one engine installed, not
three.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from edgekit import analytics, distribution
from edgekit import buckets as rules
from edgekit.engines._bucketed import BucketedModel
from edgekit.errors import EngineError, EngineMissingError, ManifestError
from edgekit.manifest import Buckets, EngineSpec, Manifest, TensorSpec
from edgekit.plugins import ADAPTERS
from edgekit.tensors import Array, check_inputs
from edgekit.transforms import check_post_steps, check_steps

# Before any adapter imports its engine.
analytics.switch_off()


class Model(Protocol):
    """A loaded model. Not safe for concurrent calls."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by public name; inputs must already fit their specs. Raises: EngineError."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """An adapter module's `ENGINE`."""

    name: str

    def version(self) -> str: ...

    def load(
        self,
        path: Path,
        spec: EngineSpec,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        cache: Path | None,
    ) -> Model:
        """Load `path`. `cache` is a folder where the engine may keep what it compiled. Raises: EngineError."""
        ...


def get(name: str) -> Engine:
    """The engine called `name`.

    Raises: ManifestError for a name that no adapter has; EngineMissingError if it is not installed here, or so badly
    that it does not import.
    """
    found = ADAPTERS.find(name)
    if found is None:
        raise ManifestError(f"unknown engine {name!r}; EdgeKit knows {', '.join(ADAPTERS.names())}")
    try:
        engine: Engine = importlib.import_module(found.module).ENGINE
        engine.version()
    except Exception as error:  # what others bring may fail in any way; it must cost no other engine
        if found.distribution:
            raise EngineMissingError(
                f"{name}, which {found.distribution} brings, does not work here: {error!r}"
            ) from error
        if not distribution.engine_is_present(name):
            raise EngineMissingError(
                f"{name} is not installed here; {distribution.engine_extras(name)}"
            ) from error
        raise EngineMissingError(f"{name} is installed here but does not import: {error!r}") from error
    return engine


def installed() -> dict[str, str]:
    """Versions of the engines that work here, by name."""
    found: dict[str, str] = {}
    for name in ADAPTERS.names():
        try:
            found[name] = get(name).version()
        except EngineError:
            continue
    return found


def accepts(versions: str, version: str) -> bool:
    """Whether `version` lies in the specifier set. Raises: ManifestError if the set cannot be read."""
    try:
        return SpecifierSet(versions).contains(Version(version), prereleases=True)
    except InvalidSpecifier as error:
        raise ManifestError(f"engine version range {versions!r} cannot be read: {error}") from error


def load(
    folder: Path,
    spec: EngineSpec,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    cache: Path | None = None,
    buckets: Buckets | None = None,
) -> Model:
    """What `spec` says, from `folder`; with buckets, the model of each size, and calls of any of them.

    Raises: as `get`; EngineError.
    """
    engine = get(spec.name)
    if buckets is None:
        return engine.load(folder / spec.model, spec, inputs, outputs, cache)
    models = dict(zip(buckets.sizes, buckets.models, strict=True))
    return BucketedModel(
        buckets,
        {
            size: engine.load(folder / model, spec, buckets.at(inputs, size), outputs, cache)
            for size, model in models.items()
        },
    )


class LoadedBundle:
    """A bundle's model on this machine: validated inputs in, outputs by public name out."""

    def __init__(self, manifest: Manifest, folder: Path, *, cache: Path | None = None) -> None:
        """Load from an extracted bundle's folder.

        Raises: EngineMissingError if the engine is absent or its version outside the range; EngineError;
        ManifestError for pre- or post-processing that this EdgeKit cannot do.
        """
        for steps in manifest.preprocess.values():
            check_steps(steps)
        check_post_steps(manifest.postprocess, manifest.outputs)
        engine = get(manifest.engine.name)
        have = engine.version()
        if not accepts(manifest.engine.versions, have):
            raise EngineMissingError(
                f"{manifest.title} needs {engine.name} {manifest.engine.versions}, but {have} is installed"
            )
        self.manifest = manifest
        self._buckets = manifest.buckets or None
        self._admitted = manifest.admitted
        self._model = load(
            folder, manifest.engine, manifest.inputs, manifest.outputs, cache=cache, buckets=self._buckets
        )

    def checked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs as the engine takes them, padded to their bucket. Raises: InputError for those that do not fit."""
        fitting = check_inputs(self._admitted, inputs)
        return fitting if self._buckets is None else rules.padded(self._buckets, fitting)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One engine call. Raises: InputError for inputs that do not fit; EngineError."""
        return self._model.run(self.checked(inputs))

    def close(self) -> None:
        self._model.close()
