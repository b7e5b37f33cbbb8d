"""`/predict` bodies: JSON, a raw `.npy`, or an image file, as raw inputs for the bundle's own pre-processing."""

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from device_agent.serve import codec
from device_agent.serve.http import Request
from device_agent.serve.model import Sequence
from edgekit.distribution import extra
from edgekit.errors import InputError
from edgekit.manifest import Manifest, TensorSpec
from edgekit.tensors import Array

# A picture that unpacks to more pixels than this is refused before it is decoded.
MAX_PIXELS = 40_000_000


def read_body(request: Request, manifest: Manifest) -> tuple[dict[str, Array], Sequence]:
    """Raw inputs by name, and the sequence they belong to. Raises: InputError."""
    kind = request.head.content_type
    query = request.head.query
    sequence = codec.sequence_of(
        {
            "sequence_id": query.get("sequence_id"),
            "sequence_start": query.get("sequence_start") == "true",
            "sequence_end": query.get("sequence_end") == "true",
        }
    )
    if kind in ("application/x-npy", "application/octet-stream"):
        return {_only_input(manifest).name: _npy(request.body)}, sequence
    if kind.startswith("image/"):
        return {_only_input(manifest).name: _image(request.body)}, sequence
    # Browsers' and curl's default for data is taken as JSON too, which is what people type there.
    if kind in ("application/json", "", "application/x-www-form-urlencoded"):
        inputs, parameters = _json(request.body, manifest)
        return inputs, codec.sequence_of(parameters) if "sequence_id" in parameters else sequence
    raise InputError(
        f"content type {kind!r} is not taken here; send application/json, application/x-npy or image/*"
    )


def _only_input(manifest: Manifest) -> TensorSpec:
    """The one input that is no state."""
    states = {pair.input for pair in manifest.state}
    named = [spec for spec in manifest.inputs if spec.name not in states]
    if len(named) != 1:
        names = ", ".join(spec.name for spec in named)
        raise InputError(f'this model takes several inputs; send JSON {{"inputs": {{…}}}} with {names}')
    return named[0]


def _json(body: bytes | bytearray, manifest: Manifest) -> tuple[dict[str, Array], Mapping[str, Any]]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict) or ("input" in value) == ("inputs" in value):
        raise InputError('send {"input": [...]} or {"inputs": {"NAME": [...]}}')
    if "input" in value:
        given = {_only_input(manifest).name: value["input"]}
    elif isinstance(value["inputs"], dict):
        given = value["inputs"]
    else:
        raise InputError('"inputs" maps input names to arrays')
    specs = {spec.name: spec for spec in manifest.inputs}
    arrays: dict[str, Array] = {}
    for name, data in given.items():
        if name not in specs:
            raise InputError(f"unknown input {name!r}; this model takes {', '.join(specs)}")
        arrays[name] = codec.json_array(data, specs[name], is_raw=bool(manifest.preprocess.get(name)))
    return arrays, value


def _npy(body: bytes | bytearray) -> Array:
    stream = io.BytesIO(body)
    try:
        array: Array = np.load(stream, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError) as error:
        raise InputError(f"the body is not a .npy array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise InputError("the body is not one .npy array of numbers")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _image(body: bytes | bytearray) -> Array:
    """(height, width, 3) RGB, or (height, width) for a grey picture, uint8. Raises: InputError."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(
            f"images need Pillow, which is not installed here ({extra('images')}); send JSON or .npy"
        ) from error
    try:
        with Image.open(io.BytesIO(body)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"the image has more than {MAX_PIXELS} pixels")
            is_grey = picture.mode in ("1", "L", "I", "I;16", "F")
            pixels: Array = np.asarray(picture.convert("L" if is_grey else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the body is not an image that can be read: {error}") from error
    return pixels
