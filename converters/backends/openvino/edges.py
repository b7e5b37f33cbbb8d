"""The inputs and outputs of a model that OpenVINO read from another engine's file, as callers know them.

Always true
 1. They have their public names and types: what the file stores as integers with a scale is float to the caller, converted
    as the engine adapter of that file does it.
"""

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from converters.source.native import Native
from converters.source.source import Source


def public(model: Any, source: Source, native: Native) -> Any:
    """The model with public edges; the given one is changed."""
    taken = {name: port for port in model.inputs for name in port.get_names()}
    given = {name: port for port in model.outputs for name in port.get_names()}
    pairs = [(spec.name, taken[native.names[spec.name]]) for spec in source.inputs]
    parameters = [_taken(name, port, native) for name, port in pairs]
    results = []
    for spec in source.outputs:
        port = given[native.names[spec.name]]
        value = _given(port.get_node().input_value(0), spec.name, native)
        value.get_tensor().set_names({spec.name})
        results.append(ops.result(value))
    return ov.Model(results, parameters, "model")


def _taken(name: str, port: Any, native: Native) -> Any:
    """The parameter that callers feed; a stored one is replaced by its float form, rounded as LiteRT's adapter rounds."""
    stored = port.get_node()
    if name not in native.scales:
        port.get_tensor().set_names({name})
        return stored
    scale, zero = native.scales[name]
    kind = port.get_element_type()
    limits = np.iinfo(kind.to_dtype())
    parameter = ops.parameter(port.get_partial_shape(), np.float32)
    steps = ops.add(
        ops.round(ops.divide(parameter, np.float32(scale)), mode="half_to_even"), np.float32(zero)
    )
    integers = ops.convert(ops.clamp(steps, float(limits.min), float(limits.max)), kind)
    for reader in port.get_target_inputs():
        reader.replace_source_output(integers.output(0))
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _given(value: Any, name: str, native: Native) -> Any:
    if name not in native.scales:
        return value
    scale, zero = native.scales[name]
    shifted = ops.subtract(ops.convert(value, np.float32), np.float32(zero))
    return ops.multiply(shifted, np.float32(scale)).output(0)
