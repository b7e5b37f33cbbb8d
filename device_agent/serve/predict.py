"""`/predict` bodies as raw inputs for the bundle's own pre-processing; `edgekit.decode` says what each kind holds."""

from collections.abc import Mapping

from device_agent.serve.http import Head
from device_agent.serve.parsing import MediaTypeError
from device_agent.serve.sequences import Sequence, sequence_of
from edgekit.decode import Bounds, Kind, decode
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


def read_body(head: Head, body: bytes | bytearray, manifest: Manifest) -> tuple[dict[str, Array], Sequence]:
    """Raw inputs by name, and the sequence they belong to. Raises: InputError; inside `parsing.read` only."""
    found = decode(kind_of(head), body, manifest, BOUNDS)
    query = head.query
    asked = {
        "sequence_id": query.get("sequence_id"),
        "sequence_start": query.get("sequence_start") == "true",
        "sequence_end": query.get("sequence_end") == "true",
    }
    sequence = sequence_of(found.parameters if "sequence_id" in found.parameters else asked)
    return found.only(), sequence
