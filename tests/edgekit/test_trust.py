"""Only what a trusted key signed, as the type it was signed for, comes through."""

import base64
import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import SignatureRefusedError
from edgekit.trust import dsse, target
from edgekit.trust.target import Target

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = {"publisher": KEY.public_key().public_bytes_raw().hex()}
TARGET = Target("digits", "1.0.0", "x86-64-v3", 10, "a" * 64)


def envelope(payload: bytes, payload_type: str = dsse.TARGET_TYPE, keyid: str = "publisher") -> bytes:
    signature = KEY.sign(dsse.pae(payload_type, payload))
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
        }
    ).encode()


def test_the_encoding_is_the_one_of_the_specification() -> None:
    # DSSE protocol.md, test vector.
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signed_target_comes_through() -> None:
    assert target.verify(envelope(msgspec.json.encode(TARGET)), KEYS) == TARGET
    assert TARGET.path == f"digits/1.0.0/x86-64-v3/{'a' * 64}.edgekit"


@pytest.mark.parametrize(
    ("data", "keys", "says"),
    [
        (envelope(b"{}", dsse.ORDER_TYPE), KEYS, "signed as"),
        (envelope(b"{}"), {"publisher": "0" * 64}, "no valid signature"),
        (envelope(b"{}"), {}, "no valid signature"),
        (envelope(b"{}", keyid="someone"), KEYS, "someone"),
        (envelope(b'{"name": "digits"}'), KEYS, "cannot be read"),
        (b"{}", KEYS, "not a DSSE envelope"),
        (b"\xff", KEYS, "not a DSSE envelope"),
        (b" " * (dsse.MAX_ENVELOPE_BYTES + 1), KEYS, "at most"),
    ],
)
def test_refuses(data: bytes, keys: dict[str, str], says: str) -> None:
    with pytest.raises(SignatureRefusedError, match=says):
        target.verify(data, keys)


@given(st.binary(max_size=200))
def test_no_payload_passes_under_another_ones_signature(other: bytes) -> None:
    signed = json.loads(envelope(b"payload"))
    signed["payload"] = base64.b64encode(other).decode()
    if other == b"payload":
        return
    with pytest.raises(SignatureRefusedError):
        dsse.verify(json.dumps(signed).encode(), dsse.TARGET_TYPE, KEYS)
