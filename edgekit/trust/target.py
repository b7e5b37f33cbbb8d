"""The publisher's word on one bundle file, or on a delta: what is signed of it, and must match it before it is opened."""

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit import delta
from edgekit.manifest import Name, Sha256, Version


class Target(msgspec.Struct, frozen=True):
    """A bundle as a TUF target, `path` its name there."""

    name: Name
    version: Version
    profile: Name
    length: Annotated[int, Meta(gt=0)]
    sha256: Sha256

    @property
    def path(self) -> str:
        return f"{self.name}/{self.version}/{self.profile}/{self.sha256}.edgekit"


class DeltaTarget(msgspec.Struct, frozen=True):
    """A delta from the bundle `base` to `target`, as a TUF target of the same role."""

    target: Target
    base: Sha256
    length: Annotated[int, Meta(gt=0)]
    sha256: Sha256
    method: str = delta.METHOD

    @property
    def path(self) -> str:
        return delta.path(self.target.path, self.base, self.target.sha256)
