"""Quantize, dequantize, and layers over quantized tensors.

Sums of products are taken in float32, exact below 2**24; above, they are as exact as the scale that follows needs.
"""

from typing import Any

import torch
from torch import Tensor

from converters.graph.importer.convolution import convolved
from converters.graph.importer.registry import Call, operator
from converters.graph.importer.types import kind_of, typed

_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}


@operator("QuantizeLinear", since=10)
def quantize(call: Call, value: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    code = call.get("output_dtype", 0)
    kind = kind_of(call, code) if code else torch.uint8 if zero_point is None else call.kind(2)
    return quantized(call, value / _along(call, scale, value), _shifted(call, zero_point, value), kind)


@operator("DequantizeLinear", since=10)
def dequantize(call: Call, value: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    whole = value.to(torch.float32) - _shifted(call, zero_point, value)
    return (whole * _along(call, scale, value)).to(scale.dtype)


@operator("QLinearMatMul", since=10)
def matmul(call: Call, *inputs: Tensor) -> Tensor:
    left, left_scale, left_zero, right, right_scale, right_zero, scale, zero = inputs
    product = torch.matmul(_real(left, left_zero, -1), _real(right, right_zero, -2))
    factor = _beside(left_scale.float(), -1) * _beside(right_scale.float(), -2) / _beside(scale.float(), -1)
    return quantized(call, product * factor, _beside(zero, -1).to(torch.float32), call.kind(7))


@operator("MatMulInteger", since=10)
def matmul_integer(
    _call: Call,
    left: Tensor,
    right: Tensor,
    left_zero: Tensor | None = None,
    right_zero: Tensor | None = None,
) -> Tensor:
    return torch.matmul(_real(left, left_zero, -1), _real(right, right_zero, -2)).to(torch.int32)


@operator("QLinearConv", since=10)
def conv(call: Call, *inputs: Tensor) -> Tensor:
    value, value_scale, value_zero, weight, weight_scale, weight_zero, scale, zero = inputs[:8]
    bias = inputs[8].to(torch.float32) if len(inputs) > 8 else None
    channels = [1, -1, *[1] * (value.dim() - 2)]
    kernels = [-1, *[1] * (weight.dim() - 1)]
    product = convolved(
        call,
        value.to(torch.float32) - value_zero.to(torch.float32),
        weight.to(torch.float32) - weight_zero.to(torch.float32).reshape(kernels),
        bias,
    )
    return quantized(
        call,
        product * (value_scale * weight_scale / scale).reshape(channels),
        zero.to(torch.float32),
        call.kind(7),
    )


@operator("ConvInteger", since=10)
def conv_integer(
    call: Call,
    value: Tensor,
    weight: Tensor,
    value_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
) -> Tensor:
    left, right = value.to(torch.float32), weight.to(torch.float32)
    if value_zero is not None:
        left = left - value_zero.to(torch.float32)
    if weight_zero is not None:
        right = right - weight_zero.to(torch.float32).reshape([-1, *[1] * (weight.dim() - 1)])
    return convolved(call, left, right, None).to(torch.int32)


def quantized(call: Call, value: Tensor, zero: Any, kind: Any) -> Tensor:
    """Steps, rounded to even and shifted, as integers of a kind. Raises: UnsupportedOperatorsError."""
    if kind not in _RANGES:
        raise call.unsupported(f"results of {kind}")
    return torch.clamp(torch.round(value) + zero, *_RANGES[kind]).to(typed(call, kind))


def _shifted(call: Call, zero: Tensor | None, value: Tensor) -> Any:
    return 0.0 if zero is None else _along(call, zero.to(torch.float32), value)


def _along(call: Call, parameter: Tensor, value: Tensor) -> Tensor:
    """Scale or zero point beside the values: one for all, one for each entry of an axis, or for each block."""
    if parameter.numel() == 1:
        return parameter.reshape([])
    axis = call.get("axis", 1) % value.dim()
    if parameter.dim() == 1:
        return parameter.reshape([-1 if index == axis else 1 for index in range(value.dim())])
    block = call.get("block_size", 0) or -(-value.shape[axis] // parameter.shape[axis])
    return parameter.repeat_interleave(block, axis).narrow(axis, 0, value.shape[axis])


def _real(value: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    shifted = value.to(torch.float32)
    return shifted if zero is None else shifted - _beside(zero, axis).to(torch.float32)


def _beside(parameter: Tensor, axis: int) -> Tensor:
    """One for each row (`axis` -1) or column (-2) of a matrix."""
    if parameter.numel() == 1:
        return parameter.reshape([])
    return parameter.unsqueeze(axis) if parameter.dim() == 1 else parameter
