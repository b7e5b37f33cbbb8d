"""Bodies about alerts and whom they are told."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fleet.api.common import Text

TargetName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,47}$")]
Severity = Literal["warning", "critical"]
TargetKind = Literal["webhook", "smtp", "log"]
TargetEvent = Literal["alerts", "retraining"]
Address = Annotated[str, Meta(max_length=2000)]
Secret = Annotated[str, Meta(max_length=1000)]
MAX_RECIPIENTS = 50


class AlertView(msgspec.Struct, frozen=True):
    """`GET /alerts`. `subject` is what it is about; one that ends in `*` is about many. `told` are the targets that have
    it. `ended` is None while it stands; `acknowledged_by` is empty until somebody has.
    """

    id: str
    kind: str
    subject: str
    severity: Severity
    words: str
    what_to_do: str
    since: datetime
    ended: datetime | None
    acknowledged_by: str
    told: tuple[str, ...]


class Webhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`url` is kept as a secret, as those of chat systems are. `secret` signs (docs/monitoring.md); `ca` is PEM text that
    pins the receiver, where no public authority vouches for it.
    """

    url: Address
    secret: Secret
    ca: Annotated[str, Meta(max_length=50_000)] = ""

    def __repr__(self) -> str:
        return "Webhook()"


class Mail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`server` is `smtps://HOST:PORT` (TLS from the start) or `smtp://HOST:PORT` (STARTTLS; plain to this machine only)."""

    server: Address
    sender: Address
    recipients: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=MAX_RECIPIENTS)]
    user: Text = ""
    password: Secret = ""
    ca: Annotated[str, Meta(max_length=50_000)] = ""

    def __repr__(self) -> str:
        return "Mail()"


class NewTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /alert-targets`: exactly what its `kind` needs of `webhook` and `mail`; a log needs neither.

    `severity` is the least that it is told of; `events` what it is told: alerts, that a model is to be trained again, or
    both.
    """

    name: TargetName
    kind: TargetKind
    webhook: Webhook | None = None
    mail: Mail | None = None
    severity: Severity = "warning"
    events: Annotated[tuple[TargetEvent, ...], Meta(min_length=1, max_length=2)] = ("alerts",)

    def __repr__(self) -> str:
        return f"NewTarget({self.name!r})"


class TargetView(msgspec.Struct, frozen=True):
    """`where` is what may be shown of the address: a webhook's host, the mail server and recipients.

    `waiting` are messages that have not arrived yet; `last_error` is why the newest try failed, empty if it did not.
    """

    name: str
    kind: TargetKind
    where: str
    severity: Severity
    events: tuple[TargetEvent, ...]
    created: datetime
    created_by: str
    last_sent: datetime | None
    waiting: int
    last_error: str


class TargetTried(msgspec.Struct, frozen=True):
    """`POST /alert-targets/NAME/test`: whether the receiver took it, and what it answered or what was in the way."""

    name: str
    has_arrived: bool
    words: str
