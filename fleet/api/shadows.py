"""Bodies about shadows: releases that devices compare with what they serve."""

from datetime import datetime

import msgspec

from edgekit.wire.enrolment import DeviceId
from fleet.api.common import DeploymentName, SelectorText, Title
from fleet.api.samples import PercentText


class NewShadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /shadows`: devices that match `to` now and can run `release` (NAME@VERSION) compare it with what they serve as
    `deployment` (the release's name where that is empty), for at most `share` of a processor's time.
    """

    release: Title
    to: SelectorText
    share: PercentText = "10%"
    deployment: DeploymentName = ""


class AgreementView(msgspec.Struct, frozen=True):
    """Of one output: the mean figure between 0 and 1 with its 95 % interval, over devices or, of very few, over inputs."""

    output: str
    mean: float
    low: float
    high: float
    devices: int
    inputs: int
    is_of_devices: bool


class ShadowDeviceView(msgspec.Struct, frozen=True):
    """`state` is what the device reported: fetch, selftest, running, waiting, refused, served; empty before it did.

    `agreement` is of the output that agrees least, `latency_ratio` as in `ShadowView`.
    """

    device: DeviceId
    state: str
    reason: str
    compared: int
    dropped: int
    failed: int
    agreement: float | None
    latency_ratio: float | None


class ShadowView(msgspec.Struct, frozen=True):
    """`GET /shadows/ID`: `latency_ratio` is the median processor time of its calls over the served model's median on the
    same inputs. `devices` is empty in the list.
    """

    id: str
    status: str
    reason: str
    release: str
    deployment: str
    to: str
    share: float
    members: int
    compared: int
    dropped: int
    failed: int
    outputs: tuple[AgreementView, ...]
    latency_ratio: float | None
    words: str
    created: datetime
    created_by: str
    devices: tuple[ShadowDeviceView, ...] = ()
