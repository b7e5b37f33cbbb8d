"""Layers: convolution, pooling, normalization, linear, resizing, recurrence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from converters.prepare.importer.registry import Call, operator

# Longest sequence that a recurrent layer is unrolled for.
MAX_STEPS = 256
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("Conv")
def conv(call: Call, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = value.dim() - 2
    strides, dilations = _per_axis(call, "strides", rank), _per_axis(call, "dilations", rank)
    before, after = _pads(call, value.shape[2:], weight.shape[2:], strides, dilations)
    padding: Any = before
    if before != after:
        value, padding = functional.pad(value, _widths(before, after)), 0
    return _CONV[rank](value, weight, bias, strides, padding, dilations, call.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = value.dim() - 2
    strides, dilations = _per_axis(call, "strides", rank), _per_axis(call, "dilations", rank)
    extra = list(call.get("output_padding") or [0] * rank)
    kernel = weight.shape[2:]
    full = [
        strides[axis] * (value.shape[2 + axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        for axis in range(rank)
    ]
    before, after = _transposed_pads(call, full, value.shape[2:], strides)
    if before == after:
        return _CONV_TRANSPOSE[rank](
            value, weight, bias, strides, before, extra, call.get("group", 1), dilations
        )
    whole = _CONV_TRANSPOSE[rank](value, weight, bias, strides, 0, extra, call.get("group", 1), dilations)
    for axis in range(rank):
        whole = whole.narrow(2 + axis, before[axis], full[axis] - before[axis] - after[axis])
    return whole


@operator("MaxPool")
def max_pool(call: Call, value: Tensor) -> Tensor:
    if call.outputs > 1:
        raise call.unsupported("an output of indices")
    call.require("storage_order", 0)
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations = _per_axis(call, "strides", rank), _per_axis(call, "dilations", rank)
    before, after = _pads(call, value.shape[2:], kernel, strides, dilations)
    padding: Any = before
    # torch pads by half a kernel at most, and alike on both sides.
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        value, padding = functional.pad(value, _widths(before, after), value=float("-inf")), 0
    return _MAX_POOL[rank](
        value, kernel, strides, padding, dilations, ceil_mode=bool(call.get("ceil_mode", 0))
    )


@operator("AveragePool")
def average_pool(call: Call, value: Tensor) -> Tensor:
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides = _per_axis(call, "strides", rank)
    call.require("dilations", [1] * rank)
    before, after = _pads(call, value.shape[2:], kernel, strides, [1] * rank)
    ceil, counts_pad = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    pool = _AVERAGE_POOL[rank]
    if before == after and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True)):
        return pool(value, kernel, strides, before, ceil_mode=ceil, count_include_pad=counts_pad)
    padded = functional.pad(value, _widths(before, after))
    averaged = pool(padded, kernel, strides, 0, ceil_mode=ceil)
    if counts_pad:
        return averaged
    # Divide by the share of each window that is not padding.
    inside = functional.pad(torch.ones_like(value), _widths(before, after))
    return averaged / pool(inside, kernel, strides, 0, ceil_mode=ceil)


@operator("GlobalAveragePool")
def global_average_pool(_call: Call, value: Tensor) -> Tensor:
    return value.mean(list(range(2, value.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_call: Call, value: Tensor) -> Tensor:
    return value.amax(list(range(2, value.dim())), keepdim=True)


@operator("BatchNormalization")
def batch_norm(call: Call, value: Tensor, *parameters: Tensor) -> Tensor:
    call.require("training_mode", 0)
    scale, bias, mean, variance = parameters
    return functional.batch_norm(value, mean, variance, scale, bias, eps=call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(call: Call, value: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = list(range(2, value.dim()))
    centred = value - value.mean(axes, keepdim=True)
    spread = (centred * centred).mean(axes, keepdim=True)
    along = [1, -1, *[1] * len(axes)]
    scaled = centred / torch.sqrt(spread + call.get("epsilon", 1e-5))
    return scaled * scale.reshape(along) + bias.reshape(along)


@operator("LayerNormalization", since=17)
def layer_norm(call: Call, value: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if call.outputs > 1:
        raise call.unsupported("outputs of mean and deviation")
    axis = call.get("axis", -1) % value.dim()
    shape = list(value.shape[axis:])
    scale = scale.expand(shape)
    bias = None if bias is None else bias.expand(shape)
    return functional.layer_norm(value, shape, scale, bias, call.get("epsilon", 1e-5))


@operator("Gemm")
def gemm(call: Call, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    left = left.t() if call.get("transA", 0) else left
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if call.get("transB", 0) and alpha == beta == 1.0 and (bias is None or bias.dim() == 1):
        return functional.linear(left, right, bias)
    product = torch.matmul(left, right.t() if call.get("transB", 0) else right)
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + (bias if beta == 1.0 else bias * beta)


@operator("MatMul")
def matmul(_call: Call, left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


@operator("Resize", since=11, fixed=(1, 2, 3))
def resize(call: Call, value: Tensor, *_: Any) -> Tensor:
    scales, sizes = call.constant(2), call.ints(3)
    if call.get("axes") is not None or call.get("antialias", 0):
        raise call.unsupported("axes or antialias")
    call.require("keep_aspect_ratio_policy", "stretch")
    if not sizes:
        if scales is None or not scales.size:
            raise call.unsupported("sizes computed from data")
        sizes = [int(np.floor(size * scale)) for size, scale in zip(value.shape, scales, strict=True)]
    return _resized(call, value, sizes)


@operator("Upsample", since=9, fixed=(1,))
def upsample(call: Call, value: Tensor, *_: Any) -> Tensor:
    """Deprecated since opset 10; coordinates as Resize's `asymmetric`."""
    scales = call.constant(1)
    if scales is None:
        raise call.unsupported("scales computed from data")
    sizes = [int(np.floor(size * scale)) for size, scale in zip(value.shape, scales, strict=True)]
    attributes = {
        **call.attributes,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return _resized(Call("Upsample", attributes, call.constants, 1, call.opset), value, sizes)


def _resized(call: Call, value: Tensor, sizes: Sequence[int]) -> Tensor:
    """By `interpolate` where its rule is the operator's, otherwise refused."""
    if list(sizes[:2]) != list(value.shape[:2]):
        raise call.unsupported("another batch or channel count")
    mode = call.get("mode", "nearest")
    coordinates = call.get("coordinate_transformation_mode", "half_pixel")
    target = list(sizes[2:])
    whole = all(new % old == 0 for new, old in zip(target, value.shape[2:], strict=True))
    names = {1: "linear", 2: "bilinear", 3: "trilinear"}
    rank = value.dim() - 2
    if mode == "nearest":
        rounding = call.get("nearest_mode", "round_prefer_floor")
        # A whole factor with floored asymmetric, or with rounded half-pixel coordinates, repeats each entry.
        repeats = whole and (
            (coordinates == "asymmetric" and rounding == "floor")
            or (coordinates in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round"))
        )
        if repeats or (coordinates == "asymmetric" and rounding == "floor"):
            return functional.interpolate(value, size=target, mode="nearest")
    elif mode == "linear" and rank in names:
        if coordinates == "align_corners":
            return functional.interpolate(value, size=target, mode=names[rank], align_corners=True)
        if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and 1 not in target):
            return functional.interpolate(value, size=target, mode=names[rank], align_corners=False)
    raise call.unsupported(f"mode = {mode!r} and coordinate_transformation_mode = {coordinates!r}")


@operator("LSTM")
def lstm(call: Call, value: Tensor, weights: Tensor, recurrence: Tensor, *rest: Tensor | None) -> Any:
    """Unrolled over its steps, gates in ONNX's order (input, output, forget, cell)."""
    bias, lengths, hidden, cell, peepholes = (*rest, *[None] * 5)[:5]
    if lengths is not None or peepholes is not None or call.get("input_forget", 0) or call.get("layout", 0):
        raise call.unsupported("sequence lengths, peepholes, input_forget or layout 1")
    call.require("activations", ["Sigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh", "Tanh"] * 2)
    if call.get("clip") is not None:
        raise call.unsupported("clip")
    steps, batch = value.shape[:2]
    if steps > MAX_STEPS:
        raise call.unsupported(f"{steps} steps (at most {MAX_STEPS} are unrolled)")
    outputs, hiddens, cells = [], [], []
    for direction in range(weights.shape[0]):
        backwards = call.get("direction") == "reverse" or direction == 1
        size = recurrence.shape[2]
        start = torch.zeros(batch, size) if hidden is None else hidden[direction]
        memory = torch.zeros(batch, size) if cell is None else cell[direction]
        offset = None if bias is None else bias[direction][: 4 * size] + bias[direction][4 * size :]
        rows: list[Tensor] = []
        for step in reversed(range(steps)) if backwards else range(steps):
            gates = functional.linear(value[step], weights[direction], offset)
            gates = gates + functional.linear(start, recurrence[direction])
            entry, leave, forget, fresh = torch.split(gates, size, dim=1)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(entry) * torch.tanh(fresh)
            start = torch.sigmoid(leave) * torch.tanh(memory)
            rows.append(start)
        outputs.append(torch.stack(rows[::-1] if backwards else rows))
        hiddens.append(start)
        cells.append(memory)
    results = (torch.stack(outputs, 1), torch.stack(hiddens), torch.stack(cells))
    return results[0] if call.outputs == 1 else results[: call.outputs]


def _per_axis(call: Call, name: str, rank: int) -> list[int]:
    return list(call.get(name) or [1] * rank)


def _widths(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads in torch's order: last axis first."""
    return [width for pair in reversed(list(zip(before, after, strict=True))) for width in pair]


def _pads(
    call: Call,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Pads before and after each spatial axis, explicit or by `auto_pad`."""
    rank, auto = len(kernel), call.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = list(call.get("pads") or [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


def _transposed_pads(
    call: Call, full: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, auto = len(full), call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = list(call.get("pads") or [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    target = list(wanted)[-rank:] if wanted else [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [max(0, have - want) for have, want in zip(full, target, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)
