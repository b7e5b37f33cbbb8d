"""Bodies about samples: inputs that devices bring for retraining."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.manifest import Name
from edgekit.wire.enrolment import DeviceId
from edgekit.wire.samples import MAX_LABELS, ClassLabel, Kind, Reason, Share
from fleet.api.common import MAX_TEXT, Duration, SelectorText

PercentText = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": r"^([0-9]{1,3}(\.[0-9]{1,9})? *%)?$"})
]
SizeText = Annotated[
    str, Meta(max_length=MAX_TEXT, extra_json_schema={"pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})? *(kB|MB|GB)$"})
]


class NewCollection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /samples`: devices that match `to` now and have the deployment keep inputs for one of these reasons.

    At most `most` samples of all of them, `per_device` of each (0: no other bound) and `per_day` bytes of each in a day
    (UTC), until `lasts` from now. At least one reason is to be named; what each means stands in `docs/samples.md`.
    """

    deployment: Name
    to: SelectorText
    lasts: Duration
    most: Annotated[int, Meta(ge=1, le=1_000_000)] = 200
    per_device: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    per_day: SizeText = "100MB"
    low_confidence: Share | None = None
    random: PercentText = ""
    labels: Annotated[tuple[ClassLabel, ...], Meta(max_length=MAX_LABELS)] = ()
    drifted: bool = False
    guard: bool = False


class CollectionView(msgspec.Struct, frozen=True):
    """`GET /samples`: `state` is active, full, stopped or over; `words` are its reasons. `bytes` and `samples` are kept."""

    id: str
    deployment: str
    to: str
    state: str
    words: str
    devices: int
    most: int
    per_device: int
    per_day_bytes: int
    samples: int
    bytes: int
    until: datetime
    created: datetime
    created_by: str


class SampleView(msgspec.Struct, frozen=True):
    """`GET /samples/ID/items`: `taken` is the device's clock, `received` the fleet's. `digest` is the bundle that answered.

    `kind` is raw for what pre-processing takes, tensors for what the model takes where that is something else.
    """

    sha256: str
    device: DeviceId
    deployment: str
    digest: str
    reason: Reason
    kind: Kind
    confidence: float | None
    label: str
    taken: datetime
    received: datetime
    length: int


class SamplesGone(msgspec.Struct, frozen=True):
    """What was deleted."""

    id: str
    samples: int
