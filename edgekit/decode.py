"""Bytes that a person or a program sends, as samples of a bundle's inputs: one module for `edgekit run` and the agent.

| kind | holds |
|---|---|
| `npz` | samples along the first axis, one array per input name; `sequence` ids for stateful models |
| `npy` | one sample of the only input |
| `json` | one sample: an object with one (nested) list per input name, or the bare list of the only input; |
|  | `{"input": [...]}` and `{"inputs": {"NAME": [...]}}` say the same, and may name a sequence beside it |
| `image` | one sample of the only input, for bundles that pre-process it; JPEG, PNG, WebP or BMP; needs Pillow |
| `audio` | one sample of the only input, for bundles whose pre-processing begins with `waveform`; needs soundfile |

Always true
 1. The same bytes give the same arrays, or the same sentence, whoever asks; only `Bounds` differ.
 2. Nothing is unpickled, and a picture or sound is measured before it is unpacked.
 3. No number changes its value unseen: integers neither wrap nor round, floats do not overflow.
 4. Text never becomes an array: numpy would make each entry as long as the longest.

States are not inputs here: they start as zeros. Decoding an image is outside the promise that the same bytes give
the same tensor on every machine (decoders differ).
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit import jsonarray
from edgekit.distribution import extra
from edgekit.encoding import REPEAT
from edgekit.errors import DataError, InputError
from edgekit.manifest import Manifest, TensorSpec
from edgekit.samples import DAMAGED, Samples, load_npz
from edgekit.tensors import Array, fits
from edgekit.transforms import preprocess

Kind = Literal["npz", "npy", "json", "image", "audio"]
# A picture that unpacks to more pixels than this is refused before it is decoded; a telephone's has up to 50 million.
MAX_PIXELS = 50_000_000
PICTURES = ("JPEG", "PNG", "WEBP", "BMP")
SOUNDS = ("WAV", "FLAC")
# Members of an archive, and keys of a JSON text: far more than models have inputs.
MAX_NAMES = 4096
MAX_SEQUENCE_ID = 128
# Beside the inputs of a JSON object.
PARAMETERS = ("id", "sequence_id", "sequence_start", "sequence_end")
# Integer type → its smallest and largest value.
_LIMITS: Mapping[str, tuple[int, int]] = {
    f"{sign}int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Bounds:
    """What bytes may unfold to. `values` counts the numbers and brackets of a JSON text, `audio_values` the sound's over
    all channels. `is_stranger` refuses archives that are compressed or fold samples, which may unfold to anything.
    """

    pixels: int = MAX_PIXELS
    values: int = 1 << 31
    audio_values: int = 1 << 28
    is_stranger: bool = False


OWN = Bounds()


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


def decode(kind: Kind, data: bytes | bytearray, manifest: Manifest, bounds: Bounds = OWN) -> Decoded:
    """Raw samples, before pre-processing.

    Raises: InputError saying what is wrong with the bytes, and nothing else: decoders fail in more ways than they say.
    """
    try:
        return _DECODERS[kind](bytes(data), manifest, bounds)
    except InputError:
        raise
    except DataError as error:
        raise InputError(str(error).removeprefix("data: ")) from error
    except Exception as error:  # the boundary: whatever a decoder raises is about the bytes
        raise InputError(f"cannot be read ({type(error).__name__}: {error})"[:500]) from error


def check_json(data: bytes | bytearray | memoryview, most_values: int) -> None:
    """Bound what a JSON text unfolds to before it does: every value but the first of its container follows a comma.

    Raises: InputError.
    """
    text = bytes(data)
    if text.count(b",") + text.count(b"[") + text.count(b"{") > most_values:
        raise InputError(
            f"the JSON text has more than {most_values} values, the most taken here", "too-large"
        )
    if text.count(b":") > MAX_NAMES:
        raise InputError(f"the JSON text has more than {MAX_NAMES} keys", "too-large")


def exactly(plain: Array, dtype: "np.dtype[Any]", name: str) -> Array:
    """What a JSON text holds as `dtype`, each number with its value; floats may lose digits, but never overflow.

    Raises: InputError.
    """
    allowed = {"b": "b", "u": "iuf", "i": "iuf", "f": "iuf"}[dtype.kind]
    if plain.size and plain.dtype.kind not in allowed:
        raise InputError(f"input {name!r}: data is not made of {dtype} values", "wrong-dtype")
    with np.errstate(invalid="ignore", over="ignore"):
        cast: Array = plain.astype(dtype)
    if dtype.kind in "iu" and not _is_same(plain, cast):
        raise InputError(f"input {name!r}: some of the data does not fit {dtype}", "out-of-range")
    if dtype.kind == "f" and not np.array_equal(np.isfinite(plain), np.isfinite(cast)):
        raise InputError(f"input {name!r}: some of the data is outside the range of {dtype}", "out-of-range")
    return cast


def _is_same(plain: Array, cast: Array) -> bool:
    """Whether a cast to integers kept every value; compared in integers, since a float64 cannot tell 2**63 - 1."""
    low, high = _LIMITS[cast.dtype.name]
    if plain.dtype.kind in "iu":
        return not plain.size or (int(plain.min()) >= low and int(plain.max()) <= high)
    real = plain.astype(np.float64)
    inside = np.isfinite(real) & (real >= float(low)) & (real < float(high) + 1.0)
    return bool(inside.all()) and np.array_equal(np.trunc(real), real)


def _npz(data: bytes, manifest: Manifest, bounds: Bounds) -> Decoded:
    folded: list[str] = []
    if bounds.is_stranger:
        # The signature of an entry of the directory (APPNOTE 4.3.12): each costs more memory than bytes.
        if data.count(b"PK\x01\x02") > MAX_NAMES:
            raise InputError(f"an archive of more than {MAX_NAMES} members")
        # What is no archive at all is told below.
        with contextlib.suppress(*DAMAGED), zipfile.ZipFile(io.BytesIO(data)) as archive:
            folded = [name for name in archive.namelist() if REPEAT in name]
        if folded:
            raise InputError(f"{folded[0]!r} unfolds to more than it holds, which is not taken here")
    found = load_npz(
        data,
        manifest.admitted,
        raw=tuple(name for name, steps in manifest.preprocess.items() if steps),
        optional=tuple(pair.input for pair in manifest.state),
        stored_only=bounds.is_stranger,
    )
    return Decoded(
        Samples({name: _plain(name, array) for name, array in found.inputs.items()}, None, found.sequence), {}
    )


def _npy(data: bytes, manifest: Manifest, _bounds: Bounds) -> Decoded:
    spec = _only_input(manifest)
    if data[:4] == b"PK\x03\x04":
        raise InputError("not a plain .npy array: it is an archive of several, as .npz files are")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = _NPY_HEADERS[version]
        shape, is_fortran, dtype = read_header(stream)
    except (*DAMAGED, RecursionError) as error:
        raise InputError(f"not a plain .npy array, or damaged ({error})") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InputError(f"input {spec.name!r}: an array of {dtype} is not made of numbers")
    # Compared before any memory is taken: a header may claim anything.
    rest = len(data) - stream.tell()
    if len(shape) > jsonarray.MAX_DIMENSIONS or min(shape, default=0) < 0:
        raise InputError(f"a .npy array of shape {shape} is not taken here")
    if math.prod(shape) * dtype.itemsize != rest:
        raise InputError(f"a damaged .npy array: {rest} bytes for {dtype} of shape {shape}")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if is_fortran else "C")
    return _one_sample({spec.name: _plain(spec.name, array)})


_NPY_HEADERS: Mapping[
    tuple[int, int], Callable[[io.BytesIO], tuple[tuple[int, ...], bool, "np.dtype[Any]"]]
] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


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


def _json(data: bytes, manifest: Manifest, bounds: Bounds) -> Decoded:
    check_json(data, bounds.values)
    specs = {spec.name: spec for spec in manifest.admitted}
    given, parameters = _named(data, manifest, specs)
    unknown = sorted(set(given) - set(specs))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no input; the model takes {', '.join(specs)}", "unknown-input")
    if not given:
        raise InputError(f"holds no input; the model takes {', '.join(specs)}", "missing-input")
    return Decoded(
        _one_sample(
            {
                name: _numbers(specs[name], manifest, jsonarray.read(bytes(raw), name))
                for name, raw in given.items()
            }
        ).samples,
        parameters,
    )


def _named(
    data: bytes, manifest: Manifest, specs: Mapping[str, TensorSpec]
) -> tuple[Mapping[str, msgspec.Raw], Mapping[str, Any]]:
    """Lists by input name, and what stands beside them. A model's own input called `input` or `inputs` goes first."""
    if data.lstrip()[:1] != b"{":
        _as_json(data, msgspec.Raw)
        return {_only_input(manifest).name: msgspec.Raw(data)}, {}
    value = _as_json(data, dict[str, msgspec.Raw])
    beside = {key: _as_json(raw, Any) for key, raw in value.items() if key in PARAMETERS and key not in specs}
    check_sequence_id(beside.get("sequence_id"))
    rest = {key: raw for key, raw in value.items() if key not in beside}
    if set(rest) == {"input"} and "input" not in specs:
        return {_only_input(manifest).name: rest["input"]}, beside
    if set(rest) == {"inputs"} and "inputs" not in specs:
        if bytes(rest["inputs"]).lstrip()[:1] != b"{":
            raise InputError('"inputs" maps input names to lists; the list of the only input is "input"')
        return _as_json(rest["inputs"], dict[str, msgspec.Raw]), beside
    return rest, beside


def check_sequence_id(key: object) -> None:
    """Raises: InputError for what names no sequence."""
    is_id = isinstance(key, int | str) and not isinstance(key, bool) and len(str(key)) <= MAX_SEQUENCE_ID
    if key is not None and not is_id:
        raise InputError(f"sequence_id is a whole number or a text of at most {MAX_SEQUENCE_ID} characters")


def _as_json(data: bytes | msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error


def _numbers(spec: TensorSpec, manifest: Manifest, plain: Array) -> Array:
    """As the declared type; before pre-processing uint8 for whole numbers of a byte, as image files give them, int64 for
    other whole numbers, and float32.
    """
    if not manifest.preprocess.get(spec.name):
        return exactly(plain, np.dtype(spec.dtype), spec.name)
    if plain.dtype.kind == "b":
        return plain
    if plain.dtype.kind not in "iuf" or not plain.size:
        raise InputError(f"input {spec.name!r}: data is not made of numbers")
    if plain.dtype.kind == "f":
        return exactly(plain, np.dtype(np.float32), spec.name)
    is_bytes = int(plain.min()) >= 0 and int(plain.max()) <= 255
    return exactly(plain, np.dtype(np.uint8 if is_bytes else np.int64), spec.name)


def _image(data: bytes, manifest: Manifest, bounds: Bounds) -> Decoded:
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
        with Image.open(io.BytesIO(data), formats=PICTURES) as picture:
            if math.prod(picture.size) > bounds.pixels:
                raise InputError(f"the image has more than {bounds.pixels} pixels", "too-large")
            is_grey = picture.mode in ("1", "L", "I", "I;16", "F")
            pixels: Array = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"), np.uint8)
            grey: Array = np.asarray(picture.convert("L"), dtype=np.uint8) if is_grey else pixels
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        # Pillow's own words on what it does not know name an object in memory.
        detail = (
            f" (read are {', '.join(PICTURES)})"
            if isinstance(error, UnidentifiedImageError)
            else f": {error}"
        )
        raise InputError(f"not a readable image{detail}") from error
    return _one_sample({spec.name: grey if is_grey and not _suits(spec, manifest, pixels) else pixels})


def _audio(data: bytes, manifest: Manifest, bounds: Bounds) -> Decoded:
    """float32 (frames, channels), as `waveform` takes it. Another sample rate than its is refused, never converted."""
    spec = _only_input(manifest)
    steps = manifest.preprocess.get(spec.name)
    if not steps or steps[0].op != "waveform":
        raise InputError(
            f"{manifest.title} does not say which sound it takes (its pre-processing of {spec.name!r} does not begin"
            f" with 'waveform'); give it {spec.describe()} as .npy, .npz or .json"
        )
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise InputError(f"sound needs soundfile, which is not installed here: {extra('audio')}") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            if sound.format not in SOUNDS:
                raise InputError(f"a sound in {sound.format}; read are {', '.join(SOUNDS)}")
            if sound.samplerate != steps[0].args["sample_rate"]:
                raise InputError(
                    f"the sound has {sound.samplerate} samples a second; the model takes {steps[0].args['sample_rate']}"
                )
            if sound.frames * sound.channels > bounds.audio_values:
                raise InputError(f"the sound has more than {bounds.audio_values} values", "too-large")
            values: Array = sound.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise InputError(f"not a readable sound: {error}") from error
    return _one_sample({spec.name: values})


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


_DECODERS: Mapping[Kind, Callable[[bytes, Manifest, Bounds], Decoded]] = {
    "npz": _npz,
    "npy": _npy,
    "json": _json,
    "image": _image,
    "audio": _audio,
}
