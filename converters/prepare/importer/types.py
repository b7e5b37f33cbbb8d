"""ONNX's types in torch: type codes, and unsigned integers that torch stores but does not compute with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

from converters.prepare.importer.registry import Call

# torch 2.13 has almost no arithmetic for these; all their values fit the wider type (64 bits wrap around alike).
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


# They take the types as they are.
_AS_THEY_ARE = {"Cast", "BitCast", "Shape", "Size", "QuantizeLinear", "DequantizeLinear"}


def torch_dtype(call: Call, code: int) -> Any:
    """The torch type of an ONNX type code. Raises: UnsupportedOperatorsError."""
    try:
        return torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(code))).dtype
    except (TypeError, KeyError) as error:
        raise call.unsupported(f"type code {code}") from error


def widened(call: Call, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function over wider signed integers where its inputs are unsigned ones, its results narrowed again."""

    def run(called: Call, *inputs: Any) -> Any:
        narrow = [value is not None and value.dtype in _WIDER for value in inputs]
        if not any(narrow) or called.op_type in _AS_THEY_ARE:
            return function(called, *inputs)
        wide = [
            value.to(_WIDER[value.dtype]) if is_narrow else value
            for value, is_narrow in zip(inputs, narrow, strict=True)
        ]
        result = function(called, *wide)
        results = list(result) if isinstance(result, tuple | list) else [result]
        kinds = _output_types(call, inputs)
        return tuple(
            value if kind is None else value.to(kind)
            for value, kind in zip(results, [*kinds, *[None] * len(results)], strict=False)
        )

    return run


def _output_types(call: Call, inputs: tuple[Any, ...]) -> list[Any]:
    """For each output the type of the input whose type parameter it shares, None where there is none."""
    schema = onnx.defs.get_schema(call.op_type, call.opset)
    formal = list(schema.inputs)
    types: dict[str, Any] = {}
    for index, value in enumerate(inputs):
        if value is not None:
            types.setdefault(formal[min(index, len(formal) - 1)].type_str, value.dtype)
    return [types.get(output.type_str) for output in schema.outputs]
