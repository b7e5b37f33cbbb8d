"""One folder for each engine: `facts.py` (what a build goes by, light to load) and `backend.py` (what converts).

A backend takes a plan and the prepared source, and leaves an artifact on disk.

Always true
 1. An artifact's bytes depend only on source, plan, calibration data and tool versions.
 2. A backend that cannot take the model says why (`Unsupported`); the build goes on with the other candidates.
 3. This module loads no tool, so that an engine's facts are read without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from converters.recipes import facts
from edgekit.distribution import extra
from edgekit.errors import ToolFailedError

if TYPE_CHECKING:  # these load onnx
    from converters.backends.artifact import Artifact
    from converters.backends.sharing import Store
    from converters.graph.canonical import Canonical
    from converters.quantize.sensitivity import LayerError
    from converters.recipes.knobs import Knob
    from converters.recipes.recipes import Plan
    from converters.source.source import Source
    from edgekit.manifest import Option
    from edgekit.tensors import Array


class Unsupported(ToolFailedError):  # noqa: N818  # reads as what it says where it is raised
    """An engine's converter cannot take this model; the message lists what it lacks."""

    code = "unsupported"


# Takes what it is (engine first: `litert/float`), an empty folder, and what fills that.
Keep = Callable[[str, Path, Callable[[Path], dict[str, object]]], dict[str, object]]


@dataclass(frozen=True)
class Prepared:
    """What backends convert from. `onnx` is None where the source is in an engine's own format; `calibration` gives
    engine-ready inputs, states included, None without data; `shifted` those of the search half's shifted data, for
    analyses: what a quantizer clips there, calibration data may not show.

    `memo` is for what the recipes of one backend share, under keys of its own; it lives as long as the process. `keep`
    is for what they share between processes and builds: files that the source alone decides (and the engine's tools,
    and the samples that parity is checked on). It fills the given empty folder, from the cache or by what it is given,
    and gives the meta data. Without a cache it makes them.
    """

    source: Source
    onnx: Canonical | None
    calibration: Callable[[], Iterator[Mapping[str, Array]]] | None
    shifted: Callable[[], Iterator[Mapping[str, Array]]] | None = None
    tell: Callable[[str], None] = lambda _: None
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    keep: Keep = field(default=lambda _, folder, make: make(folder), compare=False, repr=False)

    @property
    def canonical(self) -> Canonical:
        """Raises: Unsupported if there is no ONNX form."""
        if self.onnx is None:
            raise Unsupported("there is no ONNX form of a source that is already converted")
        return self.onnx


class Backend(Protocol):
    """`BACKEND` of an engine's module `backend`, a subclass of this: only `convert` has to be there."""

    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        """Write the artifact's files into `folder`. Raises: Unsupported, ToolFailedError."""
        ...

    def load(self) -> None:
        """Import what `convert` imports late because it takes seconds: a worker may, while there is nothing else to do."""
        return

    def sensitivity(self, prepared: Prepared, plan: Plan, artifact: Artifact) -> list[LayerError]:  # noqa: ARG002  # for those that do more
        """What each quantized layer of an int8 artifact costs by itself, the worst first.

        Looks at a few calibration samples, and shifted ones where there are any. The names are what `Tuning.float_layers` takes.
        Raises: Unsupported where the engine's tools cannot tell layers apart, ToolFailedError.
        """
        raise Unsupported(f"the converter of {plan.recipe.engine} cannot tell layers apart")

    def loading(self, model: Path, plan: Plan) -> Mapping[str, Option]:  # noqa: ARG002  # for those that do more
        """Options that the device loads this model file with, beside the plan's. Raises: Unsupported."""
        return {}

    def layouts(self, model: Path, plan: Plan) -> tuple[Mapping[str, Option], ...]:  # noqa: ARG002  # for those that do more
        """Options by which the engine lays this model file's memory out in another way, which may be faster and changes no
        result.
        """
        return ()

    def knobs(self, plan: Plan) -> tuple[Knob, ...]:  # noqa: ARG002  # for those that do more
        """Settings that a search may turn for this int8 plan; none for one that cannot be tuned, which a search knows as a
        point to beat.
        """
        return ()

    def wide(self, plan: Plan) -> Mapping[str, Option]:  # noqa: ARG002  # for those that do more
        """Settings by which the ranges of this int8 plan hold all values that calibration shows; empty where they do, or
        cannot.
        """
        return {}

    def open_shapes(self, model: Path) -> tuple[str, ...]:  # noqa: ARG002  # for those that do more
        """Names of the tensors or operators in a model file whose shapes depend on the data, in the model's order."""
        return ()

    def move_weights(self, model: Path, store: Store) -> None:
        """Move the weights of a model file into `store`, where the format can have them in another file; otherwise
        nothing. It computes the same afterwards.
        """
        del model, store  # a format that holds its weights


def get(engine: str) -> Backend:
    """Raises: ToolFailedError if there is none, or its tools are not installed."""
    try:
        backend: Backend = import_module(f"{facts.package(engine)}.backend").BACKEND
    except ModuleNotFoundError as error:
        raise ToolFailedError(
            f"candidates for {engine} need {error.name}; {extra('build', 'litert-convert')}"
        ) from error
    return backend
