"""Elementwise operators: arithmetic, comparison, activations, types."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.registry import Call, operator
from converters.graph.importer.types import carrier, kind_of, torch_dtype, width

# Operators that are one torch function of the same arguments.
_DIRECT: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _direct(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _call, *inputs: function(*inputs)


for _name, _function in _DIRECT.items():
    operator(_name)(_direct(_function))


@operator("Div")
def div(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """Integers divide towards zero."""
    if left.is_floating_point():
        return torch.div(left, right)
    return torch.div(left, _divisor(call, right), rounding_mode="trunc")


@operator("Mod")
def mod(call: Call, left: Tensor, right: Tensor) -> Tensor:
    right = right if right.is_floating_point() else _divisor(call, right)
    if not call.get("fmod", 0):
        return torch.remainder(left, right)
    if left.is_floating_point():
        return torch.fmod(left, right)
    # litert-torch 0.10 divides integers as floats here.
    return left - torch.div(left, right, rounding_mode="trunc") * right


def _divisor(call: Call, value: Tensor) -> Tensor:
    """Loading runs on zeros, where torch would raise; what data divides by zero is undefined in ONNX."""
    return value if call.constant(1) is not None else torch.where(value == 0, torch.ones_like(value), value)


@operator("BitShift", since=11)
def bit_shift(call: Call, value: Tensor, distance: Tensor) -> Tensor:
    """By powers of two at run time: litert-torch 0.10 has no shifts. Past the type's width everything is shifted out."""
    leftwards = call.get("direction") == "LEFT"
    if not call.carries:
        return (torch.bitwise_left_shift if leftwards else torch.bitwise_right_shift)(value, distance)
    # Of more bits than LiteRT has, 31. Of 32 the last is the sign: a product wraps around, a quotient is all sign.
    bits = min(width(call.kind(0)), 32 if leftwards and value.dtype == torch.int32 else 31)
    inside = (distance >= 0) & (distance < bits)
    powers = torch.tensor([1 << bit for bit in range(31)] + [-(1 << 31)], dtype=value.dtype)
    power = torch.index_select(powers, 0, torch.where(inside, distance, 0).reshape(-1)).reshape(
        distance.shape
    )
    if leftwards:
        return torch.where(inside, value * power, 0)
    gone = torch.where(value < 0, -1, 0).to(value.dtype)
    return torch.where(inside, torch.div(value, power, rounding_mode="floor"), gone)


@operator("BitwiseAnd", "BitwiseOr", since=18)
def bitwise(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """LiteRT has xor alone: a + b = (a ^ b) + 2 (a & b), in halves of the bits, whose sums fit."""
    both = call.op_type == "BitwiseAnd"
    if not call.carries:
        return (torch.bitwise_and if both else torch.bitwise_or)(left, right)
    if width(call.kind(0)) <= 16:
        return _joined(left, right, both=both)
    highs = [torch.div(value, 1 << 16, rounding_mode="floor") for value in (left, right)]
    lows = [value - high * (1 << 16) for value, high in zip((left, right), highs, strict=True)]
    return _joined(*highs, both=both) * (1 << 16) + _joined(*lows, both=both)


def _joined(left: Tensor, right: Tensor, *, both: bool) -> Tensor:
    different = torch.bitwise_xor(left, right)
    common = torch.div(left + right - different, 2, rounding_mode="floor")
    return common if both else common + different


@operator("IsInf", since=10)
def is_infinite(call: Call, value: Tensor) -> Tensor:
    above, below = call.get("detect_positive", 1), call.get("detect_negative", 1)
    if above and below:
        return torch.isinf(value)
    if not above and not below:
        return torch.zeros_like(value, dtype=torch.bool)
    return value == (float("inf") if above else float("-inf"))


@operator("Selu")
def selu(call: Call, value: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(value > 0, value, alpha * (torch.exp(value) - 1))


@operator("ThresholdedRelu", since=10)
def thresholded_relu(call: Call, value: Tensor) -> Tensor:
    return torch.where(value > call.get("alpha", 1.0), value, torch.zeros_like(value))


@operator("Shrink", since=9)
def shrink(call: Call, value: Tensor) -> Tensor:
    limit, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    inner = torch.where(value > limit, value - bias, torch.zeros_like(value))
    return torch.where(value < -limit, value + bias, inner).to(value.dtype)


@operator("Pow")
def power(_call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the base's type."""
    return torch.pow(base, exponent).to(base.dtype)


@operator("And", "Or", "Xor")
def logical(call: Call, left: Tensor, right: Tensor) -> Tensor:
    functions = {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.ne}
    return functions[call.op_type](left, right)


@operator("Not")
def logical_not(_call: Call, value: Tensor) -> Tensor:
    return torch.logical_not(value)


@operator("Max", "Min", "Sum", "Mean")
def variadic(call: Call, *values: Tensor) -> Tensor:
    if call.op_type == "Max":
        return reduce(torch.maximum, values)
    if call.op_type == "Min":
        return reduce(torch.minimum, values)
    total = reduce(torch.add, values)
    return total / len(values) if call.op_type == "Mean" else total


@operator("Where")
def where(_call: Call, condition: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.where(condition, left, right)


@operator("Clip")
def clip_attributes(call: Call, value: Tensor) -> Tensor:
    return torch.clamp(value, call.get("min"), call.get("max"))


@operator("Clip", since=11)
def clip(call: Call, value: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds known at load time become numbers, which converters turn into ReLU6 and the like."""
    bounds = [call.constant(1), call.constant(2)]
    if (low is None or bounds[0] is not None) and (high is None or bounds[1] is not None):
        numbers = [None if bound is None else bound.reshape(-1)[0].item() for bound in bounds]
        return value if numbers == [None, None] else torch.clamp(value, numbers[0], numbers[1])
    return torch.clamp(value, low, high)


@operator("LeakyRelu")
def leaky_relu(call: Call, value: Tensor) -> Tensor:
    return functional.leaky_relu(value, call.get("alpha", 0.01))


@operator("Elu")
def elu(call: Call, value: Tensor) -> Tensor:
    return functional.elu(value, call.get("alpha", 1.0))


@operator("PRelu")
def prelu(call: Call, value: Tensor, slope: Tensor) -> Tensor:
    """Before opset 7 the slopes are one for each channel."""
    if call.opset < 7 and slope.dim() == 1:
        slope = slope.reshape([1, -1, *[1] * (value.dim() - 2)])
    return torch.where(value < 0, value * slope, value)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, value: Tensor) -> Tensor:
    """By ReLU6, which LiteRT fuses into what comes before and quantizes; it has no int8 clip to 0..1."""
    return functional.relu6(value * (6 * call.get("alpha", 0.2)) + 6 * call.get("beta", 0.5)) * (1 / 6)


# HardSwish, Gelu and LayerNormalization are read at any opset: `graph.patterns` writes them into older graphs.
@operator("HardSwish")
def hard_swish(_call: Call, value: Tensor) -> Tensor:
    return functional.hardswish(value)


@operator("Gelu")
def gelu(call: Call, value: Tensor) -> Tensor:
    return functional.gelu(value, approximate=call.get("approximate", "none"))


@operator("Mish", since=18)
def mish(_call: Call, value: Tensor) -> Tensor:
    return functional.mish(value)


@operator("Softmax", "LogSoftmax", since=13)
def softmax(call: Call, value: Tensor) -> Tensor:
    function = torch.softmax if call.op_type == "Softmax" else torch.log_softmax
    return function(value, call.get("axis", -1))


@operator("Softmax", "LogSoftmax")
def softmax_flattened(call: Call, value: Tensor) -> Tensor:
    """Before opset 13: over all axes from `axis` on, taken as one."""
    axis = call.get("axis", 1) % max(value.dim(), 1)
    function = torch.softmax if call.op_type == "Softmax" else torch.log_softmax
    return function(value.flatten(axis), -1).reshape(value.shape)


@operator("Cast")
def cast(call: Call, value: Tensor) -> Tensor:
    return value.to(torch_dtype(call, call.get("to")))


@operator("BitCast", since=26)
def bit_cast(call: Call, value: Tensor) -> Tensor:
    have, wanted = call.kind(0), kind_of(call, call.get("to"))
    if not call.carries:
        return value.view(wanted)
    if have.is_floating_point or wanted.is_floating_point:
        if torch.float64 in (have, wanted):
            raise call.unsupported("64-bit floats, of which float32 carries half the bits")
        return value.to(have).view(wanted)
    # Integers of one width differ in how they wrap around.
    return value.to(carrier(wanted))


@operator("CastLike", since=15)
def cast_like(_call: Call, value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype)


@operator("Identity", "Dropout")
def identity(call: Call, value: Tensor, *_: Any) -> Any:
    """Dropout at inference; its optional mask lets everything through."""
    return value if call.outputs == 1 else (value, torch.ones_like(value, dtype=torch.bool))
