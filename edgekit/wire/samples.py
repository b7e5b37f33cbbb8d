"""Samples: inputs that a device keeps for retraining and brings to its fleet, by a policy that its order signs.

A sample is one file: a line of JSON (`SampleAbout`), then an `.npz` of the arrays, `input/NAME` and `output/NAME`. Its id
is the sha256 of the file. PUT `sample_url(enrol_url)/<id>`, as the device that the certificate names

 200, 201  the fleet has it, on disk and in its database: the device deletes its own.
 404, 409, 410, 413, 422  the fleet does not want it (no such policy here, ended, full, too large, no sample): the device
           deletes it; after 410 also what else waits by that policy.
 else      passing: kept, and tried again.
"""

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from edgekit.errors import MessageError
from edgekit.manifest import Name, Sha256

MAX_POLICIES = 8
MAX_SAMPLE_BYTES = 8 << 20
MAX_LABELS = 64
_MAX_HEAD_BYTES = 8 << 10

Reason = Literal["confidence", "drift", "random", "rule", "guard"]
# `raw` is what the build's pre-processing takes, `tensors` what the model takes where that is something else.
Kind = Literal["raw", "tensors"]
PolicyId = Annotated[str, Meta(pattern=r"^s[1-9][0-9]{0,8}$")]
Share = Annotated[float, Meta(gt=0, le=1)]
Moment = Annotated[datetime, Meta(tz=True)]
ClassLabel = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{1,200}$")]

INPUT, OUTPUT = "input/", "output/"


class SamplePolicy(msgspec.Struct, frozen=True):
    """What a device may keep of the inputs of one deployment. Any of the reasons is enough; without one nothing is kept.

    `low_confidence`: the model's best class has less than this probability. `random`: each input with this share.
    `labels`: the model's best class is one of these. `drifted`: while the device finds that its inputs have drifted.
    `guard`: the bundle's guard finds the input unfamiliar. At most `most` samples of this device until `until`, and at
    most `bytes_a_day` in a day (UTC).
    """

    id: PolicyId
    deployment: Name
    until: Moment
    most: Annotated[int, Meta(ge=1, le=1_000_000)]
    bytes_a_day: Annotated[int, Meta(ge=1, le=2**53)]
    low_confidence: Share | None = None
    random: Share | None = None
    labels: Annotated[tuple[ClassLabel, ...], Meta(max_length=MAX_LABELS)] = ()
    drifted: bool = False
    guard: bool = False


class SampleAbout(msgspec.Struct, frozen=True):
    """The first line of a sample. `digest` is the bundle that answered; `taken` is the device's own clock.

    `confidence` and `label` are of the model's best class, None and empty where its outputs are no classes.
    """

    policy: PolicyId
    deployment: Name
    digest: Sha256
    reason: Reason
    kind: Kind
    taken: Moment
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    label: Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{0,200}$")] = ""


def pack(about: SampleAbout, arrays: bytes) -> bytes:
    """The file of a sample; `arrays` is the `.npz`."""
    return msgspec.json.encode(about) + b"\n" + arrays


def unpack(data: bytes) -> tuple[SampleAbout, bytes]:
    """What a sample says of itself, and its `.npz`, unread. Raises: MessageError."""
    end = data.find(b"\n", 0, _MAX_HEAD_BYTES)
    if len(data) > MAX_SAMPLE_BYTES or end < 0:
        raise MessageError("a sample: a line of JSON and an .npz, at most 8 MiB")
    try:
        return msgspec.json.decode(data[:end], type=SampleAbout), data[end + 1 :]
    except msgspec.DecodeError as error:
        raise MessageError(f"a sample: {error}") from error


def sample_url(enrol_url: str) -> str:
    """Where a device that joined at `enrol_url` brings samples: beside it, `…/v1/enrol` and `…/v1/samples`."""
    parts = urlsplit(enrol_url)
    folder, _, _ = parts.path.rpartition("/")
    return urlunsplit((parts.scheme, parts.netloc, f"{folder}/samples", "", ""))
