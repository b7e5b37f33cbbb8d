"""int8 weights of LiteRT's fused recurrent layers, which ai-edge-quantizer (0.10) leaves alone.

Their kernels take float activations beside int8 weights, and quantize what they multiply at run time.

Always true
 1. A layer's matrices become int8 all together, or none: the kernels look at one of them.

Source: tflite/kernels/unidirectional_sequence_lstm.cc (`IsHybridOp`).
"""

from collections.abc import Collection, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.litert import tables

_OPERATOR = schema.BuiltinOperator
# Where the matrices stand among an operator's inputs: of the input and of the state, for each gate.
_MATRICES: Mapping[int, range] = {
    _OPERATOR.UNIDIRECTIONAL_SEQUENCE_LSTM: range(1, 9),
    _OPERATOR.UNIDIRECTIONAL_SEQUENCE_RNN: range(1, 3),
    _OPERATOR.LSTM: range(1, 9),
    _OPERATOR.RNN: range(1, 3),
}


def with_int8_weights(content: bytes, left: Collection[str]) -> bytes:
    """The model with its fused recurrent layers' matrices in int8; those that write a tensor of `left` stay in float."""
    model = tables.read(content)
    (graph, *_) = model.subgraphs
    is_changed = False
    for step in graph.operators:
        # The input gate of an LSTM may be left out (-1): it is the forget gate's rest.
        places = [
            step.inputs[at] for at in _MATRICES.get(tables.code(model, step), ()) if step.inputs[at] >= 0
        ]
        tensors = [graph.tensors[index] for index in places]
        is_float = all(tensor.type == schema.TensorType.FLOAT32 for tensor in tensors)
        is_constant = all(tables.has_data(model, index) for index in places)
        is_left = {graph.tensors[index].name.decode() for index in step.outputs} & {*left}
        if tensors and is_float and is_constant and not is_left:
            is_changed = True
            for tensor in tensors:
                tables.store_int8(model, tensor, np.frombuffer(model.buffers[tensor.buffer].data, np.float32))
    if not is_changed:
        return content
    tables.drop_unused(model)
    return tables.written(model)
