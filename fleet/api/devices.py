"""Bodies about devices, one by one and in batches."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.manifest import Name
from edgekit.wire.enrolment import DeviceId
from fleet.api.common import Deployments, Label, MaybeDuration


class NewDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices`: a device that may enrol, once, before its token runs out; the answer is its `EnrolmentFile`."""

    device: DeviceId
    deployments: Deployments
    labels: dict[Label, Label] = {}
    expires: MaybeDuration = ""
    needs_approval: bool = False


class NewBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /batches`: one file by which `count` devices may enrol, each under the serial that it gives.

    With `serials` only those may; with `needs_approval` each waits until an operator says yes.
    """

    count: Annotated[int, Meta(ge=1, le=100_000)]
    deployments: Deployments
    labels: dict[Label, Label] = {}
    expires: MaybeDuration = ""
    serials: Annotated[tuple[DeviceId, ...], Meta(max_length=100_000)] = ()
    needs_approval: bool = False


class BatchView(msgspec.Struct, frozen=True):
    """`GET /batches`: `state` is open, full, run out or withdrawn; `listed` counts the names that it is for, 0 for any."""

    id: str
    state: str
    created: datetime
    created_by: str
    expires: datetime
    places: int
    joined: int
    waiting: int
    refused: int
    needs_approval: bool
    listed: int
    labels: dict[str, str]
    deployments: tuple[str, ...]


class Waiting(msgspec.Struct, frozen=True):
    """`GET /waiting`: who asked to join and waits for a person. `key` is the sha256 of its public key."""

    device: str
    profile: str
    key: str
    since: datetime
    labels: dict[str, str]


class NewLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/labels`: some to set, some to take away; the others stay."""

    labels: dict[Label, Label] = {}
    remove: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()


class Replacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/replace`: a new enrolment file with the labels and deployments that the device has."""

    expires: MaybeDuration = ""
    needs_approval: bool = False


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /rollouts/ID/retry`: these of its failed devices, or with none all of them."""

    devices: Annotated[tuple[DeviceId, ...], Meta(max_length=100_000)] = ()


class RetryDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/retry`. `despite_budget`: it fetches even where its own budget for its link is spent, until it is
    told how to go about another release.
    """

    despite_budget: bool = False


class Retried(msgspec.Struct, frozen=True):
    """Who was told to try again."""

    devices: tuple[str, ...]


class NewDeployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/deployments`."""

    deployment: Name


class Telemetry(msgspec.Struct, frozen=True):
    """All windows of what a device runs now; the quantiles are None before the first request.

    `drift` is the newest index that it said of each thing; `anomalies` counts inputs that did not fit, by kind,
    `guarded` requests whose input the bundle's guard found unfamiliar.
    """

    windows: int = 0
    requests: int = 0
    errors: int = 0
    infer_ms_p50: float | None = None
    infer_ms_p95: float | None = None
    drift: dict[str, float] = {}
    anomalies: dict[str, int] = {}
    guarded: int = 0


class DeploymentView(msgspec.Struct, frozen=True):
    """One deployment of a device: what it should run and what it runs, as `NAME@VERSION`.

    `version` is set only once that version is loaded *and* committed.
    """

    should_run: str = ""
    should_digest: str = ""
    runs: str = ""
    runs_digest: str = ""
    version: str = ""
    telemetry: Telemetry = Telemetry()
    state: str = ""
    reason: str = ""
    because: str = ""


class ConditionView(msgspec.Struct, frozen=True):
    """Something is wrong with the device, and it goes on; `since` is by its own clock."""

    code: str
    detail: str
    since: datetime
    deployment: str = ""


class TrafficView(msgspec.Struct, frozen=True):
    """Bytes of one purpose: since the device's state folder was made, and of them in this month (UTC)."""

    sent: int
    received: int
    month_sent: int
    month_received: int


class DeviceView(msgspec.Struct, frozen=True):
    """`refused` says why it did not follow its newest order, if so. `tag` stands for labels and deployments, which a
    person decides about.
    """

    device: str
    profile: str
    labels: dict[str, str]
    enrolled: bool
    online: bool
    is_duplicate: bool
    agent_version: str
    last_seen: datetime | None
    order_counter: int
    reported_counter: int
    refused: str
    deployments: dict[str, DeploymentView]
    telemetry: Telemetry
    # An older board comes under this name, with an identity that another enrolment has taken the place of.
    former_seen: datetime | None = None
    tag: str = ""
    conditions: tuple[ConditionView, ...] = ()
    # By purpose: orders, telemetry, models, samples; empty until it says.
    traffic: dict[str, TrafficView] = {}


class Explanation(msgspec.Struct, frozen=True):
    """`GET /devices/ID/explain`: sentences, most important first."""

    device: DeviceView
    lines: tuple[str, ...]
