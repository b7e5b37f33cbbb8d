"""Resize and Upsample in all their modes.

A mode that torch's `interpolate` has goes there, because converters have kernels for it. Everything else is separable:
along each axis the result is a product with a matrix that is known at load time, or a selection for `nearest`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.registry import Call, operator

_NAMES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class _Axis:
    """One axis to resize: `scale` as given, or the quotient of the sizes; `crop` in shares of the input."""

    axis: int
    size: int
    target: int
    scale: float
    crop: tuple[float, float]


@operator("Resize", since=11, fixed=(1, 2, 3))
def resize(call: Call, value: Tensor, *_: Any) -> Tensor:
    roi, scales, sizes = call.constant(1), call.constant(2), call.ints(3)
    named = call.get("axes")
    axes = list(range(value.dim())) if named is None else [axis % value.dim() for axis in named]
    old = [value.shape[axis] for axis in axes]
    if sizes:
        factors = [new / have for new, have in zip(sizes, old, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(factors)
            sizes = [int(np.floor(factors[0] * have + 0.5)) for have in old]
    elif scales is not None and scales.size:
        factors = [float(scale) for scale in scales]
        sizes = [int(np.floor(have * factor)) for have, factor in zip(old, factors, strict=True)]
    else:
        raise call.unsupported("neither scales nor sizes")
    crops = [(0.0, 1.0)] * len(axes)
    if call.get("coordinate_transformation_mode") == "tf_crop_and_resize" and roi is not None and roi.size:
        crops = [(float(roi[index]), float(roi[index + len(axes)])) for index in range(len(axes))]
    return _resized(
        call, value, [_Axis(*entry) for entry in zip(axes, old, sizes, factors, crops, strict=True)]
    )


@operator("Resize", since=10, fixed=(1,))
@operator("Upsample", since=9, fixed=(1,))
def upsample(call: Call, value: Tensor, *_: Any) -> Tensor:
    """Coordinates as Resize's `asymmetric`."""
    scales = call.constant(1)
    if scales is None:
        raise call.unsupported("scales computed from data")
    return _scaled(call, value, [float(scale) for scale in scales])


@operator("Upsample", since=7)
def upsample_attribute(call: Call, value: Tensor) -> Tensor:
    return _scaled(call, value, call.get("scales"))


def _scaled(call: Call, value: Tensor, scales: Sequence[float]) -> Tensor:
    attributes = {
        **call.attributes,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    axes = [
        _Axis(axis, size, int(np.floor(size * scale)), scale, (0.0, 1.0))
        for axis, (size, scale) in enumerate(zip(value.shape, scales, strict=True))
    ]
    return _resized(Call(call.op_type, attributes, call.constants, 1, call.opset), value, axes)


def _resized(call: Call, value: Tensor, axes: Sequence[_Axis]) -> Tensor:
    coordinates = call.get("coordinate_transformation_mode", "half_pixel")
    crops = coordinates == "tf_crop_and_resize"
    axes = [axis for axis in axes if crops or axis.size != axis.target or axis.scale != 1.0]
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        result = _nearest(call, value, axes)
    else:
        result = _by_torch(call, value, axes)
        if result is None:
            result = value if value.is_floating_point() else value.to(torch.float32)
            for axis in reversed(axes):
                result = _product(result, torch.from_numpy(_weights(call, axis)).to(result.dtype), axis.axis)
            result = result.to(value.dtype)
    return _extrapolated(call, result, axes) if crops else result


def _by_torch(call: Call, value: Tensor, axes: Sequence[_Axis]) -> Tensor | None:
    """By `interpolate` where its rule is the operator's, else None."""
    rank = value.dim() - 2
    if call.get("mode") != "linear" or call.get("antialias", 0) or rank not in _NAMES:
        return None
    if any(axis.axis < 2 or axis.target != axis.size * axis.scale for axis in axes):
        return None
    target = list(value.shape[2:])
    for axis in axes:
        target[axis.axis - 2] = axis.target
    coordinates = call.get("coordinate_transformation_mode", "half_pixel")
    if coordinates == "align_corners":
        return functional.interpolate(value, size=target, mode=_NAMES[rank], align_corners=True)
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and 1 not in target):
        return functional.interpolate(value, size=target, mode=_NAMES[rank], align_corners=False)
    return None


def _nearest(call: Call, value: Tensor, axes: Sequence[_Axis]) -> Tensor:
    chosen = {axis.axis: _nearest_places(call, axis) for axis in axes}
    factors = {axis: _repeats(places, value.shape[axis]) for axis, places in chosen.items()}
    if value.is_floating_point() and chosen and all(axis >= 2 and factors[axis] for axis in chosen):
        repeated = _repeated(value, factors)
        if repeated is not None:
            return repeated
    for axis, places in chosen.items():
        value = _selected(value, axis, places)
    return value


def _repeated(value: Tensor, factors: Mapping[int, int]) -> Tensor | None:
    """Each entry as often as its axis' factor says; None for a rank that litert-torch has no operator for.

    litert-torch 0.10 makes one RESIZE_NEAREST_NEIGHBOR of it, with half-pixel centres: only for whole factors is that
    the entry that torch takes.
    """
    size = [value.shape[axis] * factors.get(axis, 1) for axis in range(2, value.dim())]
    if value.dim() == 3:
        return functional.interpolate(value.unsqueeze(2), size=[1, *size], mode="nearest").squeeze(2)
    return functional.interpolate(value, size=size, mode="nearest") if value.dim() == 4 else None


def _selected(value: Tensor, axis: int, places: NDArray[np.int64]) -> Tensor:
    """Entries at `places`; as a slice where they lie evenly, which converters have a kernel for."""
    steps = {int(step) for step in np.diff(places)} or {1}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        kept = [slice(None)] * axis + [slice(int(places[0]), int(places[-1]) + 1, step)]
        return value[tuple(kept)]
    return torch.index_select(value, axis, torch.from_numpy(places))


def _nearest_places(call: Call, axis: _Axis) -> NDArray[np.int64]:
    places = _coordinates(call, axis)
    rounding = call.get("nearest_mode", "round_prefer_floor")
    rounded = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }[rounding]
    clipped: NDArray[np.int64] = np.clip(rounded, 0, axis.size - 1).astype(np.int64)
    return clipped


def _repeats(places: NDArray[np.int64], size: int) -> int:
    """How often each entry stands in a row, if all do alike; else 0."""
    factor = len(places) // size
    return factor if factor and np.array_equal(places, np.repeat(np.arange(size), factor)) else 0


def _coordinates(call: Call, axis: _Axis) -> NDArray[np.float64]:
    """Where each output entry lies in the input."""
    index = np.arange(axis.target, dtype=np.float64)
    half = (index + 0.5) / axis.scale - 0.5
    match call.get("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            return half
        case "half_pixel_symmetric":
            adjustment = axis.target / (axis.scale * axis.size)
            return axis.size / 2 * (1 - adjustment) + half
        case "pytorch_half_pixel":
            return half if axis.target > 1 else np.zeros(1)
        case "align_corners":
            width = axis.scale * axis.size
            return index * (axis.size - 1) / (width - 1) if width != 1 else np.zeros(axis.target)
        case "asymmetric":
            return index / axis.scale
        case "tf_crop_and_resize":
            start, end = axis.crop
            if axis.target == 1:
                return np.array([0.5 * (start + end) * (axis.size - 1)])
            return start * (axis.size - 1) + index * (end - start) * (axis.size - 1) / (axis.target - 1)
        case other:
            raise call.unsupported(f"coordinate_transformation_mode = {other!r}")


def _weights(call: Call, axis: _Axis) -> NDArray[np.float64]:
    """Shares of the input's entries in each output entry, `target` by `size`."""
    cubic = call.get("mode") == "cubic"
    stretch = min(axis.scale, 1.0) if call.get("antialias", 0) else 1.0
    reach = int(np.ceil((2 if cubic else 1) / stretch)) + 1
    places = _coordinates(call, axis)
    weights = np.zeros((axis.target, axis.size))
    for row, place in enumerate(places):
        taps = np.arange(int(np.floor(place)) - reach, int(np.floor(place)) + reach + 1)
        distance = np.abs(taps - place) * stretch
        shares = _cubic(distance, call.get("cubic_coeff_a", -0.75)) if cubic else np.clip(1 - distance, 0, 1)
        if call.get("exclude_outside", 0):
            shares = shares * ((taps >= 0) & (taps < axis.size))
        np.add.at(weights[row], np.clip(taps, 0, axis.size - 1), shares / shares.sum())
    return weights


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' kernel. Source: R. Keys (1981), "Cubic convolution interpolation for digital image processing"."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _product(value: Tensor, weights: Tensor, axis: int) -> Tensor:
    if axis == value.dim() - 1:
        return torch.matmul(value, weights.t())
    if axis == value.dim() - 2:
        return torch.matmul(weights, value)
    return torch.matmul(value.movedim(axis, -1), weights.t()).movedim(-1, axis)


def _extrapolated(call: Call, value: Tensor, axes: Sequence[_Axis]) -> Tensor:
    outside = np.zeros(tuple(value.shape), bool)
    for axis in axes:
        places = _coordinates(call, axis)
        along = [1] * value.dim()
        along[axis.axis] = -1
        outside |= ((places < 0) | (places > axis.size - 1)).reshape(along)
    if not outside.any():
        return value
    fill = torch.full_like(value, call.get("extrapolation_value", 0.0))
    return torch.where(torch.from_numpy(outside), fill, value)
