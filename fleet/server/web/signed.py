"""Who signed what publishers sign, and until when it holds."""

from datetime import datetime
from typing import NamedTuple

from fleet.tuf import documents
from fleet.tuf.online import Online


class Signed(NamedTuple):
    """A document of the publishers: its role, version, end, and the ids of the keys that signed it."""

    role: str
    version: int
    expires: datetime
    keys: tuple[str, ...]


def everything(tuf: Online) -> list[Signed]:
    """Root first, then the others by name; nothing before a publisher began."""
    whole = tuf.documents()
    if whole is None:
        return []
    found: dict[str, documents.Document] = {
        documents.ROOT: whole.roots[-1],
        **dict(sorted(whole.roles.items())),
    }
    return [
        Signed(role, one.signed.version, one.signed.expires, tuple(one.signatures))
        for role, one in found.items()
    ]


def of_model(tuf: Online, name: str) -> Signed | None:
    """The document that lists the bundles of a model."""
    role = documents.model_role(name)
    return next((one for one in everything(tuf) if one.role == role), None)
