"""`/predict` bodies as raw inputs for the bundle's own pre-processing; `edgekit.decode` says what each kind holds."""

from collections.abc import Mapping

from device_agent.serve import codec
from device_agent.serve.http import Request
from device_agent.serve.model import Sequence
from edgekit.decode import Kind, decode
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
}


def read_body(request: Request, manifest: Manifest) -> tuple[dict[str, Array], Sequence]:
    """Raw inputs by name, and the sequence they belong to. Raises: InputError."""
    kind = _kind(request.head.content_type)
    query = request.head.query
    sequence = codec.sequence_of(
        {
            "sequence_id": query.get("sequence_id"),
            "sequence_start": query.get("sequence_start") == "true",
            "sequence_end": query.get("sequence_end") == "true",
        }
    )
    # What a stranger sends must not unfold to more than he sent.
    found = decode(kind, request.body, manifest, stored_only=True)
    if "sequence_id" in found.parameters:
        sequence = codec.sequence_of(found.parameters)
    return found.only(), sequence


def _kind(content_type: str) -> Kind:
    if content_type.startswith("image/"):
        return "image"
    if content_type in KINDS:
        return KINDS[content_type]
    raise InputError(
        f"content type {content_type!r} is not taken here; send application/json, application/x-npy,"
        " application/x-npz or image/*"
    )
