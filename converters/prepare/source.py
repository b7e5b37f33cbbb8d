"""The source: what the user trained, opened so that the build can run it and convert it.

Always true
 1. Every input shape is closed before anything is converted; what is open is listed with the flag that closes it.
 2. `reference` runs the source itself, not something made of it: parity and accuracy are judged against that.
 3. Where an input has buckets, the source ran at each size; `reference` then pads as the device will, so that a candidate
    is judged by what it computes and not by the padding.
 4. `sha256` changes when anything that decides the source's outputs changes.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.prepare import code
from converters.prepare.project import Project
from edgekit.engines import Model
from edgekit.engines.bucketed import BucketedModel
from edgekit.errors import ProjectError, SourceError
from edgekit.manifest import Buckets, StatePair, TensorSpec
from edgekit.tensors import Array

if TYPE_CHECKING:  # it knows artifacts, whose module knows sources
    from converters.prepare.native import Native


@dataclass(frozen=True)
class Source:
    """An opened source. One of `onnx_path` (an ONNX file), `module` (a torch program) and `native` (a file in an
    engine's own format) is set.

    `inputs` are in the order in which a torch program takes them. With `buckets`, shapes are those of the largest one,
    outputs are open where they follow it, and `by_size` are the sources of fixed shapes that it stands for, smallest first.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...]
    sha256: str
    reference: Model
    onnx_path: Path | None = None
    module: Any = None
    native: "Native | None" = None
    buckets: Buckets | None = None
    by_size: tuple["Source", ...] = ()

    @property
    def admitted(self) -> tuple[TensorSpec, ...]:
        """The inputs as samples may give them: an axis with buckets is open."""
        return self.buckets.admitted(self.inputs) if self.buckets else self.inputs

    @property
    def states(self) -> frozenset[str]:
        return frozenset(pair.input for pair in self.state)


def open_source(project: Project, gate: code.CodeGate) -> Source:
    """Open the project's source.

    Raises: SourceError (no such file, no model, open shapes, `--no-code`); ProjectError (state or pre-processing of
    an input that is not there).
    """
    text = project.model.source
    if code.is_reference(text):
        from converters.prepare import torch_source

        source = torch_source.from_factory(project, gate)
    else:
        path = project.folder / text
        opener = _OPENERS.get(path.suffix.lower())
        if opener is None:
            raise SourceError(
                f"{text}: give an ONNX file (.onnx), TorchScript (.pt, .jit), a torch.export program (.pt2), file.py:factory,"
                " or what is already converted: TFLite (.tflite) or an OpenVINO IR (.xml)"
            )
        if not path.is_file():
            raise SourceError(f"{path}: there is no such model file")
        source = opener(project, path, gate)
    _check_names(project, source)
    return source if project.buckets is None else _in_buckets(project, source, project.buckets)


def _in_buckets(project: Project, source: Source, buckets: Buckets) -> Source:
    """The source at every size. Raises: SourceError where it does not run at one; ProjectError for fixed shapes."""
    if source.native is not None:
        raise ProjectError(
            f"{project.where}: inputs.{next(iter(buckets.axes))}.shape has buckets, and {source.native.what} has the one shape"
            " that it was converted with; build from the ONNX or torch model that it was made of"
        )
    by_size = []
    for size in buckets.sizes:
        inputs = buckets.at(source.inputs, size)
        outputs = observed_outputs(source.reference, inputs, f"{project.model.source}, bucket {size}")
        by_size.append(replace(source, inputs=inputs, outputs=outputs))
    return replace(
        source,
        outputs=tuple(map(_common, *(each.outputs for each in by_size))),
        reference=BucketedModel(buckets, dict.fromkeys(buckets.sizes, source.reference)),
        buckets=buckets,
        by_size=tuple(by_size),
    )


def _common(*specs: TensorSpec) -> TensorSpec:
    """One output at every size: open where its shape follows the input's. Raises: SourceError."""
    last = specs[-1]
    if len({len(spec.shape) for spec in specs}) > 1:
        raise SourceError(f"output {last.name!r} has more axes in one bucket than in another")
    dims = zip(*(spec.shape for spec in specs), strict=True)
    return TensorSpec(last.name, last.dtype, tuple(each[0] if len(set(each)) == 1 else None for each in dims))


def _open_onnx(project: Project, path: Path, gate: code.CodeGate) -> Source:  # noqa: ARG001  # an opener's signature
    from converters.prepare import onnx_source

    return onnx_source.open_file(project, path)


def _open_torchscript(project: Project, path: Path, gate: code.CodeGate) -> Source:
    from converters.prepare import torch_source

    return torch_source.from_torchscript(project, path, gate)


def _open_exported(project: Project, path: Path, gate: code.CodeGate) -> Source:
    from converters.prepare import torch_source

    return torch_source.from_exported(project, path, gate)


def _open_tflite(project: Project, path: Path, gate: code.CodeGate) -> Source:  # noqa: ARG001  # an opener's signature
    from converters.prepare import tflite_source

    return tflite_source.open_file(project, path)


def _open_ir(project: Project, path: Path, gate: code.CodeGate) -> Source:  # noqa: ARG001  # an opener's signature
    from converters.prepare import ir_source

    return ir_source.open_file(project, path)


_OPENERS: Mapping[str, Callable[[Project, Path, code.CodeGate], Source]] = {
    ".onnx": _open_onnx,
    ".pt": _open_torchscript,
    ".pth": _open_torchscript,
    ".jit": _open_torchscript,
    ".pt2": _open_exported,
    ".tflite": _open_tflite,
    ".xml": _open_ir,
}


def check_declared(project: Project, spec: TensorSpec) -> None:
    """Raises: ProjectError if the project declares another shape than the file has."""
    declared = project.file.inputs.get(spec.name)
    if declared is not None and declared.largest != spec.shape:
        raise ProjectError(
            f"{project.where}: inputs.{spec.name}.shape = {list(declared.largest)} contradicts the model,"
            f" which has {spec.describe()}"
        )


def state_pairs(project: Project) -> tuple[StatePair, ...]:
    return tuple(StatePair(input=name, output=output) for name, output in project.file.state.items())


def observed_outputs(reference: Model, inputs: Sequence[TensorSpec], what: str) -> tuple[TensorSpec, ...]:
    """Output specs as a run on zeros shows them. Raises: SourceError if the source cannot run."""
    zeros: dict[str, Array] = {spec.name: np.zeros(closed(spec), spec.dtype) for spec in inputs}
    try:
        outputs = reference.run(zeros)
    except Exception as error:
        raise SourceError(f"{what}: does not run on inputs of the declared shapes: {error}") from error
    return tuple(
        TensorSpec(name=name, dtype=str(array.dtype), shape=array.shape) for name, array in outputs.items()
    )


def closed(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a closed spec."""
    return tuple(dim for dim in spec.shape if dim is not None)


def filled(spec: TensorSpec) -> Array:
    """An input to try a model on: values in 0..1 that repeat late; of integers and booleans ones, since a mask of zeros
    has models divide nothing by nothing.
    """
    if np.dtype(spec.dtype).kind in "iub":
        return np.ones(closed(spec), spec.dtype)
    count = int(np.prod(closed(spec)))
    return (np.arange(count) * 0.37 % 1).reshape(closed(spec)).astype(spec.dtype)


def open_shapes_error(what: str, open_specs: Sequence[TensorSpec]) -> SourceError:
    """Lists what is open and how to close it."""
    listed = "; ".join(spec.describe() for spec in open_specs)
    flags = " ".join(
        f"--shape {spec.name}=" + ",".join("N" if dim is None else str(dim) for dim in spec.shape)
        for spec in open_specs
    )
    first = open_specs[0].name
    return SourceError(
        f"{what}: input shapes are open ({listed}); a bundle's shapes are fixed. Give {flags}"
        f" with a number for each N, or [inputs.{first}] shape = [...] in edgekit.toml"
    )


def hash_parts(parts: Sequence[bytes | Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _check_names(project: Project, source: Source) -> None:
    inputs = {spec.name: spec for spec in source.inputs}
    outputs = {spec.name: spec for spec in source.outputs}
    have = f"inputs are {', '.join(inputs)}; outputs are {', '.join(outputs)}"
    for pair in source.state:
        if pair.input not in inputs or pair.output not in outputs:
            raise ProjectError(f"{project.where}: state.{pair.input} = {pair.output!r}: no such pair; {have}")
        if inputs[pair.input].shape != outputs[pair.output].shape:
            raise ProjectError(
                f"{project.where}: state.{pair.input}: {inputs[pair.input].describe()} is not of the shape of"
                f" {outputs[pair.output].describe()}"
            )
    for name in (*project.file.preprocess, *project.file.inputs):
        if name not in inputs:
            raise ProjectError(f"{project.where}: input {name!r}: the model has no such input; {have}")
