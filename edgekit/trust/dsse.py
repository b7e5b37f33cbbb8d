"""DSSE envelopes over ed25519: verification only.

What is signed is the pre-authentication encoding, so a payload of one type can never pass for another.
Source: DSSE v1.0.2, protocol.md ("PAE") and envelope.md.
"""

import base64
import binascii
from collections.abc import Mapping

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgekit.errors import SignatureRefusedError

ORDER_TYPE = "application/vnd.edgekit.desired.v1+json"
COMMAND_TYPE = "application/vnd.edgekit.command.v1+json"
MAX_ENVELOPE_BYTES = 512 * 1024


class UnknownSignerError(SignatureRefusedError):
    """An envelope of the right type that none of the trusted keys signed: perhaps there are others by now."""


class Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: tuple[Signature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def verify(data: bytes, payload_type: str, keys: Mapping[str, str]) -> bytes:
    """The payload of an envelope that one of `keys` (key id → ed25519 public key, hex) signed as `payload_type`.

    Raises: SignatureRefusedError; UnknownSignerError if no key of these is named in it.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise SignatureRefusedError(f"envelope of {len(data)} bytes; at most {MAX_ENVELOPE_BYTES} are read")
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
    except (msgspec.DecodeError, binascii.Error) as error:
        raise SignatureRefusedError(f"not a DSSE envelope: {error}") from error
    if envelope.payload_type != payload_type:
        raise SignatureRefusedError(f"signed as {envelope.payload_type!r}, expected {payload_type!r}")
    message = pae(payload_type, payload)
    for signature in envelope.signatures:
        key = keys.get(signature.keyid)
        if key is not None and _is_valid(key, signature.sig, message):
            return payload
    named = [signature.keyid for signature in envelope.signatures]
    kind = SignatureRefusedError if set(named) & keys.keys() else UnknownSignerError
    raise kind(f"no valid signature by a trusted key (signed by: {', '.join(named) or 'none'})")


def _is_valid(key: str, signature: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            base64.b64decode(signature, validate=True), message
        )
    except (InvalidSignature, ValueError):
        return False
    return True
