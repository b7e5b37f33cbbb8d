"""Only what a trusted key signed, as the type it was signed for, comes through."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import SignatureRefusedError
from edgekit.trust import dsse
from edgekit.trust.target import Target

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = {"orders": KEY.public_key().public_bytes_raw().hex()}


def envelope(payload: bytes, payload_type: str = dsse.ORDER_TYPE, keyid: str = "orders") -> bytes:
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


def test_what_a_trusted_key_signed_comes_through() -> None:
    assert dsse.verify(envelope(b"payload"), dsse.ORDER_TYPE, KEYS) == b"payload"


def test_a_bundles_target_is_named_by_what_it_is_and_its_digest() -> None:
    target = Target("digits", "1.0.0", "x86-64-v3", 10, "a" * 64)
    assert target.path == f"digits/1.0.0/x86-64-v3/{'a' * 64}.edgekit"


@pytest.mark.parametrize(
    ("data", "keys", "says"),
    [
        (envelope(b"{}", "application/json"), KEYS, "signed as"),
        (envelope(b"{}"), {"orders": "0" * 64}, "no valid signature"),
        (envelope(b"{}"), {}, "no valid signature"),
        (envelope(b"{}", keyid="someone"), KEYS, "someone"),
        (b"{}", KEYS, "not a DSSE envelope"),
        (b"\xff", KEYS, "not a DSSE envelope"),
        (b" " * (dsse.MAX_ENVELOPE_BYTES + 1), KEYS, "at most"),
    ],
)
def test_refuses(data: bytes, keys: dict[str, str], says: str) -> None:
    with pytest.raises(SignatureRefusedError, match=says):
        dsse.verify(data, dsse.ORDER_TYPE, keys)


@given(st.binary(max_size=200))
def test_no_payload_passes_under_another_ones_signature(other: bytes) -> None:
    signed = json.loads(envelope(b"payload"))
    signed["payload"] = base64.b64encode(other).decode()
    if other == b"payload":
        return
    with pytest.raises(SignatureRefusedError):
        dsse.verify(json.dumps(signed).encode(), dsse.ORDER_TYPE, KEYS)


def test_an_unknown_signer_is_told_from_a_wrong_signature() -> None:
    """Only of the first may be that the keys changed meanwhile."""
    with pytest.raises(dsse.UnknownSignerError):
        dsse.verify(envelope(b"{}", keyid="new"), dsse.ORDER_TYPE, KEYS)
    with pytest.raises(SignatureRefusedError) as refused:
        dsse.verify(envelope(b"{}"), dsse.ORDER_TYPE, {"orders": "0" * 64})
    assert not isinstance(refused.value, dsse.UnknownSignerError)
