"""Normalizations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.registry import Call, operator


@operator("BatchNormalization")
def batch_norm(call: Call, value: Tensor, *parameters: Tensor) -> Any:
    scale, bias, mean, variance = parameters
    if call.get("training_mode", 0):
        return _by_the_batch(call, value, parameters)
    return functional.batch_norm(value, mean, variance, scale, bias, eps=call.get("epsilon", 1e-5))


def _by_the_batch(call: Call, value: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As exported from a module in training: by the mean and spread of what is given, and the running ones beside."""
    scale, bias, mean, variance = parameters
    axes, along = [0, *range(2, value.dim())], [1, -1, *[1] * (value.dim() - 2)]
    own = value.mean(axes, keepdim=True)
    centred = value - own
    spread = (centred * centred).mean(axes, keepdim=True)
    scaled = centred / torch.sqrt(spread + call.get("epsilon", 1e-5))
    share = call.get("momentum", 0.9)
    return (
        scaled * scale.reshape(along) + bias.reshape(along),
        mean * share + own.reshape(-1) * (1 - share),
        variance * share + spread.reshape(-1) * (1 - share),
    )[: call.outputs]


@operator("InstanceNormalization")
def instance_norm(call: Call, value: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = list(range(2, value.dim()))
    centred = value - value.mean(axes, keepdim=True)
    spread = (centred * centred).mean(axes, keepdim=True)
    along = [1, -1, *[1] * len(axes)]
    scaled = centred / torch.sqrt(spread + call.get("epsilon", 1e-5))
    return scaled * scale.reshape(along) + bias.reshape(along)


@operator("LayerNormalization")
def layer_norm(call: Call, value: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = call.get("axis", -1) % value.dim()
    shape = list(value.shape[axis:])
    scale = scale.expand(shape)
    bias = None if bias is None else bias.expand(shape)
    if call.outputs > 1:
        axes = list(range(axis, value.dim()))
        wide = value.to(torch.float32)
        centred = wide - wide.mean(axes, keepdim=True)
        inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
        scaled = (centred * inverse).to(value.dtype) * scale
        results = (scaled if bias is None else scaled + bias, wide.mean(axes, keepdim=True), inverse)
        return results[: call.outputs]
    # Spelled out: litert-torch 0.10 puts five reshapes around torch's own layer_norm.
    over = list(range(axis, value.dim()))
    centred = value - value.mean(over, keepdim=True)
    spread = (centred * centred).mean(over, keepdim=True)
    scaled = centred * torch.rsqrt(spread + call.get("epsilon", 1e-5)) * scale
    return scaled if bias is None else scaled + bias


@operator("LRN")
def local_response_norm(call: Call, value: Tensor) -> Tensor:
    """Over `size` neighbouring channels, one more behind than before where it is even."""
    size = call.get("size")
    before, after = (size - 1) // 2, size // 2
    channels = value.shape[1]
    squares = functional.pad(value * value, [0, 0] * (value.dim() - 2) + [before, after])
    total = sum(squares.narrow(1, offset, channels) for offset in range(size))
    base = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total
    return value / torch.pow(base, call.get("beta", 0.75))


@operator("LpNormalization")
def lp_norm(call: Call, value: Tensor) -> Tensor:
    """A vector of zeros stays zeros."""
    axis = call.get("axis", -1)
    if call.get("p", 2) == 1:
        norm = value.abs().sum(axis, keepdim=True)
    else:
        norm = (value * value).sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(value), value / norm)


@operator("MeanVarianceNormalization", since=9)
def mean_variance_norm(call: Call, value: Tensor) -> Tensor:
    axes = list(call.get("axes") or [0, 2, 3])
    centred = value - value.mean(axes, keepdim=True)
    return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + 1e-9)
