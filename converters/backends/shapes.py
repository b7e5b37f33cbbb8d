"""Shapes inside a converted model that depend on the data, which an accelerator that compiles ahead cannot run.

The shapes of a bundle's inputs are fixed; an operator such as NonZero still makes tensors whose size only a run tells.
"""

from pathlib import Path
from typing import Any

import onnx

from converters.source import tflite
from converters.source.quiet import quietly


def open_inside(path: Path) -> tuple[str, ...]:
    """Names of the tensors or operators whose shapes are open, in the model's order.

    Of an ONNX file, those that ONNX's own shape inference can tell.
    """
    if path.suffix == ".tflite":
        graph = quietly(lambda: tflite.read(path))
        return tuple(tensor.name for tensor in graph.tensors if min(tensor.shape, default=0) < 0)
    return _in_ir(path) if path.suffix == ".xml" else _in_onnx(path)


def _in_ir(path: Path) -> tuple[str, ...]:
    # Imported here: a build for other engines never loads OpenVINO.
    import openvino as ov

    from edgekit.engines.openvino import read

    operators: list[Any] = read(ov.Core(), path).get_ordered_ops()
    return tuple(
        operator.get_friendly_name()
        for operator in operators
        if any(output.get_partial_shape().is_dynamic for output in operator.outputs())
    )


def _in_onnx(path: Path) -> tuple[str, ...]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    return tuple(
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and not all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    )
