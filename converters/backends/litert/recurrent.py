"""LiteRT's fused recurrent layers: put where a program asks for one, and with smaller weights, which ai-edge-quantizer (0.10)
leaves as they are.

Their kernels take float activations beside int8 weights, and quantize what they multiply at run time.

Always true
 1. A layer's matrices become smaller all together, or none: the kernels look at one of them.

Source: tflite/kernels/unidirectional_sequence_lstm.cc (`IsHybridOp`; `lstm_shared.h` for the order of inputs).
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.litert import tables
from converters.recipes.recipe import Recipe
from edgekit.tensors import Array

_OPERATOR = schema.BuiltinOperator
# Gives a tensor what is stored of a matrix.
Store = Callable[[Any, Any, Array], None]
# The one that takes a scale for each row.
_DEQUANTIZE_VERSION = 5
# Where the matrices stand among an operator's inputs: of the input and of the state, for each gate.
_MATRICES: Mapping[int, range] = {
    _OPERATOR.UNIDIRECTIONAL_SEQUENCE_LSTM: range(1, 9),
    _OPERATOR.UNIDIRECTIONAL_SEQUENCE_RNN: range(1, 3),
    _OPERATOR.LSTM: range(1, 9),
    _OPERATOR.RNN: range(1, 3),
}
# What a program calls in the place of an LSTM (`litert.lstm`): its input, then matrices and biases, gate by gate.
PLACEHOLDER = "edgekit.sequence_lstm"


def notes(fused: int) -> tuple[str, ...]:
    """On so many layers that are fused operators."""
    kept = "which keeps its state from call to call; that is set to zero before each"
    return (f"LSTM layers as LiteRT's own operator ({fused}), {kept}",) if fused else ()


def placed(content: bytes) -> bytes:
    """The model with fused LSTMs where a program asks for them."""
    model = tables.read(content)
    (graph, *_) = model.subgraphs
    for step in graph.operators:
        options = step.builtinOptions2
        if tables.code(model, step) == _OPERATOR.STABLEHLO_CUSTOM_CALL and (
            options.callTargetName == PLACEHOLDER.encode()
        ):
            _place(model, graph, step)
    tables.drop_unused(model)
    return tables.written(model)


def _place(model: Any, graph: Any, step: Any) -> None:
    """In the place of one call. The state is two variables."""
    (value, *held), (output,) = step.inputs, step.outputs
    entering, turning, biases = held[:4], held[4:8], held[8:]
    _, batch, units = graph.tensors[output].shape
    states = []
    for name in (b"hidden", b"cell"):
        state = tables.added(model, graph.tensors[output].name + b"/" + name, [batch, units])
        graph.tensors[state].isVariable = True
        states.append(state)
    peepholes, projection, norms = [-1] * 3, [-1] * 2, [-1] * 4
    step.opcodeIndex = tables.numbered(model, _OPERATOR.UNIDIRECTIONAL_SEQUENCE_LSTM)
    step.inputs = [value, *entering, *turning, *peepholes, *biases, *projection, *states, *norms]
    step.builtinOptions2Type, step.builtinOptions2 = schema.BuiltinOptions2.NONE, None
    step.builtinOptionsType = schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions
    step.builtinOptions = schema.UnidirectionalSequenceLSTMOptionsT()
    step.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH
    step.builtinOptions.timeMajor = True


def with_weights(content: bytes, recipe: Recipe, left: Collection[str], *, by_row: bool) -> bytes:
    """The model with the recipe's weights in its fused recurrent layers; those that write a tensor of `left` stay as they are.
    Under static int8 they get what dynamic int8 gives them, since they take no ranges from calibration. `by_row`: stored with a
    scale for each row.
    """
    if recipe.scheme in ("dynamic", "static"):
        return with_int8_weights(content, left)
    if recipe.precision == "fp16":
        return with_stored_weights(content, left, tables.store_float16)
    if recipe.scheme == "weights":
        return with_stored_weights(content, left, partial(tables.store_int8, by_row=by_row))
    return content


def with_int8_weights(content: bytes, left: Collection[str]) -> bytes:
    """The model with its fused recurrent layers' matrices in int8, which the kernels multiply with ranges taken at run time;
    those that write a tensor of `left` stay in float.
    """

    def in_int8(model: Any, _step: Any, tensor: Any) -> None:
        tables.store_int8(model, tensor, _values(model, tensor))

    return _with_matrices(content, left, in_int8)


def with_stored_weights(content: bytes, left: Collection[str], store: Store) -> bytes:
    """The model with the matrices stored smaller, by `store`, and widened once, when a model is first run: what is computed
    stays in float.
    """

    def stored(model: Any, step: Any, tensor: Any) -> None:
        (graph, *_) = model.subgraphs
        small = tables.added(model, tensor.name + b"/stored", tensor.shape)
        store(model, graph.tensors[small], _values(model, tensor))
        tensor.buffer = 0
        widening = schema.OperatorT()
        widening.opcodeIndex = tables.numbered(model, _OPERATOR.DEQUANTIZE, _DEQUANTIZE_VERSION)
        widening.inputs, widening.outputs = [small], [graph.tensors.index(tensor)]
        graph.operators.insert(graph.operators.index(step), widening)

    return _with_matrices(content, left, stored)


def _values(model: Any, tensor: Any) -> Array:
    values: Array = np.frombuffer(model.buffers[tensor.buffer].data, np.float32)
    return values.reshape(tensor.shape)


def _with_matrices(content: bytes, left: Collection[str], change: Callable[[Any, Any, Any], None]) -> bytes:
    """`change` gets the model, the layer and each of its matrices."""
    model = tables.read(content)
    (graph, *_) = model.subgraphs
    is_changed = False
    for step in list(graph.operators):
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
                change(model, step, tensor)
    if not is_changed:
        return content
    tables.drop_unused(model)
    return tables.written(model)
