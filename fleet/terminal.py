"""What a terminal that signs in and the service say to each other (`POST /api/v1/session/terminal`)."""

import hashlib
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

# What the secret of a terminal's session begins with; a machine's token begins otherwise.
PREFIX = "ekp_"


class NewTerminal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The code that the browser brought, and the verifier of the challenge that it was given for (RFC 7636)."""

    code: Annotated[str, Meta(max_length=100)]
    verifier: Annotated[str, Meta(min_length=43, max_length=128)]

    def __repr__(self) -> str:
        return "NewTerminal()"


class MadeTerminal(msgspec.Struct, frozen=True):
    """The one answer that holds the secret, and what a client needs besides."""

    name: str
    secret: str
    ends: datetime
    url: str
    ca: str

    def __repr__(self) -> str:
        return f"MadeTerminal({self.name!r})"


def mark(challenge: str) -> str:
    """What terminal and page both show, for a person to compare."""
    return hashlib.sha256(challenge.encode()).hexdigest()[:6]
