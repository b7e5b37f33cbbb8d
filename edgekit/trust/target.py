"""The publisher's word on one bundle file: what stands beside it, signed, and must match it before it is opened."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.errors import SignatureRefusedError
from edgekit.manifest import Name, Sha256, Version
from edgekit.trust import dsse


class Target(msgspec.Struct, frozen=True):
    """Payload of a `TARGET_TYPE` envelope."""

    name: Name
    version: Version
    profile: Name
    length: Annotated[int, Meta(gt=0)]
    sha256: Sha256

    @property
    def path(self) -> str:
        return f"{self.name}/{self.version}/{self.profile}/{self.sha256}.edgekit"


def verify(data: bytes, keys: Mapping[str, str]) -> Target:
    """The target that `data` signs. Raises: SignatureRefusedError."""
    payload = dsse.verify(data, dsse.TARGET_TYPE, keys)
    try:
        return msgspec.json.decode(payload, type=Target)
    except msgspec.DecodeError as error:
        raise SignatureRefusedError(f"signed target cannot be read: {error}") from error
