"""The tables of a TFLite file, to be changed: read into objects, kept free of what nothing uses, written.

Source: the schema of TFLite, as `ai_edge_litert.schema_py_generated` has it.
"""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgekit.tensors import Array


def read(content: bytes) -> Any:
    """The file's tables, in lists that may be changed, with data from behind the tables among them."""
    model = flatbuffer_utils.read_model_from_bytearray(content)
    for code in model.operatorCodes:
        # Files from before 2020 fill the old, one-byte field only, which ai-edge-quantizer does not look at.
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    for graph in model.subgraphs:
        graph.operators = graph.operators or []
        for owner in (graph, *graph.operators):
            owner.inputs, owner.outputs = owner.inputs or [], owner.outputs or []
    return model


def written(model: Any) -> bytes:
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def code(model: Any, step: Any) -> int:
    """The builtin operator that a step is."""
    return int(model.operatorCodes[step.opcodeIndex].builtinCode)


def numbered(model: Any, code: int, version: int = 1) -> int:
    """The place of a builtin operator among the model's codes, where it is put if it is not there, of that version or newer."""
    for place, known in enumerate(model.operatorCodes):
        if known.builtinCode == code:
            known.version = max(known.version, version)
            return place
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), version
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def has_data(model: Any, index: int) -> bool:
    """Whether a tensor of the main graph is a constant."""
    data = model.buffers[model.subgraphs[0].tensors[index].buffer].data
    return data is not None and len(data) > 0


def added(model: Any, name: bytes, shape: Any, kind: int = schema.TensorType.FLOAT32) -> int:
    """The place of a new tensor in the main graph."""
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, kind, 0
    model.subgraphs[0].tensors.append(made)
    return len(model.subgraphs[0].tensors) - 1


def store(model: Any, tensor: Any, values: Array) -> None:
    """Give a tensor data of its own."""
    made = schema.BufferT()
    made.data = np.frombuffer(values.tobytes(), np.uint8)
    tensor.buffer = len(model.buffers)
    model.buffers.append(made)


def store_int8(model: Any, tensor: Any, values: Any, *, by_row: bool = False) -> None:
    """Give a tensor float data in int8: symmetric, from -127 to 127, with one scale or one a row ("LiteRT 8-bit quantization
    specification").
    """
    reach = np.abs(values).reshape(len(values) if by_row else 1, -1).max(1)
    scales = np.where(reach > 0, reach / 127, 1).astype(np.float32)
    rows = np.rint(values.reshape(len(scales), -1) / scales[:, None])
    store(model, tensor, rows.astype(np.int8))
    tensor.type = schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scales
    tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)


def store_float16(model: Any, tensor: Any, values: Any) -> None:
    """Give a tensor float data in float16."""
    store(model, tensor, values.astype(np.float16))
    tensor.type = schema.TensorType.FLOAT16


def types(model: Any) -> set[int]:
    """The schema's type codes of all tensors, those of loops and branches too."""
    return {int(tensor.type) for graph in model.subgraphs for tensor in graph.tensors}


def is_int8(content: bytes) -> bool:
    """Whether any tensor of a model is."""
    return schema.TensorType.INT8 in types(read(content))


def drop_unused(model: Any) -> None:
    """Tensors without use (ai-edge-quantizer's calibration reads all, also those that nothing makes), data, and codes (an
    interpreter refuses a file for one that it does not know, used or not).
    """
    for graph in model.subgraphs:
        _drop_tensors(graph)
    steps = [step for graph in model.subgraphs for step in graph.operators]
    codes = sorted({int(step.opcodeIndex) for step in steps})
    for step in steps:
        step.opcodeIndex = codes.index(step.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    used = sorted({int(tensor.buffer) for graph in model.subgraphs for tensor in graph.tensors} - {0})
    # The first entry is empty by the schema's rule.
    place = {index: new for new, index in enumerate([0, *used])}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place[int(tensor.buffer)]
    model.buffers = [model.buffers[index] for index in (0, *used)]
    # These are found by the number of their data too, and say nothing about what is computed.
    model.metadata = model.metadataBuffer = None


def _drop_tensors(graph: Any) -> None:
    edges = (*graph.inputs, *graph.outputs)
    used = {index for step in graph.operators for index in (*step.inputs, *step.outputs, *_inside(step))}
    live = sorted((used | set(edges)) - {-1})
    place = {index: new for new, index in enumerate(live)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in live]
    for owner in (graph, *graph.operators):
        owner.inputs = [place[index] for index in owner.inputs]
        owner.outputs = [place[index] for index in owner.outputs]
    for step in graph.operators:
        step.intermediates = [place[index] for index in _inside(step)] or None


def _inside(step: Any) -> list[int]:
    return list(step.intermediates or [])
