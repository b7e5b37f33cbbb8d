"""OpenVINO IR (`.xml` with its `.bin`) as sources: taken as they are, for OpenVINO."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converters.recipes import facts
from converters.source.native import Native
from converters.source.project import Project
from converters.source.source import Source, check_declared, hash_parts, observed_outputs, state_pairs
from converters.source.work import Work
from edgekit import engines
from edgekit.engines.openvino import core
from edgekit.errors import EngineError, SourceError
from edgekit.manifest import EngineSpec, Option, TensorSpec
from edgekit.profile import Precision
from edgekit.quiet import first_line, quietly

# A CPU with bf16 would compute the reference in that unless told otherwise.
REFERENCE_OPTIONS: dict[str, Option] = {"INFERENCE_PRECISION_HINT": "f32"}
_DTYPES = {
    "f32": "float32", "f16": "float16", "f64": "float64", "i8": "int8", "i16": "int16", "i32": "int32",
    "i64": "int64", "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "boolean": "bool",
}  # fmt: skip


def open_file(project: Project, path: Path) -> Source:
    """Raises: SourceError; ProjectError if a declared shape contradicts the model's."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise SourceError(f"{path}: its weights are not beside it; put {weights.name} there")
    _check_size(path, weights)
    try:
        model = quietly(lambda: core().read_model(path, weights))
    except RuntimeError as error:
        raise SourceError(f"{path}: not an OpenVINO IR, or damaged ({_said(error)})") from error
    if any(operator.get_type_name() in ("ReadValue", "Assign") for operator in model.get_ops()):
        raise SourceError(
            f"{path}: keeps its state inside (ReadValue, Assign), which cannot be set back to zero between sequences;"
            " export it with the state as an input and an output, and pair them under [state]"
        )
    inputs = tuple(_spec(path, port) for port in model.inputs)
    outputs = tuple(TensorSpec(_name(path, port), "float32", ()) for port in model.outputs)
    for spec in inputs:
        check_declared(project, spec)
    try:
        # Workers run beside it.
        options = {**REFERENCE_OPTIONS, **facts.of("openvino").beside}
        engine = EngineSpec("openvino", "", path.name, options)
        reference = engines.get("openvino").load(path, engine, inputs, outputs, None)
    except EngineError as error:
        raise SourceError(f"{path}: {error}") from error
    return Source(
        inputs=inputs,
        outputs=observed_outputs(reference, inputs, project.model.source),
        state=state_pairs(project),
        sha256=hash_parts([path, weights]),
        reference=reference,
        native=Native("openvino", "an OpenVINO IR", (path, weights), {}, precision(model), work(model)),
    )


def precision(model: Any) -> Precision:
    """int8 if activations are quantized; compressed weights alone compute in float."""
    kinds = {operator.get_type_name() for operator in model.get_ops()}
    return "int8" if "FakeQuantize" in kinds else "fp32"


def work(model: Any) -> Work:
    """Of one inference; operators of open shapes count nothing."""
    macs = weights = activations = operators = 0
    for operator in model.get_ops():
        kind = operator.get_type_name()
        sizes = sum(
            math.prod(output.get_shape())
            for output in operator.outputs()
            if output.get_partial_shape().is_static
        )
        if kind == "Constant":
            weights += sizes
        elif kind not in ("Parameter", "Result"):
            operators += 1
            activations += sizes
            is_closed = all(
                port.get_partial_shape().is_static for port in (*operator.inputs(), *operator.outputs())
            )
            if kind in _MACS and is_closed:
                macs += _MACS[kind](operator)
    return Work(macs, weights, activations, operators)


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in port.get_shape())


# Filters: OIHW, with groups GOIHW; a transposed one IOHW, with groups GIOHW.
_MACS: Mapping[str, Callable[[Any], int]] = {
    "Convolution": lambda op: math.prod(_shape(op.output(0))) * math.prod(_shape(op.input(1))[1:]),
    "GroupConvolution": lambda op: math.prod(_shape(op.output(0))) * math.prod(_shape(op.input(1))[2:]),
    "ConvolutionBackpropData": lambda op: math.prod(_shape(op.input(0))) * math.prod(_shape(op.input(1))[1:]),
    "GroupConvolutionBackpropData": lambda op: (
        math.prod(_shape(op.input(0))) * math.prod(_shape(op.input(1))[2:])
    ),
    "MatMul": lambda op: (
        math.prod(_shape(op.output(0)))
        * _shape(op.input(0))[-2 if op.get_attributes().get("transpose_a") else -1]
    ),
}


def _check_size(path: Path, weights: Path) -> None:
    """OpenVINO itself takes a `.bin` that is longer than the IR says, which then belongs to another model."""
    text = path.read_text(encoding="utf-8", errors="replace")
    ends = [int(at) + int(size) for at, size in re.findall(r'\boffset="(\d+)" size="(\d+)"', text)]
    have, needed = weights.stat().st_size, max(ends, default=0)
    if have != needed:
        raise SourceError(
            f"{weights}: holds {have} bytes, and {path.name} speaks of {needed}; it belongs to another model or is"
            " damaged"
        )


def _spec(path: Path, port: Any) -> TensorSpec:
    name, shape = _name(path, port), port.get_partial_shape()
    if shape.is_dynamic:
        raise SourceError(
            f"{path}: the shape {shape} of {name} is open, and a file that is taken as it is keeps its shapes;"
            " reshape the model and save it again"
        )
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise SourceError(f"{path}: input {name} is of type {kind}, which numpy does not have")
    return TensorSpec(name, _DTYPES[kind], _shape(port))


def _name(path: Path, port: Any) -> str:
    if not port.get_names():
        raise SourceError(
            f"{path}: an input or output has no name; give it one (port.tensor.set_names) and save again"
        )
    return str(min(port.get_names()))


def _said(error: RuntimeError) -> str:
    """OpenVINO's last line that says something; before it come its own file names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
