"""Bodies about commands: what is asked of a device once, and what came of it."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.manifest import Sha256
from edgekit.wire.commands import (
    MAX_BUNDLES,
    ClearRefused,
    LogLevel,
    Payload,
    Restart,
    SelfTest,
    Slot,
)
from fleet.api.common import MaybeDuration

# The device has not been heard of it; what the device says is of `edgekit.wire.commands.CommandState`.
WAITING, EXPIRED = "waiting", "expired"


class MeasureHere(msgspec.Struct, frozen=True, tag="measure", tag_field="kind"):
    """Time published bundles, alternates or finalists, by digest, on the device; with `deployment` what serves there too."""

    bundles: Annotated[tuple[Sha256, ...], Meta(min_length=1, max_length=MAX_BUNDLES)]
    deployment: Slot = ""
    budget_s: Annotated[float, Meta(ge=0.5, le=600)] = 10.0


Ask = SelfTest | MeasureHere | ClearRefused | Restart | LogLevel


class NewCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/commands`: done once, before it `expires` (an hour unless said otherwise, a week at most)."""

    action: Ask
    expires: MaybeDuration = ""


class NewFinalist(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /finalists`: a bundle that was uploaded and is a target, which boards may fetch to measure it, until it is
    removed.
    """

    sha256: Sha256


class Lent(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    sha256: Sha256
    is_changed: bool


class NewPick(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /bundles/NAME/VERSION/PROFILE/pick`: which of a release's bundles for a profile orders name from now on, and the
    evidence for it (digest → in-toto statement, as text) of each that was measured.
    """

    sha256: Sha256
    evidence: Annotated[dict[Sha256, str], Meta(min_length=1, max_length=16)]


class CommandView(msgspec.Struct, frozen=True):
    """`GET /devices/ID/commands`. `state` is waiting, accepted, running, done, failed, refused or expired; `payload` is what
    the device has to show, of the last of them too.
    """

    id: str
    device: str
    action: Ask
    state: str
    reason: str
    created: datetime
    created_by: str
    expires: datetime
    changed: datetime
    payload: Payload | None = None

    @property
    def kind(self) -> str:
        return str(self.action.__struct_config__.tag)

    @property
    def is_over(self) -> bool:
        return self.state in {"done", "failed", "refused", EXPIRED}
