"""REST bodies of `/api/v1`, shared by the service and its client.

Rules travel as the text that a person wrote (`to`, `stages`, `gates`, durations): only the service parses them, so
that a client never disagrees with it about what they mean.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgekit.manifest import Name, Sha256
from edgekit.wire.enrolment import DeviceId, Key

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


class NewDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices`: a device that may enrol, once, before its token runs out; the answer is its `EnrolmentFile`."""

    device: DeviceId
    deployments: Deployments
    labels: dict[Label, Label] = {}
    expires: Text = ""
    needs_approval: bool = False


class NewBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /batches`: one file by which `count` devices may enrol, each under the serial that it gives.

    With `serials` only those may; with `needs_approval` each waits until an operator says yes.
    """

    count: Annotated[int, Meta(ge=1, le=100_000)]
    deployments: Deployments
    labels: dict[Label, Label] = {}
    expires: Text = ""
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


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the audit log."""

    reason: Text = ""


class NewLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/labels`: some to set, some to take away; the others stay."""

    labels: dict[Label, Label] = {}
    remove: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()


class Replacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/replace`: a new enrolment file with the labels and deployments that the device has."""

    expires: Text = ""
    needs_approval: bool = False


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /rollouts/ID/retry`: these of its failed devices, or with none all of them."""

    devices: Annotated[tuple[DeviceId, ...], Meta(max_length=100_000)] = ()


class Retried(msgspec.Struct, frozen=True):
    """Who was told to try again."""

    devices: tuple[str, ...]


class NewDeployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /devices/ID/deployments`."""

    deployment: Name


class Done(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    device: str
    is_changed: bool


class Telemetry(msgspec.Struct, frozen=True):
    """All windows of what a device runs now; the quantiles are None before the first request."""

    windows: int = 0
    requests: int = 0
    errors: int = 0
    infer_ms_p50: float | None = None
    infer_ms_p95: float | None = None


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


class DeviceView(msgspec.Struct, frozen=True):
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


class Explanation(msgspec.Struct, frozen=True):
    """`GET /devices/ID/explain`: sentences, most important first."""

    device: DeviceView
    lines: tuple[str, ...]


class NewBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /bundles` after its file was uploaded and listed in the metadata; evidence is a JSON document as text.

    An `alternate` lies beside the release's picked bundle of its profile; no device is ordered to run it.
    """

    sha256: Sha256
    evidence: str | None = None
    alternate: bool = False


class BundleView(msgspec.Struct, frozen=True):
    name: str
    version: str
    profile: str
    sha256: str
    length: int
    engine: str
    published: datetime
    has_evidence: bool
    # Of an alternate: how it was made. Empty for what devices get.
    alternate: str = ""


class PublishAnswer(msgspec.Struct, frozen=True):
    bundle: BundleView
    was_there: bool


class ReleaseView(msgspec.Struct, frozen=True):
    name: str
    version: str
    published: datetime
    bundles: tuple[BundleView, ...]
    alternates: tuple[BundleView, ...] = ()


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /blocked`: no new order names `subject`, a release (NAME@VERSION) or a bundle's sha256."""

    subject: Text
    reason: Text = ""


class BlockAnswer(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    subject: str
    is_changed: bool


class BlockedView(msgspec.Struct, frozen=True):
    subject: str
    reason: str
    actor: str
    at: datetime


class NewAssignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /assignments`: what devices run from now on, all at once and judged by nobody."""

    release: Text
    to: Text
    deployment: Text = ""
    probation: Text = ""
    dry_run: bool = False


class AssignmentView(msgspec.Struct, frozen=True):
    """`because` is the rollout that left it, or `assigned`. Of those that match a device the newest holds."""

    id: str
    release: str
    to: str
    deployment: str
    because: str
    at: datetime


class Assigned(msgspec.Struct, frozen=True):
    """Who moves, by profile, who runs it already, and who does not follow and why. `id` is empty after a dry run."""

    id: str
    release: str
    deployment: str
    moves: dict[str, tuple[str, ...]]
    there: tuple[str, ...]
    others: "tuple[Ineligible, ...]"


class NewRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /rollouts`, and the file that `rollout start --file` reads and `rollout show --toml` writes.

    Empty `stages` and `holdback` mean the defaults that the plan then states in words; an empty or zero limit is none.
    """

    release: Text
    to: Text
    stages: Text = ""
    soak: Text = "30m"
    gates: tuple[Text, ...] = ()
    on_violation: OnViolation = "rollback"
    deadline: Text = "10m"
    finish_by: Text = "2d"
    holdback: Text = ""
    deployment: Text = ""
    probation: Text = ""
    approve: Text = ""
    rate: Text = ""
    at_once: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    per_site: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    windows: Annotated[tuple[Text, ...], Meta(max_length=32)] = ()
    time_zone: Text = ""
    site_bandwidth: Text = ""
    jitter: Text = ""
    queue: bool = False
    dry_run: bool = False


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /rollouts/ID/VERB`: `profile` for hold and release, `finish_by` (a duration) for resume."""

    profile: Text = ""
    finish_by: Text = ""


class Ineligible(msgspec.Struct, frozen=True):
    device: str
    reason: str


class StageOutlook(msgspec.Struct, frozen=True):
    """What a stage will be able to see: its devices on the new release, those beside it, and a line per gate."""

    stage: str
    devices: int
    control: int
    sees: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """What a rollout would do, before it does anything."""

    release: str
    deployment: str
    eligible: dict[str, tuple[str, ...]]
    ineligible: tuple[Ineligible, ...]
    stages: tuple[str, ...]
    gates: tuple[str, ...]
    notes: tuple[str, ...]
    outlook: tuple[StageOutlook, ...] = ()


class GateView(msgspec.Struct, frozen=True):
    gate: str
    outcome: str
    words: str


class MemberView(msgspec.Struct, frozen=True):
    device: str
    profile: str
    stage: int | None
    state: str
    reason: str
    previous: str


class RolloutView(msgspec.Struct, frozen=True):
    """`awaits` is the stage (from 1) that waits for approval; `waiting` counts the devices of the open stage that are not
    told yet; orders for `held_profiles` are held.
    """

    id: str
    release: str
    deployment: str
    to: str
    status: str
    reason: str
    stage: int
    stages: tuple[str, ...]
    counts: dict[str, int]
    gates: tuple[GateView, ...]
    members: tuple[MemberView, ...]
    created: datetime
    soak_ends: datetime | None
    finish_by: datetime | None = None
    awaits: int | None = None
    held_profiles: tuple[str, ...] = ()
    waiting: int = 0


class RolloutAnswer(msgspec.Struct, frozen=True):
    """`rollout` is absent after a dry run."""

    plan: Plan
    rollout: RolloutView | None = None


class NewExperiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /experiments`: releases `a` and `b` on a fixed split of the devices."""

    a: Text
    b: Text
    to: Text
    goal: Text
    split: Text = "50/50"
    deployment: Text = ""


class ArmView(msgspec.Struct, frozen=True):
    """`assigned` devices, those that report, those that reported the goal, and the mean of these."""

    release: str
    share: float
    assigned: int
    reporting: int
    measured: int
    mean: float | None
    error_rate: float | None


class ExperimentView(msgspec.Struct, frozen=True):
    """`outcome`: waiting, mismatch, open, A or B. `difference` is B - A, with its interval (of latency_mean: relative)."""

    id: str
    status: str
    reason: str
    deployment: str
    to: str
    goal: str
    outcome: str
    words: str
    a: ArmView
    b: ArmView
    difference: float | None
    low: float | None
    high: float | None
    created: datetime


class FleetView(msgspec.Struct, frozen=True):
    """`GET /status`: the service at a glance. `dropped` counts messages that were refused, by reason.

    Of the services on one database one is the controller; the others serve this API, and take over when it ends.
    """

    fleet: str
    is_frozen: bool
    broker: str
    is_connected: bool
    devices: int
    online: int
    active_rollouts: int
    dropped: dict[str, int]
    is_controller: bool = True


class KeysView(msgspec.Struct, frozen=True):
    """Public halves only, key id → hex."""

    fleet: str
    order_keys: dict[str, str]
    audit_keys: dict[str, str]


class OrderKey(msgspec.Struct, frozen=True):
    """The key that is to sign orders once the publisher lists it: its id and ed25519 public key in hex."""

    keyid: str
    public: Key


class PublicKey(msgspec.Struct, frozen=True):
    """A public key as TUF metadata writes it; `key` has `keytype`, `scheme` and `keyval`."""

    keyid: str
    key: dict[str, Any]


class MetadataView(msgspec.Struct, frozen=True):
    """`GET /metadata`: the publishers' signed documents as text, and the key that signs snapshot and timestamp."""

    online_key: PublicKey
    roots: tuple[str, ...] = ()
    roles: dict[str, str] = {}


class NewMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /metadata`: new roots in order, the newest version of other roles, and what of the role `fleet` lists is new.

    Taken all or none.
    """

    roots: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    roles: Annotated[dict[str, str], Meta(max_length=1000)] = {}
    files: Annotated[dict[str, str], Meta(max_length=4)] = {}


class Freeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    is_frozen: bool
    reason: Text = ""


# -- access ----------------------------------------------------------------------------------------------------------

# Neither a colon, which the audit log puts before it, nor capitals: no two names that look alike.
AccessName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._@-]{0,47}$")]
ScopeText = Annotated[str, Meta(max_length=200)]


class Whoami(msgspec.Struct, frozen=True):
    """`GET /whoami`: `name` is `token:NAME` or `user:NAME`; an empty `scope` is the whole fleet."""

    name: str
    role: str
    scope: str


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /tokens`. Without `expires` (a duration) it holds until it is revoked."""

    name: AccessName
    role: Text
    scope: ScopeText = ""
    expires: Text = ""


class MadeToken(msgspec.Struct, frozen=True):
    """The one answer that holds the secret, and what a client needs besides."""

    name: str
    secret: str
    url: str
    ca: str

    def __repr__(self) -> str:
        return f"MadeToken({self.name!r})"


class TokenView(msgspec.Struct, frozen=True):
    """`state` is good, expired or revoked."""

    name: str
    role: str
    scope: str
    state: str
    created: datetime
    created_by: str
    expires: datetime | None
    last_used: datetime | None
    last_used_from: str


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /users`. Without `expires` (a duration) they stay until they are removed."""

    name: AccessName
    password: Text
    role: Text
    scope: ScopeText = ""
    expires: Text = ""

    def __repr__(self) -> str:
        return f"NewUser({self.name!r})"


class UserChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /users/NAME`: what is None stays as it is. `expires` is a duration from now on; empty is no end."""

    role: Text | None = None
    scope: ScopeText | None = None
    expires: Text | None = None


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /users/NAME/password`."""

    password: Text

    def __repr__(self) -> str:
        return "NewPassword()"


class UserView(msgspec.Struct, frozen=True):
    """`kind` is password or oidc, `state` good or blocked; `subject` is the issuer and who they are to it."""

    name: str
    role: str
    scope: str
    created: datetime
    created_by: str
    expires: datetime | None
    last_used: datetime | None
    last_used_from: str
    kind: str
    state: str
    subject: str


class Changed(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    name: str
    is_changed: bool = True


class AuditVerdict(msgspec.Struct, frozen=True):
    """`GET /audit/verdict`: `newest` and `covered` are ids of entries; `problems` is empty if the log is whole."""

    entries: int
    newest: int
    covered: int
    heads: int
    problems: tuple[str, ...]
