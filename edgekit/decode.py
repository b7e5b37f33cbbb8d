"""Bytes that a person or a program sends, as samples of a bundle's inputs: one module for `edgekit run` and the agent.

| kind | holds |
|---|---|
| `npz` | samples along the first axis, one array per input name; `sequence` ids for stateful models |
| `npy` | one sample of the only input |
| `json` | one sample: an object with one (nested) list per input name, or the bare list of the only input; |
|  | `{"input": [...]}` and `{"inputs": {"NAME": [...]}}` say the same, and may name a sequence beside it |
| `image` | one sample of the only input, for bundles that pre-process it; needs Pillow |

Always true
 1. The same bytes give the same arrays, or the same sentence, whoever asks.
 2. Nothing is unpickled, and a picture is measured before it is unpacked.
 3. No number changes its value unseen: integers neither wrap nor round, floats do not overflow.

States are not inputs here: they start as zeros. Decoding an image is outside the promise that the same bytes give
the same tensor on every machine (decoders differ).
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit.distribution import extra
from edgekit.errors import DataError, InputError
from edgekit.manifest import Manifest, TensorSpec
from edgekit.samples import DAMAGED, Samples, load_npz
from edgekit.tensors import Array, fits
from edgekit.transforms import preprocess

Kind = Literal["npz", "npy", "json", "image"]
# A picture that unpacks to more pixels than this is refused before it is decoded; a telephone's has up to 50 million.
MAX_PIXELS = 50_000_000
# Beside the inputs of a JSON object.
PARAMETERS = ("id", "sequence_id", "sequence_start", "sequence_end")
# Integer type → its smallest and largest value.
_LIMITS: Mapping[str, tuple[int, int]] = {
    f"{sign}int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Decoded:
    """The samples of one body or file, and what a JSON object says beside them."""

    samples: Samples
    parameters: Mapping[str, Any]

    def only(self) -> dict[str, Array]:
        """Raises: InputError if there are several."""
        if len(self.samples) != 1:
            raise InputError(f"{len(self.samples)} samples at once are not taken here; send them one by one")
        return self.samples.sample(0)


def decode(kind: Kind, data: bytes | bytearray, manifest: Manifest, *, stored_only: bool = False) -> Decoded:
    """Raw samples, before pre-processing; `stored_only` refuses a compressed archive, which may unfold to anything.

    Raises: InputError saying what is wrong with the bytes.
    """
    try:
        if kind == "npz":
            return _npz(bytes(data), manifest, stored_only=stored_only)
        return _DECODERS[kind](bytes(data), manifest)
    except DataError as error:
        raise InputError(str(error).removeprefix("data: ")) from error


def exactly(data: Any, dtype: "np.dtype[Any]", name: str) -> Array:
    """Nested lists of JSON numbers as `dtype`, each with its value; floats may lose digits, but never overflow.

    Raises: InputError.
    """
    plain = _rectangular(data, name)
    allowed = {"b": "b", "u": "iuf", "i": "iuf", "f": "iuf"}[dtype.kind]
    if plain.size and plain.dtype.kind not in allowed:
        raise InputError(f"input {name!r}: data is not made of {dtype} values")
    with np.errstate(invalid="ignore", over="ignore"):
        cast: Array = plain.astype(dtype)
    if dtype.kind in "iu" and not _is_same(plain, cast):
        raise InputError(f"input {name!r}: some of the data does not fit {dtype}")
    if dtype.kind == "f" and not np.array_equal(np.isfinite(plain), np.isfinite(cast)):
        raise InputError(f"input {name!r}: some of the data is outside the range of {dtype}")
    return cast


def _is_same(plain: Array, cast: Array) -> bool:
    """Whether a cast to integers kept every value; compared in integers, since a float64 cannot tell 2**63 - 1."""
    low, high = _LIMITS[cast.dtype.name]
    if plain.dtype.kind in "iu":
        return not plain.size or (int(plain.min()) >= low and int(plain.max()) <= high)
    real = plain.astype(np.float64)
    inside = np.isfinite(real) & (real >= float(low)) & (real < float(high) + 1.0)
    return bool(inside.all()) and np.array_equal(np.trunc(real), real)


def _npz(data: bytes, manifest: Manifest, *, stored_only: bool) -> Decoded:
    found = load_npz(
        data,
        manifest.admitted,
        raw=tuple(name for name, steps in manifest.preprocess.items() if steps),
        optional=tuple(pair.input for pair in manifest.state),
        stored_only=stored_only,
    )
    return Decoded(
        Samples({name: _plain(name, array) for name, array in found.inputs.items()}, None, found.sequence), {}
    )


def _npy(data: bytes, manifest: Manifest) -> Decoded:
    spec = _only_input(manifest)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except DAMAGED as error:
        raise InputError(f"not a plain .npy array, or damaged ({error})") from error
    if not isinstance(array, np.ndarray):
        raise InputError("not a plain .npy array: it is an archive of several, as .npz files are")
    return _one_sample({spec.name: _plain(spec.name, array)})


def _plain(name: str, array: Array) -> Array:
    """Numbers in this machine's byte order. Raises: InputError."""
    if array.dtype == object:  # samples of several shapes
        parts = np.empty(len(array), object)
        for index, part in enumerate(array):
            parts[index] = _plain(name, part)
        return parts
    if array.dtype.kind not in "biuf":
        raise InputError(f"input {name!r}: an array of {array.dtype} is not made of numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _json(data: bytes, manifest: Manifest) -> Decoded:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    specs = {spec.name: spec for spec in manifest.admitted}
    given, parameters = _named(value, manifest, specs)
    unknown = sorted(set(given) - set(specs))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no input; the model takes {', '.join(specs)}")
    if not given:
        raise InputError(f"holds no input; the model takes {', '.join(specs)}")
    return Decoded(
        _one_sample(
            {name: _numbers(specs[name], manifest, listed) for name, listed in given.items()}
        ).samples,
        parameters,
    )


def _named(
    value: Any, manifest: Manifest, specs: Mapping[str, TensorSpec]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Lists by input name, and what stands beside them. A model's own input called `input` or `inputs` goes first."""
    if not isinstance(value, dict):
        return {_only_input(manifest).name: value}, {}
    beside = {key: part for key, part in value.items() if key in PARAMETERS and key not in specs}
    rest = {key: part for key, part in value.items() if key not in beside}
    if set(rest) == {"input"} and "input" not in specs:
        return {_only_input(manifest).name: rest["input"]}, beside
    if set(rest) == {"inputs"} and "inputs" not in specs:
        if not isinstance(rest["inputs"], dict):
            raise InputError('"inputs" maps input names to lists; the list of the only input is "input"')
        return rest["inputs"], beside
    return rest, beside


def _numbers(spec: TensorSpec, manifest: Manifest, value: Any) -> Array:
    """As the declared type; before pre-processing uint8 for whole numbers of a byte, as image files give them, int64 for
    other whole numbers, and float32.
    """
    if not manifest.preprocess.get(spec.name):
        return exactly(value, np.dtype(spec.dtype), spec.name)
    plain = _rectangular(value, spec.name)
    if plain.dtype.kind == "b":
        return plain
    if plain.dtype.kind not in "iuf" or not plain.size:
        raise InputError(f"input {spec.name!r}: data is not made of numbers")
    if plain.dtype.kind == "f":
        return exactly(value, np.dtype(np.float32), spec.name)
    is_bytes = int(plain.min()) >= 0 and int(plain.max()) <= 255
    return exactly(value, np.dtype(np.uint8 if is_bytes else np.int64), spec.name)


def _rectangular(data: Any, name: str) -> Array:
    try:
        return np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise InputError(f"input {name!r}: data is no rectangular list of numbers") from error


def _image(data: bytes, manifest: Manifest) -> Decoded:
    spec = _only_input(manifest)
    if not manifest.preprocess.get(spec.name):
        raise InputError(
            f"{manifest.title} has no pre-processing for {spec.name!r}, so it takes no images;"
            f" give it {spec.describe()} as .npy, .npz or .json"
        )
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(f"images need Pillow, which is not installed here: {extra('images')}") from error
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if math.prod(picture.size) > MAX_PIXELS:
                raise InputError(f"the image has more than {MAX_PIXELS} pixels")
            pixels: Array = np.asarray(picture.convert("RGB"), dtype=np.uint8)
            is_grey = picture.mode in ("1", "L", "I", "I;16", "F")
            grey: Array = np.asarray(picture.convert("L"), dtype=np.uint8) if is_grey else pixels
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        # Pillow's own words on what it does not know name an object in memory.
        detail = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise InputError(f"not a readable image{detail}") from error
    return _one_sample({spec.name: grey if is_grey and not _suits(spec, manifest, pixels) else pixels})


def _suits(spec: TensorSpec, manifest: Manifest, pixels: Array) -> bool:
    """Whether the pre-processing makes the model's input of it: a grey picture is RGB too unless the model is grey."""
    try:
        value = preprocess(manifest.preprocess[spec.name], pixels)
    except InputError:
        return False
    return fits(spec, value.shape) or fits(spec, (1, *value.shape))


def _only_input(manifest: Manifest) -> TensorSpec:
    states = {pair.input for pair in manifest.state}
    specs = [spec for spec in manifest.admitted if spec.name not in states]
    if len(specs) != 1:
        raise InputError(
            f"the model takes {len(specs)} inputs ({', '.join(spec.name for spec in specs)});"
            " name them in an .npz or a .json object"
        )
    return specs[0]


def _one_sample(arrays: Mapping[str, Array]) -> Decoded:
    return Decoded(Samples({name: array[None] for name, array in arrays.items()}), {})


_DECODERS: Mapping[str, Callable[[bytes, Manifest], Decoded]] = {
    "npy": _npy,
    "json": _json,
    "image": _image,
}
