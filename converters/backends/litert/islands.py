"""Activations that ai-edge-quantizer (0.10) leaves in float, between a DEQUANTIZE and a QUANTIZE, though LiteRT has them in
int8. Vela leaves all three to the CPU of an Ethos-U; on a CPU the integers gain nothing (five LEAKY_RELU between convolutions,
x86: 1.10 ms, and 1.05 with the conversions).
"""

from collections import Counter
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.litert import tables

_OPERATOR = schema.BuiltinOperator
_INT8 = schema.TensorType.INT8
# What LiteRT's plain kernels and Vela have.
_ACTIVATIONS = frozenset({_OPERATOR.PRELU, _OPERATOR.LEAKY_RELU, _OPERATOR.RELU6, _OPERATOR.RELU_N1_TO_1})


def folded(content: bytes) -> bytes:
    """The int8 model with such activations on the integers before and behind them; slopes of a PRELU get one symmetric scale.
    What is not so (a result that is wanted in float too, 16 bits) stays.
    """
    model = tables.read(content)
    graph = model.subgraphs[0]
    read = Counter(index for step in graph.operators for index in step.inputs)
    read.update(graph.outputs)
    maker = {index: step for step in graph.operators for index in step.outputs}
    reader = {index: step for step in graph.operators for index in step.inputs}
    gone: set[int] = set()
    for step in graph.operators:
        if tables.code(model, step) not in _ACTIVATIONS:
            continue
        (value, *slopes), (result,) = step.inputs, step.outputs
        before, behind = maker.get(value), reader.get(result)
        if read[result] != 1 or not (
            _converts(model, before, _OPERATOR.DEQUANTIZE) and _converts(model, behind, _OPERATOR.QUANTIZE)
        ):
            continue
        assert before is not None
        assert behind is not None
        step.inputs = [before.inputs[0], *(_stored(model, index) for index in slopes)]
        step.outputs = behind.outputs
        read[value] -= 1
        gone |= {id(behind)} | ({id(before)} if not read[value] else set())
    if not gone:
        return content
    graph.operators = [step for step in graph.operators if id(step) not in gone]
    tables.drop_unused(model)
    return tables.written(model)


def spelled(content: bytes) -> bytes:
    """The model with each HARD_SWISH that stays in float as a sum, a clamp and two products, which Vela leaves to the CPU.

    Of that operator itself it takes 8 bits alone, and fails on the whole file ("IFM has to be 8bit", Vela 5.2).
    """
    model = tables.read(content)
    graph = model.subgraphs[0]
    if not any(_is_float_swish(model, step) for step in graph.operators):
        return content
    three, sixth = (_number(model, value) for value in (3.0, 1 / 6))
    steps = []
    for step in graph.operators:
        if not _is_float_swish(model, step):
            steps.append(step)
            continue
        (value,), (result,) = step.inputs, step.outputs
        gate, product = (_like(model, result, word) for word in (b"_gate", b"_product"))
        steps += [
            _step(model, _OPERATOR.ADD, [value, three], gate, schema.ActivationFunctionType.RELU6),
            _step(model, _OPERATOR.MUL, [value, gate], product),
            _step(model, _OPERATOR.MUL, [product, sixth], result),
        ]
    graph.operators = steps
    return tables.written(model)


def _is_float_swish(model: Any, step: Any) -> bool:
    """Whether a step is a HARD_SWISH of float32."""
    tensors = model.subgraphs[0].tensors
    is_swish = tables.code(model, step) == _OPERATOR.HARD_SWISH
    return is_swish and bool(tensors[step.inputs[0]].type == schema.TensorType.FLOAT32)


def _step(model: Any, code: int, inputs: list[int], output: int, activation: int = 0) -> Any:
    """A sum or a product."""
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = tables.numbered(model, code), inputs, [output]
    is_sum = code == _OPERATOR.ADD
    made.builtinOptionsType = schema.BuiltinOptions.AddOptions if is_sum else schema.BuiltinOptions.MulOptions
    made.builtinOptions = schema.AddOptionsT() if is_sum else schema.MulOptionsT()
    made.builtinOptions.fusedActivationFunction = activation
    return made


def _like(model: Any, index: int, word: bytes) -> int:
    """A float tensor of the shape of another, named after it."""
    like = model.subgraphs[0].tensors[index]
    return tables.added(model, like.name + word, like.shape)


def _number(model: Any, value: float) -> int:
    """A float constant of one entry."""
    index = tables.added(model, f"number_{value:.3g}".encode(), np.array([1], np.int32))
    tables.store(model, model.subgraphs[0].tensors[index], np.array([value], np.float32))
    return index


def _converts(model: Any, step: Any, code: int) -> bool:
    """Whether a step is this conversion, from or to int8."""
    if step is None or tables.code(model, step) != code:
        return False
    index = step.inputs[0] if code == _OPERATOR.DEQUANTIZE else step.outputs[0]
    return bool(model.subgraphs[0].tensors[index].type == _INT8)


def _stored(model: Any, index: int) -> int:
    """A float constant once more in int8."""
    tensors = model.subgraphs[0].tensors
    tensor = tensors[index]
    values = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), np.float32)
    made = tables.added(model, tensor.name + b"_int8", tensor.shape)
    tables.store_int8(model, tensors[made], values)
    return made
