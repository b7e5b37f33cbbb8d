"""`/predict` bodies as raw inputs for the bundle's own pre-processing; `edgekit.decode` says what each kind holds."""

import math
from collections.abc import Mapping

import numpy as np

from device_agent.serve.http import Head
from device_agent.serve.parsing import MediaTypeError
from device_agent.serve.sequences import Sequence, sequence_of
from edgekit.decode import Bounds, Kind, decode
from edgekit.errors import InputError
from edgekit.manifest import Manifest
from edgekit.tensors import Array

KINDS: Mapping[str, Kind] = {
    "application/json": "json",
    # Browsers' and curl's default for data is taken as JSON too, which is what people type there.
    "": "json",
    "application/x-www-form-urlencoded": "json",
    "application/x-npy": "npy",
    "application/octet-stream": "npy",
    "application/x-npz": "npz",
    "image/jpeg": "image",
    "image/png": "image",
    "image/webp": "image",
    "image/bmp": "image",
    "image/x-ms-bmp": "image",
    "audio/wav": "audio",
    "audio/x-wav": "audio",
    "audio/wave": "audio",
    "audio/vnd.wave": "audio",
    "audio/flac": "audio",
    "audio/x-flac": "audio",
}
# What a stranger's body may unfold to in a process that has others to serve: 48 MB of pixels, some 150 MB of numbers.
MAX_PIXELS = 16_000_000
MAX_VALUES = 4_000_000
# Ten minutes of one channel at 48 000 samples a second.
MAX_AUDIO_VALUES = 28_800_000
MAX_SAMPLES = 32
MAX_SAMPLES_BYTES = 64 << 20
BOUNDS = Bounds(MAX_PIXELS, MAX_VALUES, MAX_AUDIO_VALUES, is_stranger=True)


def kind_of(head: Head) -> Kind:
    """Raises: MediaTypeError."""
    kind = KINDS.get(head.content_type)
    if kind is None:
        raise MediaTypeError(
            f"content type {head.content_type!r} is not taken here; send application/json, application/x-npy,"
            " application/x-npz, image/jpeg, image/png, image/webp, image/bmp, audio/wav or audio/flac"
        )
    return kind


def read_body(
    head: Head, body: bytes | bytearray, manifest: Manifest
) -> tuple[list[dict[str, Array]], Sequence]:
    """Raw inputs by name of each sample, and the sequence they belong to.

    Only an `.npz` holds several: they run one after the other, of one sequence where the request names one.
    Raises: InputError; inside `parsing.read` only.
    """
    found = decode(kind_of(head), body, manifest, BOUNDS)
    query = head.query
    asked = {
        "sequence_id": query.get("sequence_id"),
        "sequence_start": query.get("sequence_start") == "true",
        "sequence_end": query.get("sequence_end") == "true",
    }
    sequence = sequence_of(found.parameters if "sequence_id" in found.parameters else asked)
    count, most = len(found.samples), most_samples(manifest)
    if count > most:
        raise InputError(
            f"{count} samples at once; at most {most} of this model are taken in one request", "too-large"
        )
    return [found.samples.sample(index) for index in range(count)], sequence


def most_samples(manifest: Manifest) -> int:
    """How many samples one request may have, so that neither memory nor the others wait for it too long."""
    return max(1, min(MAX_SAMPLES, MAX_SAMPLES_BYTES // max(1, input_bytes(manifest))))


def input_bytes(manifest: Manifest) -> int:
    """Bytes of all inputs of one call in their dense form."""
    return sum(
        math.prod(dim or 1 for dim in spec.shape) * np.dtype(spec.dtype).itemsize for spec in manifest.inputs
    )
