"""One converter for each engine: a plan and the prepared source in, an artifact on disk out.

Always true
 1. An artifact's bytes depend only on source, plan, calibration data and tool versions.
 2. A backend that cannot take the model says why (`Unsupported`); the build goes on with the other candidates.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from converters.artifact import Artifact
from converters.prepare.canonical import Canonical
from converters.prepare.source import Source
from converters.quantize.knobs import Knob
from converters.quantize.recipes import Plan
from converters.quantize.sensitivity import LayerError
from edgekit.distribution import extra
from edgekit.errors import ToolFailedError
from edgekit.tensors import Array


class Unsupported(ToolFailedError):  # noqa: N818  # reads as what it says where it is raised
    """An engine's converter cannot take this model; the message lists what it lacks."""

    code = "unsupported"


@dataclass(frozen=True)
class Prepared:
    """What backends convert from. `onnx` is None where the source is in an engine's own format; `calibration` gives
    engine-ready inputs, states included, None without data; `shifted` those of the search half's shifted data, for
    analyses: what a quantizer clips there, calibration data may not show.

    `memo` is for what the recipes of one backend share, under keys of its own; it lives as long as the build.
    """

    source: Source
    onnx: Canonical | None
    calibration: Callable[[], Iterator[Mapping[str, Array]]] | None
    shifted: Callable[[], Iterator[Mapping[str, Array]]] | None = None
    tell: Callable[[str], None] = lambda _: None
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def canonical(self) -> Canonical:
        """Raises: Unsupported if there is no ONNX form."""
        if self.onnx is None:
            raise Unsupported("there is no ONNX form of a source that is already converted")
        return self.onnx


class Backend(Protocol):
    """A module of this package."""

    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        """Write the artifact's files into `folder`. Raises: Unsupported, ToolFailedError."""
        ...

    def sensitivity(self, prepared: Prepared, plan: Plan, artifact: Artifact) -> list[LayerError]:
        """What each quantized layer of an int8 artifact costs by itself, the worst first.

        Looks at a few calibration samples, and shifted ones where there are any. The names are what `Tuning.float_layers` takes.
        Raises: Unsupported where the engine's tools cannot tell layers apart, ToolFailedError.
        """
        ...

    def knobs(self, plan: Plan) -> tuple[Knob, ...]:
        """Settings that a search may turn for this int8 plan; none for one that cannot be tuned, which a search knows as a
        point to beat.
        """
        ...

    def tools(self) -> dict[str, str]:
        """Versions of what decides the bytes."""
        ...


_MODULES: Mapping[str, str] = {
    "onnxruntime": "converters.backends.onnxruntime",
    "openvino": "converters.backends.openvino",
    "litert": "converters.backends.litert",
}


def get(engine: str) -> Backend:
    """Raises: ToolFailedError if its tools are not installed."""
    try:
        backend: Backend = import_module(_MODULES[engine]).BACKEND
    except ModuleNotFoundError as error:
        raise ToolFailedError(
            f"candidates for {engine} need {error.name}; {extra('build', 'litert-convert')}"
        ) from error
    return backend
