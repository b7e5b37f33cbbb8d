"""Channels that reach far beyond the others of their tensor, brought nearer, so that 256 steps hold them all.

A convolution may give each channel divided by a number of its own, if the one convolution that reads it multiplies its weights
for that channel by that number: between them stands nothing, or a RELU. The numbers are powers of two, so that in float nothing
changes at all. What has no such channel stays as it is, to the byte.

Source: Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1; the
numbers from what data reaches: Xiao et al. (2023), "SmoothQuant", equation 4, with a half as the exponent.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.backends.litert import running, tables
from edgekit.tensors import Array

# Samples that say how far a channel reaches.
SAMPLES = 16
# How many times as far as the middle one of its tensor a channel reaches, from where on its neighbours are left too few steps.
FAR = 16.0
# A channel is shifted by no more than this many bits.
MOST_BITS = 10
_OPERATOR = schema.BuiltinOperator
# Axes of the channels that come in and go out: OHWI, and 1HWC with one filter a channel.
_AXES = {_OPERATOR.CONV_2D: (3, 0), _OPERATOR.DEPTHWISE_CONV_2D: (3, 3)}
_HOMOGENEOUS = frozenset({schema.ActivationFunctionType.NONE, schema.ActivationFunctionType.RELU})


def equalized(path: Path, feeds: Iterable[Mapping[str, Any]]) -> int:
    """Change the float model in place; between how many pairs of convolutions."""
    model = tables.read(path.read_bytes())
    pairs = list(_pairs(model))
    if not pairs:
        return 0
    reach = _reach(path, feeds, {made.outputs[0] for made, _ in pairs})
    changed = 0
    for made, reader in pairs:
        far = reach[made.outputs[0]]
        if far.max() > FAR * max(float(np.median(np.asarray(far, np.float64))), 1e-30):
            _balance(model, made, reader, far)
            changed += 1
    if changed:
        tables.drop_unused(model)
        path.write_bytes(tables.written(model))
    return changed


def _pairs(model: Any) -> Iterator[tuple[Any, Any]]:
    """Convolutions, each with the one that alone reads it; weights of both are read by nothing else."""
    graph = model.subgraphs[0]
    readers: dict[int, list[Any]] = {}
    for step in graph.operators:
        for index in step.inputs:
            readers.setdefault(index, []).append(step)
    for made in graph.operators:
        (reader,) = following if len(following := readers.get(made.outputs[0], [])) == 1 else (None,)
        if reader is None or made.outputs[0] in graph.outputs or reader.inputs[0] != made.outputs[0]:
            continue
        both = (made, reader)
        if (
            all(tables.code(model, step) in _AXES for step in both)
            and made.builtinOptions.fusedActivationFunction in _HOMOGENEOUS
            and all(
                _is_own(model, readers, index) for step in both for index in step.inputs[1:] if index >= 0
            )
            and _channels(model, made, 1) == _channels(model, reader, 0)
            and all(getattr(step.builtinOptions, "depthMultiplier", 1) == 1 for step in both)
        ):
            yield both


def _is_own(model: Any, readers: Mapping[int, list[Any]], index: int) -> bool:
    tensor = model.subgraphs[0].tensors[index]
    return (
        tensor.type == schema.TensorType.FLOAT32
        and tables.has_data(model, index)
        and len(readers[index]) == 1
    )


def _channels(model: Any, step: Any, side: int) -> int:
    return int(model.subgraphs[0].tensors[step.inputs[1]].shape[_AXES[tables.code(model, step)][side]])


def _reach(path: Path, feeds: Iterable[Mapping[str, Any]], wanted: set[int]) -> dict[int, Array]:
    """The largest magnitude of each channel of these tensors."""
    interpreter = running.preserving(path)
    found: dict[int, Array] = {}
    for feed in feeds:
        running.run_once(interpreter, feed)
        for index in wanted:
            values = np.abs(interpreter.get_tensor(index))
            most = np.nan_to_num(values.max(axis=tuple(range(values.ndim - 1))))
            found[index] = np.maximum(found.get(index, np.zeros_like(most)), most)
    return found


def _balance(model: Any, made: Any, reader: Any, reach: Any) -> None:
    into, _ = _AXES[tables.code(model, reader)]
    weights = _values(model, reader.inputs[1])
    others = np.abs(weights).max(axis=tuple(axis for axis in range(4) if axis != into))
    # A channel that is always zero, or that nothing weighs, has no say.
    is_live = (reach > 0) & (others > 0)
    factors = np.ones_like(reach)
    factors[is_live] = np.sqrt(reach[is_live] / others[is_live])
    factors[is_live] /= np.exp(np.log(factors[is_live]).mean())
    factors = np.exp2(np.clip(np.rint(np.log2(factors)), -MOST_BITS, MOST_BITS))
    _scale(model, reader.inputs[1], factors, into)
    _scale(model, made.inputs[1], 1 / factors, _AXES[tables.code(model, made)][1])
    if len(made.inputs) > 2 and made.inputs[2] >= 0:
        _scale(model, made.inputs[2], 1 / factors, 0)


def _values(model: Any, index: int) -> Any:
    tensor = model.subgraphs[0].tensors[index]
    data = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), np.float32)
    return data.reshape(tensor.shape)


def _scale(model: Any, index: int, factors: Any, axis: int) -> None:
    values = _values(model, index)
    shape = [1] * values.ndim
    shape[axis] = -1
    tables.store(
        model, model.subgraphs[0].tensors[index], (values * factors.reshape(shape)).astype(np.float32)
    )
