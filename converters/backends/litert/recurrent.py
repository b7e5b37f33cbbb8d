"""int8 weights of LiteRT's fused recurrent layers, which ai-edge-quantizer (0.10) leaves alone.

Their kernels take float activations beside int8 weights, and quantize what they multiply at run time.

Always true
 1. A layer's matrices become int8 all together, or none: the kernels look at one of them.

Source: tflite/kernels/unidirectional_sequence_lstm.cc (`IsHybridOp`) and "LiteRT 8-bit quantization specification":
weights are symmetric, from -127 to 127, with one scale a tensor.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from converters.backends.litert.ready import drop_data

_OPERATOR = schema.BuiltinOperator
# Where the matrices stand among an operator's inputs: of the input and of the state, for each gate.
_MATRICES: Mapping[int, range] = {
    _OPERATOR.UNIDIRECTIONAL_SEQUENCE_LSTM: range(1, 9),
    _OPERATOR.UNIDIRECTIONAL_SEQUENCE_RNN: range(1, 3),
    _OPERATOR.LSTM: range(1, 9),
    _OPERATOR.RNN: range(1, 3),
}
_LARGEST = 127


def with_int8_weights(content: bytes, left: Collection[str]) -> bytes:
    """The model with its fused recurrent layers' matrices in int8; those that write a tensor of `left` stay in float."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    is_changed = False
    for graph in model.subgraphs:
        for step in graph.operators:
            code = model.operatorCodes[step.opcodeIndex]
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            places = [step.inputs[at] for at in _MATRICES.get(kind, ()) if step.inputs[at] >= 0]
            tensors = [graph.tensors[index] for index in places]
            names = {graph.tensors[index].name.decode() for index in step.outputs}
            if not tensors or names & {*left} or not all(_is_float(tensor, model) for tensor in tensors):
                continue
            for tensor in tensors:
                _quantize(tensor, model)
            is_changed = True
    if not is_changed:
        return content
    drop_data(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _is_float(tensor: Any, model: Any) -> bool:
    return tensor.type == schema.TensorType.FLOAT32 and model.buffers[tensor.buffer].data is not None


def _quantize(tensor: Any, model: Any) -> None:
    """In place; a buffer that another tensor reads too stays as it is."""
    values = np.frombuffer(bytes(np.asarray(model.buffers[tensor.buffer].data)), np.float32)
    scale = float(np.abs(values).max()) / _LARGEST or 1.0
    buffer = schema.BufferT()
    buffer.data = np.rint(values / np.float32(scale)).astype(np.int8).view(np.uint8)
    tensor.type, tensor.buffer = schema.TensorType.INT8, len(model.buffers)
    model.buffers.append(buffer)
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
