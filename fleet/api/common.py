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
# What a text is to be, for the description: the rules that parse it say what is wrong with one, where and why. A `format`
# stands for a small language (docs/api.md has its grammar), a `pattern` for what one expression tells.
_DURATION = r"[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d|w)"
_TITLE = r"[a-z0-9][a-z0-9._-]{0,63}@[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}"
Duration = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": f"^{_DURATION}$"})]
MaybeDuration = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": f"^({_DURATION})?$"})]
Title = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": f"^{_TITLE}$"})]
Subject = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": f"^({_TITLE}|[0-9a-f]{{64}})$"})
]
SelectorText = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-selector"})]
StagesText = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-stages"})]
GateText = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-gate"})]
WindowText = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-window"})]
TimeZone = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-time-zone"})]
GoalText = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-goal"})]
HoldbackText = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": r"^([0-9]{1,9}( *%|(\.[0-9]{1,9}) *%)?)?$"})
]
ApproveText = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": r"^(all|[0-9]{1,9}( *, *[0-9]{1,9})*)?$"})
]
RateText = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": r"^([1-9][0-9]{0,8}( */ *(s|min|h|d))?)?$"})
]
BandwidthText = Annotated[
    str,
    Meta(
        max_length=MAX_TEXT,
        extra_json_schema={"pattern": r"^([0-9]{1,9}(\.[0-9]{1,9})? *(kB|MB|GB|kbit|Mbit|Gbit)(/s)?)?$"},
    ),
]
SplitText = Annotated[str, Meta(max_length=MAX_TEXT, extra_json_schema={"format": "edgekit-split"})]
RoleName = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"enum": ["viewer", "operator", "publisher", "admin"]})
]
Password = Annotated[
    str,
    Meta(
        max_length=MAX_TEXT,
        extra_json_schema={"format": "edgekit-password", "minLength": 15, "maxLength": 256},
    ),
]
DeploymentName = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": r"^([a-z0-9][a-z0-9._-]{0,63})?$"})
]
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
