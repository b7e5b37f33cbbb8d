"""Pre-processing operations: one raw sample in, one tensor out.

Always true
 1. The same bytes give the same tensor on every machine: integer coordinates, float32 elementwise arithmetic in a
    fixed order, no reduction whose order a CPU could choose.
 2. A value that an operation cannot take is the caller's mistake (InputError), never the engine's.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.errors import InputError
from edgekit.tensors import Array
from edgekit.transforms.base import Floats, Operation, Size, as_float32, checked_axis, describe

Numbers = Annotated[tuple[float, ...], Meta(min_length=1)]
Axes = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]


class PreOperation(Operation, frozen=True):
    def apply(self, value: Array) -> Array:
        """One sample in, one out. Raises: InputError if the value does not suit."""
        raise NotImplementedError


class Cast(PreOperation, frozen=True):
    """To another type. Floats become integers by rounding half to even and saturating; NaN becomes 0."""

    dtype: Literal["bool", "uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "float32"]
    example: ClassVar[str] = 'dtype = "float32"'

    def apply(self, value: Array) -> Array:
        wanted = np.dtype(self.dtype)
        if not np.issubdtype(wanted, np.integer) or value.dtype == np.bool_:
            return value.astype(wanted)
        low, high = _bounds(wanted)
        if np.issubdtype(value.dtype, np.integer):
            least, most = _bounds(value.dtype)
            clipped: Array = np.clip(value, max(low, least), min(high, most))
            return clipped.astype(wanted)
        real = np.rint(np.nan_to_num(value.astype(np.float64), nan=0.0))
        # float(2**63 - 1) rounds up to 2**63, which no int64 holds.
        top = float(high) if float(high) <= high else math.nextafter(float(high), 0)
        saturated: Array = np.clip(real, float(low), top).astype(wanted)
        return saturated


class Waveform(PreOperation, frozen=True):
    """A sound of so many samples a second: float32 (frames, channels) or (frames,) to (frames,), channels averaged."""

    sample_rate: Annotated[int, Meta(ge=1)]
    example: ClassVar[str] = "sample_rate = 16000"

    def apply(self, value: Array) -> Array:
        if value.ndim not in (1, 2) or not value.size or value.dtype.kind != "f":
            raise InputError(f"waveform: takes float frames x channels, not {describe(value)}", "wrong-shape")
        wave = as_float32(value)
        if wave.ndim == 1:
            return wave
        # In the order of the channels, so that every machine rounds alike.
        total = wave[:, 0].copy()
        for channel in range(1, wave.shape[1]):
            total += wave[:, channel]
        return total / np.float32(wave.shape[1])


class Scale(PreOperation, frozen=True):
    """value · factor + offset, in float32."""

    factor: float
    offset: float = 0.0
    example: ClassVar[str] = "factor = 0.00392156862745098, offset = 0.0"

    def apply(self, value: Array) -> Array:
        return as_float32(value) * np.float32(self.factor) + np.float32(self.offset)


class Normalize(PreOperation, frozen=True):
    """(value - mean) / std, in float32; one number, or one for each index along `axis`."""

    mean: Numbers
    std: Numbers
    axis: int = -1
    example: ClassVar[str] = "mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225], axis = -1"

    def problem(self) -> str:
        if len(self.mean) != len(self.std):
            return f"mean has {len(self.mean)} numbers and std {len(self.std)}; they need as many"
        return "std holds a 0, which nothing can be divided by" if 0 in self.std else ""

    def apply(self, value: Array) -> Array:
        axis = checked_axis(value, self.axis, "normalize")
        count = len(self.mean)
        if count not in (1, value.shape[axis]):
            raise InputError(
                f"normalize has {count} means, but axis {self.axis} of {describe(value)} has {value.shape[axis]}",
                "wrong-shape",
            )
        along = tuple(count if index == axis else 1 for index in range(value.ndim))
        mean = np.asarray(self.mean, np.float32).reshape(along)
        std = np.asarray(self.std, np.float32).reshape(along)
        return (as_float32(value) - mean) / std


class Resize(PreOperation, frozen=True):
    """An HxW or HxWxC value to another size; pixel centres at half integers, edges repeated, no antialiasing.

    `nearest` keeps the type, `bilinear` gives float32. With `keep_ratio` the result fits inside height x width
    (`pad_to` fills the rest).
    """

    height: Size
    width: Size
    mode: Literal["nearest", "bilinear"] = "bilinear"
    keep_ratio: bool = False
    example: ClassVar[str] = 'height = 224, width = 224, mode = "bilinear"'

    def apply(self, value: Array) -> Array:
        _image(value, "resize")
        height, width = self._target(value.shape[0], value.shape[1])
        if self.mode == "nearest":
            return value[_nearest(value.shape[0], height)][:, _nearest(value.shape[1], width)]
        rows = _lerp(as_float32(value), height, axis=0)
        return _lerp(rows, width, axis=1)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not self.keep_ratio:
            return self.height, self.width
        # In integers, so that no rounding of a ratio decides a size: the tighter side fills, the other follows.
        if self.height * width <= self.width * height:
            return self.height, max(1, (2 * width * self.height + height) // (2 * height))
        return max(1, (2 * height * self.width + width) // (2 * width)), self.width


class Grayscale(PreOperation, frozen=True):
    """HxWx3 to HxWx1 float32 by the luma weights of ITU-R BT.601; HxW gains the axis."""

    order: Literal["rgb", "bgr"] = "rgb"
    example: ClassVar[str] = 'order = "rgb"'

    def apply(self, value: Array) -> Array:
        _image(value, "grayscale")
        if value.ndim == 2:
            return as_float32(value)[:, :, None]
        if value.shape[2] == 1:
            return as_float32(value)
        if value.shape[2] != 3:
            raise InputError(f"grayscale needs 1 or 3 channels last, got {describe(value)}", "wrong-shape")
        red, blue = (0, 2) if self.order == "rgb" else (2, 0)
        pixels = as_float32(value)
        gray = pixels[:, :, red] * np.float32(0.299) + pixels[:, :, 1] * np.float32(0.587)
        luma: Floats = gray + pixels[:, :, blue] * np.float32(0.114)
        return luma[:, :, None]


class FlipChannels(PreOperation, frozen=True):
    """The order along `axis` turned round: RGB to BGR and back."""

    axis: int = -1
    example: ClassVar[str] = "axis = -1"

    def apply(self, value: Array) -> Array:
        return np.flip(value, checked_axis(value, self.axis, "flip_channels"))


class Transpose(PreOperation, frozen=True):
    """Axes in another order, as numpy's `transpose`: [2, 0, 1] takes HxWxC to CxHxW."""

    axes: Axes
    example: ClassVar[str] = "axes = [2, 0, 1]"

    def problem(self) -> str:
        if sorted(self.axes) != list(range(len(self.axes))):
            return f"axes {list(self.axes)} do not name each of 0 to {len(self.axes) - 1} once"
        return ""

    def apply(self, value: Array) -> Array:
        if value.ndim != len(self.axes):
            raise InputError(f"transpose orders {len(self.axes)} axes, got {describe(value)}", "wrong-shape")
        return value.transpose(self.axes)


class Reshape(PreOperation, frozen=True):
    """Another shape of the same size; one -1 takes what is left."""

    shape: tuple[Annotated[int, Meta(ge=-1)], ...]
    example: ClassVar[str] = "shape = [1, -1]"

    def problem(self) -> str:
        return "shape holds more than one -1" if self.shape.count(-1) > 1 else ""

    def apply(self, value: Array) -> Array:
        try:
            return value.reshape(self.shape)
        except ValueError as error:
            raise InputError(
                f"reshape to {list(self.shape)} does not suit {describe(value)}", "wrong-shape"
            ) from error


class ExpandDims(PreOperation, frozen=True):
    """A new axis of one entry."""

    axis: int = 0
    example: ClassVar[str] = "axis = 0"

    def apply(self, value: Array) -> Array:
        if not -value.ndim - 1 <= self.axis <= value.ndim:
            raise InputError(
                f"expand_dims at axis {self.axis} does not suit {describe(value)}", "wrong-shape"
            )
        return np.expand_dims(value, self.axis)


class Clip(PreOperation, frozen=True):
    """Values held between `low` and `high`, in float32."""

    low: float
    high: float
    example: ClassVar[str] = "low = -1.0, high = 1.0"

    def problem(self) -> str:
        return f"low {self.low} is above high {self.high}" if self.low > self.high else ""

    def apply(self, value: Array) -> Array:
        clipped: Array = np.clip(as_float32(value), np.float32(self.low), np.float32(self.high))
        return clipped


class CenterCrop(PreOperation, frozen=True):
    """The middle height x width of an HxW or HxWxC value that is at least as large."""

    height: Size
    width: Size
    example: ClassVar[str] = "height = 224, width = 224"

    def apply(self, value: Array) -> Array:
        _image(value, "center_crop")
        top, left = (value.shape[0] - self.height) // 2, (value.shape[1] - self.width) // 2
        if top < 0 or left < 0:
            raise InputError(
                f"center_crop to {self.height}x{self.width} needs more than {describe(value)}", "wrong-shape"
            )
        return value[top : top + self.height, left : left + self.width]


class PadTo(PreOperation, frozen=True):
    """Filled up with `value` to `shape`, one size an axis, where 0 leaves an axis as it is."""

    shape: Axes
    value: float = 0.0
    align: Literal["start", "center"] = "start"
    example: ClassVar[str] = 'shape = [48, 192, 0], value = 0.0, align = "start"'

    def apply(self, value: Array) -> Array:
        wanted = self.shape
        if value.ndim != len(wanted) or any(
            size and have > size for size, have in zip(wanted, value.shape, strict=False)
        ):
            raise InputError(
                f"pad_to {list(wanted)} does not suit {describe(value)}, which must be no larger",
                "wrong-shape",
            )
        missing = [size - have if size else 0 for size, have in zip(wanted, value.shape, strict=True)]
        before = [gap // 2 if self.align == "center" else 0 for gap in missing]
        widths = [(left, gap - left) for left, gap in zip(before, missing, strict=True)]
        return np.pad(value, widths, constant_values=np.asarray(self.value).astype(value.dtype))


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _image(value: Array, op: str) -> None:
    if value.ndim not in (2, 3) or 0 in value.shape:
        raise InputError(f"{op} takes HxW or HxWxC, got {describe(value)}", "wrong-shape")


def _nearest(have: int, want: int) -> NDArray[np.int64]:
    """Source index of each target index: floor((i + 1/2) * have / want), in integers."""
    return (2 * np.arange(want, dtype=np.int64) + 1) * have // (2 * want)


def _lerp(value: Floats, want: int, *, axis: int) -> Floats:
    """Linear interpolation along one axis; source position (i + 1/2) * have / want - 1/2, held inside the edges."""
    have = value.shape[axis]
    unit = 2 * want
    position = np.clip((2 * np.arange(want, dtype=np.int64) + 1) * have - want, 0, unit * (have - 1))
    low = position // unit
    along = tuple(want if index == axis else 1 for index in range(value.ndim))
    weight = ((position - low * unit) / unit).astype(np.float32).reshape(along)
    first = np.take(value, low, axis=axis)
    second = np.take(value, np.minimum(low + 1, have - 1), axis=axis)
    between: Floats = first * (np.float32(1) - weight) + second * weight
    return between


PRE: Mapping[str, type[PreOperation]] = {
    "cast": Cast,
    "scale": Scale,
    "normalize": Normalize,
    "resize": Resize,
    "grayscale": Grayscale,
    "flip_channels": FlipChannels,
    "transpose": Transpose,
    "reshape": Reshape,
    "expand_dims": ExpandDims,
    "clip": Clip,
    "center_crop": CenterCrop,
    "pad_to": PadTo,
    "waveform": Waveform,
}
