"""ONNX files as sources."""

import math
import shutil
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with onnx, without stubs

from converters.recipes import facts
from converters.source import labels, onnx_files, onnx_mending, onnx_nodes, onnx_weights, quantized
from converters.source.passing import PassingModel
from converters.source.project import Project
from converters.source.quantized import Quantized
from converters.source.source import (
    Source,
    changing,
    closed,
    hash_parts,
    observed_outputs,
    open_shapes_error,
    state_pairs,
)
from converters.source.work import Work, work
from edgekit import engines
from edgekit.bundle import sha256_file
from edgekit.engines import Model
from edgekit.errors import EngineError, ProjectError, SourceError
from edgekit.manifest import EngineSpec, Option, TensorSpec

# The reference leaves the graph as the user wrote it: only what cannot change a result is simplified.
_OF_DATA = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})
REFERENCE_OPTIONS: dict[str, Option] = {"graph_optimization_level": "basic"}
# Weights are then computed with where the file is mapped: nothing of them is copied into the process.
MAPPED: dict[str, Option] = {"session.disable_prepacking": "1"}
# What a protobuf message holds.
MOST_BYTES = 1 << 31


def read(path: Path, *, is_apart: bool = False) -> onnx.ModelProto:
    """The model, without its large weights if they are kept apart. Raises: SourceError for a file that is no ONNX model."""
    try:
        model = onnx_weights.load(path, is_apart=is_apart)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise SourceError(f"{path}: not an ONNX model, or damaged ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise SourceError(f"{path}: not an ONNX model (no operators in it)")
    return model


def read_mended(path: Path, *, is_apart: bool = False) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model of tensors that the file holds, and notes on what is not in it. Raises: SourceError."""
    return onnx_mending.mended(read(path, is_apart=is_apart), str(path))


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Declared inputs without the initializers that old models list there; open dimensions are None."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in constants)


def output_names(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(value.name for value in model.graph.output)


def open_file(project: Project, path: Path) -> Source:
    """Raises: SourceError; ProjectError if a declared shape contradicts the model's."""
    is_apart = _size(path) >= project.model.weights_apart_mb * 1_000_000
    stored = read(path, is_apart=is_apart)
    model, notes = onnx_mending.mended(stored, str(path))
    specs = tuple(_closed_by(project, spec) for spec in input_specs(model))
    open_specs = [spec for spec in specs if not spec.is_static]
    if open_specs:
        raise open_shapes_error(project.model.source, open_specs)
    try:
        reference = _loaded(
            path, None if model is stored else model, specs, output_names(model), is_apart=is_apart
        )
    except EngineError as error:
        unknown = onnx_nodes.foreign(model)
        if unknown:
            raise SourceError(
                f"{path}: {unknown}, an operator that neither ONNX nor ONNX Runtime has; export the model without it (as a"
                " plugin of another runtime, it is often an option of the exporter), and do that step behind the model"
            ) from error
        raise SourceError(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
    outputs = observed_outputs(reference, specs, project.model.source)
    _check_repeats(model, reference, specs, path)
    return Source(
        inputs=specs,
        outputs=outputs,
        state=state_pairs(project),
        sha256=_sha256(path),
        reference=reference,
        onnx_path=path,
        quantized=_quantized(model, path, specs),
        labels=labels.of_model(stored, outputs),
        notes=notes,
        may_vary=lengths_may_vary(model),
        is_apart=is_apart,
    )


def _check_repeats(
    model: onnx.ModelProto, reference: Model, specs: tuple[TensorSpec, ...], path: Path
) -> None:
    """Raises: SourceError where random numbers are drawn and reach an output; some are multiplied by an input that may be 0."""
    drawing = onnx_nodes.drawing(model)
    changed = changing(reference, specs) if drawing else []
    if changed:
        raise SourceError(
            f"{path}: {', '.join(changed)} differs when the same input comes a second time: {drawing}, which draws random"
            " numbers, and nothing can be held against such an answer. Make the noise an input, and export again"
        )


def lengths_may_vary(model: onnx.ModelProto) -> bool:
    """Whether something in it gives as many rows as its data says."""
    return any(node.op_type in _OF_DATA for node in onnx_nodes.every(model))


def _size(path: Path) -> int:
    """Bytes of all its files that are there. Raises: SourceError for a file that holds no model, before it is read."""
    own = path.stat().st_size
    if own >= MOST_BYTES:
        raise SourceError(
            f"{path}: {own / 1e9:.1f} GB in one file, and an ONNX model's own file (a protobuf message) holds less than"
            f" {MOST_BYTES / 1e9:.1f} GB: save it with its weights beside it (onnx.save(..., save_as_external_data=True))"
        )
    return sum(file.stat().st_size for file in onnx_files.of_model(path) if file.is_file())


def _quantized(model: onnx.ModelProto, path: Path, specs: tuple[TensorSpec, ...]) -> Quantized | None:
    found = quantized.kind(model)
    if found is None:
        return None
    what, is_widened = found
    size = sum(file.stat().st_size for file in onnx_files.of_model(path))
    return Quantized(what, is_widened, size, quantized_work(model, specs))


def quantized_work(model: onnx.ModelProto, specs: tuple[TensorSpec, ...]) -> Work:
    """Of a file whose inputs may be open."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    sizes = {spec.name: closed(spec) for spec in specs}
    named: dict[str, int] = {}
    for value in made.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            if dim.dim_param:
                named[dim.dim_param] = size
            dim.dim_value = size
    # onnx infers nothing behind an operator of com.microsoft; what the file says of shapes there has the inputs' names.
    for value in made.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]
    try:
        return work(made)
    except onnx.shape_inference.InferenceError:
        # A file that says of its shapes what is not so runs all the same.
        return Work(
            0, sum(math.prod(tensor.dims) for tensor in made.graph.initializer), 0, len(made.graph.node)
        )


def written_as_it_came(path: Path, target: Path, *, is_apart: bool = False) -> None:
    """The file under a fixed name: its bytes where it stands alone and nothing in it had to be mended. Weights that are
    kept apart stand beside it.
    """
    model, notes = read_mended(path, is_apart=is_apart)
    if is_apart:
        model = onnx_weights.placed(model, path, target.parent)
    if notes or is_apart or len(onnx_files.of_model(path)) > 1:
        target.write_bytes(model.SerializeToString(deterministic=True))
    else:
        shutil.copyfile(path, target)


def _loaded(
    path: Path,
    mended: onnx.ModelProto | None,
    specs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    *,
    is_apart: bool,
) -> Model:
    """The file, or what it was mended to, in ONNX Runtime. Raises: EngineError."""

    def load() -> Model:
        return load_reference(path, specs, outputs, is_apart=is_apart)

    if mended is None:
        is_mapped = is_apart and len(onnx_files.of_model(path)) > 1
        return PassingModel(load) if is_mapped else load()
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / path.name
        own = onnx_weights.placed(mended, path, beside.parent) if is_apart else mended
        beside.write_bytes(own.SerializeToString())
        return load_reference(beside, specs, outputs, is_apart=is_apart)


def load_reference(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[str, ...], *, is_apart: bool = False
) -> Model:
    """The file in ONNX Runtime, as unoptimized as is practical; weights that are kept apart stay where they are.

    Raises: EngineError.
    """
    # Workers run beside it.
    options = {**REFERENCE_OPTIONS, **facts.of("onnxruntime").beside, **(MAPPED if is_apart else {})}
    spec = EngineSpec(name="onnxruntime", versions="", model=path.name, options=options)
    named = [TensorSpec(name=name, dtype="float32", shape=()) for name in outputs]
    return engines.get("onnxruntime").load(path, spec, inputs, named, None)


def _sha256(path: Path) -> str:
    """Of the file, and of those that hold its weights."""
    files = onnx_files.of_model(path)
    return sha256_file(path) if len(files) == 1 else hash_parts(files)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    # A file may say '?', a name, -1 or nothing for an open dimension.
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
    )
    return TensorSpec(
        name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=dims
    )


def _closed_by(project: Project, spec: TensorSpec) -> TensorSpec:
    declared = project.file.inputs.get(spec.name)
    if declared is None:
        return spec
    wanted = declared.largest
    clash = len(wanted) != len(spec.shape) or any(
        have is not None and have != want for have, want in zip(spec.shape, wanted, strict=False)
    )
    fixed = [axis for axis in declared.stepped if axis < len(spec.shape) and spec.shape[axis] is not None]
    if fixed and len(wanted) == len(spec.shape):
        raise ProjectError(
            f"{project.where}: inputs.{spec.name}.shape has buckets on axis {fixed[0]}, which the model fixes at"
            f" {spec.shape[fixed[0]]}; export it with that axis dynamic"
        )
    if clash:
        raise ProjectError(
            f"{project.where}: inputs.{spec.name}.shape = {list(wanted)} contradicts the model,"
            f" which has {spec.describe()}"
        )
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=wanted)
