"""The source: what the user trained, opened so that the build can run it and convert it.

Always true
 1. Every input shape is closed before anything is converted; what is open is listed with the flag that closes it.
 2. `reference` runs the source itself, not something made of it: parity and accuracy are judged against that.
 3. Where an input has buckets, the source ran at each size; `reference` then pads as the device will, so that a candidate
    is judged by what it computes and not by the padding.
 4. `sha256` changes when anything that decides the source's outputs changes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.source import code
from converters.source.native import Native
from converters.source.project import Project
from converters.source.quantized import Quantized
from edgekit.engines import Model
from edgekit.errors import EdgeKitError, ProjectError, SourceError
from edgekit.manifest import Buckets, StatePair, TensorSpec
from edgekit.rowset import RowSet
from edgekit.tensors import Array

# Of a file of weights that is hashed.
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """An opened source. One of `onnx_path` (an ONNX file), `module` (a torch program) and `native` (a file in an
    engine's own format) is set.

    `inputs` are in the order in which a torch program takes them. With `buckets`, shapes are those of the largest one,
    outputs are open where they follow it, and `by_size` are the sources of fixed shapes that it stands for, smallest first.
    `quantized` says of an ONNX file what it is where it is quantized already. `labels` are names of
    classes, or the alphabet, that the file carries. `sets` are outputs whose length follows from the data: `reference` pads
    them, and their shapes are the bound's; `may_vary` says that there may be such, before any data was seen. `notes` tell what of the user's file is not in it.
    `is_apart` says that an ONNX file is so large that its weights stay in files (`onnx_weights`).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...]
    sha256: str
    reference: Model
    onnx_path: Path | None = None
    module: Any = None
    native: Native | None = None
    quantized: Quantized | None = None
    labels: tuple[str, ...] = ()
    buckets: Buckets | None = None
    by_size: tuple["Source", ...] = ()
    notes: tuple[str, ...] = ()
    sets: tuple[RowSet, ...] = ()
    may_vary: bool = False
    is_apart: bool = False

    @property
    def admitted(self) -> tuple[TensorSpec, ...]:
        """The inputs as samples may give them: an axis with buckets is open."""
        return self.buckets.admitted(self.inputs) if self.buckets else self.inputs

    @property
    def states(self) -> frozenset[str]:
        return frozenset(pair.input for pair in self.state)


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
    except EdgeKitError as error:
        raise SourceError(f"{what}: does not run on inputs of the declared shapes: {error}") from error
    except Exception as error:
        raise SourceError(
            f"{what}: does not run on inputs of the declared shapes: {code.told(error)}"
        ) from error
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


def changing(reference: Model, specs: Sequence[TensorSpec]) -> list[str]:
    """The outputs that are others when the same input comes a second time; none of a model that refuses to be tried so."""
    feed = {spec.name: filled(spec) for spec in specs}
    try:
        first = {name: array.copy() for name, array in reference.run(feed).items()}
        second = reference.run(feed)
    except Exception:  # noqa: BLE001  # a program that refuses these values says nothing of itself
        return []
    return [name for name in first if not np.array_equal(first[name], second[name], equal_nan=True)]


def refuse_nan(outputs: Mapping[str, Array], where: str) -> None:
    """Raises: SourceError for a source's answer to a sample as it came that is NaN: nothing agrees with that."""
    for name, array in outputs.items():
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise SourceError(
                f"output {name!r} of the source is NaN on {where}; look at that sample, or at what the model makes of it"
            )


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
        size = part.stat().st_size if isinstance(part, Path) else len(part)
        digest.update(size.to_bytes(8, "big"))
        if isinstance(part, bytes):
            digest.update(part)
            continue
        with part.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()
