"""ONNX's types, and the fewer ones in which a model computes: those that LiteRT has kernels for.

A value has the type that the model gives it (its kind). At run time another type may carry it:

| kind | carried by | at the module's edge |
|---|---|---|
| float16 | float32 | float16 |
| float64 | float32 | float32 |
| int8, uint8, int16 | int32 | as the kind |
| uint16 | int32 | int32 |
| uint32, uint64 | int64, which LiteRT narrows to int32 | int64 |

Always true
 1. What depends on no data is computed in its own kind, when the model is loaded.
 2. An integer of up to 16 bits wraps around as its kind does, after every operator that may leave its range.
 3. A wider unsigned one is right as long as it fits the signed type, and modulo 2**32 where it is an output.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch

from converters.graph.importer.registry import Call

_CARRIERS = {
    torch.float16: torch.float32,
    torch.float64: torch.float32,
    torch.int8: torch.int32,
    torch.uint8: torch.int32,
    torch.int16: torch.int32,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}
# Kinds that litert-torch 0.10 takes as inputs and outputs of a model though little computes with them.
_AT_THE_EDGE = {torch.float16, torch.int8, torch.uint8, torch.int16}
# torch 2.13 stores these but has almost no arithmetic for them.
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
# They take the types as they are.
_AS_THEY_ARE = {"Cast", "BitCast", "Shape", "Size", "QuantizeLinear", "DequantizeLinear"}
# Their results are entries of their inputs, or lie between them.
KEEPS_RANGE = frozenset(
    {
        "CenterCropPad", "Clip", "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "OneHot", "Pad",
        "QuantizeLinear", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Scatter", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip


def carrier(kind: Any) -> Any:
    """The type that carries a kind at run time."""
    return _CARRIERS.get(kind, kind)


def width(kind: Any) -> int:
    """Bits of an integer kind."""
    return int(torch.iinfo(kind).bits)


def at_edge(kind: Any) -> Any:
    """The type of the module's inputs and outputs of a kind."""
    return kind if kind in _AT_THE_EDGE else carrier(kind)


def carried(value: Any, kind: Any, *, wraps: bool = False) -> Any:
    """A value in its carrier; `wraps` where it may lie outside its kind."""
    if not wraps or kind == carrier(kind) or kind.is_floating_point or kind in (torch.uint32, torch.uint64):
        return value.to(carrier(kind))
    if kind == torch.uint16:
        # litert-torch 0.10 knows no tensors of this type.
        return torch.remainder(value.to(torch.int32), 1 << 16)
    return value.to(kind).to(carrier(kind))


def torch_dtype(call: Call, code: int) -> Any:
    """The torch type of an ONNX type code as `call` is to produce it. Raises: UnsupportedOperatorsError."""
    return typed(call, kind_of(call, code))


def kind_of(call: Call, code: int) -> Any:
    """The kind of an ONNX type code. Raises: UnsupportedOperatorsError."""
    try:
        return _kind(code)
    except (TypeError, KeyError) as error:
        raise call.unsupported(f"type code {code}") from error


@cache
def _kind(code: int) -> Any:
    """Kept from when the model is loaded: a tensor made while it is traced would be part of the trace."""
    return torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(code))).dtype


def typed(call: Call, kind: Any) -> Any:
    """The type in which `call` is to produce results of a kind."""
    return carrier(kind) if call.carries else kind


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
