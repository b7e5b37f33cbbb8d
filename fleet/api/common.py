"""What the bodies of `/api/v1` have in common.

Rules travel as the text that a person wrote (`to`, `stages`, `gates`, durations): only the service parses them, so
that a client never disagrees with it about what they mean.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.manifest import Name

MAX_TEXT = 500
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
OnViolation = Literal["rollback", "pause", "abort"]


class ErrorBody(msgspec.Struct, frozen=True):
    code: str
    message: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorBody


Deployments = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=32)]


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the audit log."""

    reason: Text = ""


class Done(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    device: str
    is_changed: bool


class Changed(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    name: str
    is_changed: bool = True
