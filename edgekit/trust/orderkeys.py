"""Whose orders a fleet's devices follow, as the publisher lists it: the TUF target `_fleet/order-keys.json`.

No model is called so (`manifest.Name` begins with a letter or a digit), so no model's role can speak for it.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.errors import SignatureRefusedError
from edgekit.wire.enrolment import Key

PATH = "_fleet/order-keys.json"
MAX_KEYS = 8
MAX_BYTES = 4096


class OrderKeys(msgspec.Struct, frozen=True):
    """Key id → ed25519 public key in hex. A key that is not here is not followed any more."""

    keys: Annotated[dict[str, Key], Meta(min_length=1, max_length=MAX_KEYS)]


def write(keys: OrderKeys) -> bytes:
    """The target's bytes; the same keys give the same bytes."""
    return msgspec.json.encode(keys, order="sorted")


def read(data: bytes) -> OrderKeys:
    """Raises: SignatureRefusedError if it cannot be read: a device keeps the keys that it has."""
    try:
        return msgspec.json.decode(data, type=OrderKeys)
    except msgspec.DecodeError as error:
        raise SignatureRefusedError(f"{PATH}: signed, but it cannot be read ({error})") from error
