"""Operators of ONNX Runtime's own domain, com.microsoft, that its quantizer and its optimizer leave in files.

Quantized ones are computed on the numbers that their integers stand for, and rounded where the operator rounds. Source:
ONNX Runtime's `ContribOperators.md` (1.32), checked against ONNX Runtime itself in `tests/converters/test_contributed.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.convolution import convolved
from converters.graph.importer.pooling import average_pool
from converters.graph.importer.quantization import dequantize, quantize, quantized
from converters.graph.importer.recurrent import lstm
from converters.graph.importer.registry import Call, operator

_DOMAIN = "com.microsoft"

operator(f"{_DOMAIN}.QuantizeLinear")(quantize)
operator(f"{_DOMAIN}.DequantizeLinear")(dequantize)


def _scalar(value: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The numbers behind integers of one scale."""
    shift = 0.0 if zero is None else zero.to(torch.float32).reshape([])
    return (value.to(torch.float32) - shift) * scale.reshape([])


def _columns(value: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The numbers behind a matrix of integers, of one scale or one for each column."""
    shifted = value.to(torch.float32) if zero is None else value.to(torch.float32) - zero.to(torch.float32)
    return shifted * scale


def _rounded(call: Call, value: Tensor, scale: Tensor, zero: Tensor | None, kind: Any) -> Tensor:
    shift = 0.0 if zero is None else zero.to(torch.float32).reshape([])
    return quantized(call, value / scale.reshape([]), shift, kind)


def _unary(name: str, function: Callable[[Call, Tensor], Tensor]) -> None:
    """X, its scale and zero point, the result's scale and zero point."""

    @operator(f"{_DOMAIN}.{name}")
    def run(call: Call, *inputs: Tensor | None) -> Tensor:
        value, scale, zero, to_scale, to_zero = (*inputs, None)[:5]
        assert value is not None
        assert scale is not None
        assert to_scale is not None
        return _rounded(call, function(call, _scalar(value, scale, zero)), to_scale, to_zero, call.kind(0))


def _average_pool(call: Call, value: Tensor) -> Tensor:
    if call.get("channels_last", 0):
        raise call.unsupported("channels_last = 1")
    return average_pool(call, value)


def _global_average(call: Call, value: Tensor) -> Tensor:
    if call.get("channels_last", 0):
        raise call.unsupported("channels_last = 1")
    return value.mean(tuple(range(2, value.dim())), keepdim=True)


def _softmax(call: Call, value: Tensor) -> Tensor:
    if int(call.get("opset", 13)) < 13:
        raise call.unsupported("opset below 13")
    return torch.softmax(value, call.get("axis", -1))


_unary("QLinearSigmoid", lambda _call, value: torch.sigmoid(value))
_unary("QLinearLeakyRelu", lambda call, value: functional.leaky_relu(value, call.get("alpha", 0.01)))
_unary("QLinearAveragePool", _average_pool)
_unary("QLinearGlobalAveragePool", _global_average)
_unary("QLinearSoftmax", _softmax)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A and B with their scales and zero points, the result's scale and zero point."""

    @operator(f"{_DOMAIN}.{name}")
    def run(call: Call, *inputs: Any) -> Tensor:
        left, left_scale, left_zero, right, right_scale, right_zero, scale, zero = (*inputs, None)[:8]
        made = function(_scalar(left, left_scale, left_zero), _scalar(right, right_scale, right_zero))
        return _rounded(call, made, scale, zero, call.kind(0))


_binary("QLinearAdd", torch.add)
_binary("QLinearMul", torch.mul)


@operator(f"{_DOMAIN}.QLinearConcat")
def concat(call: Call, scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
    real = [_scalar(*parts[at : at + 3]) for at in range(0, len(parts), 3)]
    return _rounded(call, torch.cat(real, call.get("axis")), scale, zero, call.kind(1))


@operator(f"{_DOMAIN}.QLinearWhere")
def where(call: Call, condition: Tensor, *inputs: Tensor) -> Tensor:
    made = torch.where(condition, _scalar(*inputs[:3]), _scalar(*inputs[3:6]))
    return _rounded(call, made, inputs[6], inputs[7], call.kind(1))


@operator(f"{_DOMAIN}.QGemm")
def gemm(call: Call, *inputs: Any) -> Tensor:
    """Of integers, or of numbers where no scale of the result is given."""
    left, left_scale, left_zero, right, right_scale, right_zero, bias, scale, zero = (*inputs, *[None] * 3)[
        :9
    ]
    a = _scalar(left, left_scale, left_zero)
    a = a.t() if call.get("transA", 0) else a
    transposed = bool(call.get("transB", 0))
    # Scales go with the result's columns, which are the rows of a transposed B.
    b = right.t() if transposed else right
    b = _columns(b, right_scale, right_zero)
    product = torch.matmul(a, b) * call.get("alpha", 1.0)
    if bias is not None:
        # The bias is in steps of alpha times both scales.
        product = product + bias.to(torch.float32) * (left_scale * right_scale * call.get("alpha", 1.0))
    return product if scale is None else _rounded(call, product, scale, zero, call.kind(8) or call.kind(0))


@operator(f"{_DOMAIN}.MatMulIntegerToFloat")
def matmul_to_float(_call: Call, *inputs: Any) -> Tensor:
    left, right, left_scale, right_scale, left_zero, right_zero, bias = (*inputs, *[None] * 3)[:7]
    product = torch.matmul(_scalar(left, left_scale, left_zero), _columns(right, right_scale, right_zero))
    return product if bias is None else product + bias


@operator(f"{_DOMAIN}.DynamicQuantizeMatMul")
def dynamic_matmul(_call: Call, *inputs: Any) -> Tensor:
    value, right, scale, zero, bias = (*inputs, *[None] * 2)[:5]
    product = torch.matmul(_rounded_as_seen(value), _columns(right, scale, zero))
    return product if bias is None else product + bias


def _rounded_as_seen(value: Tensor) -> Tensor:
    """Numbers after eight bits over the range that they have themselves, as DynamicQuantizeLinear defines it."""
    low, high = torch.clamp(value.min(), max=0.0), torch.clamp(value.max(), min=0.0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / safe), 0, 255)
    return (torch.clamp(torch.round(value / safe) + zero, 0, 255) - zero) * safe


@operator(f"{_DOMAIN}.DynamicQuantizeLSTM")
def dynamic_lstm(call: Call, *inputs: Any) -> Any:
    """Weights as their integers say; the rounding of activations inside the recurrence is left out, since it follows a
    range of each step: exact to that rounding.
    """
    value, weights, recurrence, bias, lengths, hidden, memory, peepholes = inputs[:8]
    scale, zero, own_scale, own_zero = inputs[8:12]

    def real(matrix: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        # By direction, input and gate, the other way round than LSTM has them; scales by direction and gate.
        spread = (-1, 1, 1) if factor.dim() == 1 else (factor.shape[0], 1, factor.shape[1])
        shifted = matrix.to(torch.float32) - shift.to(torch.float32).reshape(spread)
        return (shifted * factor.reshape(spread)).transpose(1, 2)

    rest = (bias, lengths, hidden, memory, peepholes)
    return lstm(call, value, real(weights, scale, zero), real(recurrence, own_scale, own_zero), *rest)


@operator(f"{_DOMAIN}.Gelu")
def gelu(_call: Call, value: Tensor) -> Tensor:
    return functional.gelu(value)


@operator(f"{_DOMAIN}.FastGelu")
def fast_gelu(_call: Call, value: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(value if bias is None else value + bias, approximate="tanh")


@operator(f"{_DOMAIN}.BiasGelu")
def bias_gelu(_call: Call, value: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(value + bias)


@operator(f"{_DOMAIN}.QuickGelu")
def quick_gelu(call: Call, value: Tensor) -> Tensor:
    return value * torch.sigmoid(call.get("alpha", 1.702) * value)


@operator(f"{_DOMAIN}.SkipLayerNormalization")
def skip_layer_norm(call: Call, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a sum, as ONNX Runtime's optimizer leaves it in transformers; the sum itself is the fourth output."""
    value, skip, scale, shift, bias = (*inputs, None, None)[:5]
    total = value + skip if bias is None else value + skip + bias
    mean = total.mean(-1, keepdim=True)
    centred = total - mean
    inverse = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + call.get("epsilon", 1e-12))
    scaled = centred * inverse * scale
    return (scaled if shift is None else scaled + shift, mean, inverse, total)[: call.outputs]


@operator(f"{_DOMAIN}.SkipSimplifiedLayerNormalization")
def skip_rms_norm(call: Call, *inputs: Tensor) -> tuple[Tensor, ...]:
    value, skip, scale, bias = (*inputs, None)[:4]
    total = value + skip if bias is None else value + skip + bias
    inverse = torch.rsqrt((total * total).mean(-1, keepdim=True) + call.get("epsilon", 1e-12))
    return (total * inverse * scale, torch.zeros_like(inverse), inverse, total)[: call.outputs]


@operator(f"{_DOMAIN}.FusedMatMul")
def fused_matmul(call: Call, left: Tensor, right: Tensor) -> Tensor:
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise call.unsupported("transposed batches")
    left = left.transpose(-1, -2) if call.get("transA", 0) and left.dim() > 1 else left
    right = right.transpose(-1, -2) if call.get("transB", 0) and right.dim() > 1 else right
    return torch.matmul(left, right) * call.get("alpha", 1.0)


_ACTIVATIONS: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "Relu": lambda _call, value: torch.relu(value),
    "Sigmoid": lambda _call, value: torch.sigmoid(value),
    "Tanh": lambda _call, value: torch.tanh(value),
    "LeakyRelu": lambda call, value: functional.leaky_relu(value, call.get("activation_params", [0.01])[0]),
    "Clip": lambda call, value: torch.clamp(value, *call.get("activation_params")),
    "HardSigmoid": lambda call, value: torch.clamp(
        call.get("activation_params")[0] * value + call.get("activation_params")[1], 0.0, 1.0
    ),
}


@operator(f"{_DOMAIN}.FusedConv")
def fused_conv(
    call: Call, value: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    name = call.get("activation", "")
    if name and name not in _ACTIVATIONS:
        raise call.unsupported(f"activation {name!r}")
    made = convolved(call, value, weight, bias)
    made = made if added is None else made + added
    return _ACTIVATIONS[name](call, made) if name else made
