"""Payloads, as JSON.

Times are RFC 3339 in UTC; durations carry their unit; counters of a window are non-negative.

Every value has bounds, checked where it is decoded: what has passed `decode` fits the fleet's tables (64-bit integers,
text without control characters where it is stored as it is), and is something that a device could have done.
"""

from datetime import datetime
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

from edgekit.errors import MessageError
from edgekit.manifest import Histogram, Name, Sha256
from edgekit.sketch import Sketch
from edgekit.wire.samples import MAX_POLICIES, SamplePolicy
from edgekit.wire.states import AgentState

VERSION = 1
MAX_MESSAGE_BYTES = 256 * 1024
MAX_CONDITIONS = 64
MAX_DEPLOYMENTS = 32
GUARD_SHARE = "metric:guard_share"
# More than any engine on a small computer does; a window that claims more is not believed.
MAX_REQUESTS_PER_S = 10_000
MAX_WINDOW_S = 86_400.0
# A start a second for 30 years; incarnations go up by two a start.
MAX_INCARNATION = 2**31 - 1

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Text = Annotated[str, Meta(max_length=2000)]
Label = Annotated[str, Meta(max_length=200)]
# Stored as it is: PostgreSQL takes no NUL.
Plain = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{0,200}$")]
Word = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{0,64}$")]
DeviceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Megabytes = Annotated[float, Meta(ge=0, le=1e9)]
Moment = Annotated[datetime, Meta(tz=True)]
WindowSeconds = Annotated[float, Meta(ge=0, le=MAX_WINDOW_S)]

MAX_METRICS = 32
MetricName = Annotated[str, Meta(pattern=r"^(drift_psi|metric:[A-Za-z0-9_.-]{1,64})$")]
Finite = Annotated[float, Meta(ge=-1e15, le=1e15)]
# What was wrong with an input: `edgekit.errors.InputError.kind`.
AnomalyKind = Annotated[str, Meta(pattern=r"^[a-z][a-z-]{0,31}$")]
Index = Annotated[float, Meta(ge=0, le=1e6)]


class Boot(msgspec.Struct, frozen=True, order=True):
    """Which run of which enrolment spoke: messages order by (enrolment, incarnation, seq).

    One incarnation with two nonces is a cloned card.
    """

    enrolment: Small
    incarnation: Annotated[int, Meta(ge=0, le=MAX_INCARNATION)]
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]


class OrderedBundle(msgspec.Struct, frozen=True):
    """What one deployment is to run. `target` is `NAME/VERSION/PROFILE/<sha256>.edgekit`.

    `peak_memory_mb` is the most that a process takes with it, None where nobody knows.
    """

    target: Annotated[str, Meta(max_length=300)]
    sha256: Sha256
    length: Annotated[int, Meta(gt=0)]
    peak_memory_mb: Annotated[float, Meta(gt=0)] | None = None

    def is_same(self, other: "OrderedBundle | None") -> bool:
        """Whether both name the same bytes; what is said about them may differ."""
        return other is not None and (self.target, self.sha256, self.length) == (
            other.target, other.sha256, other.length,
        )  # fmt: skip


# Of one processor's time.
Share = Annotated[float, Meta(gt=0, le=0.5)]
DEFAULT_SHARE = 0.1


class OrderedShadow(msgspec.Struct, frozen=True):
    """A bundle that gets copies of what a deployment serves, and answers nobody. It may take `share` of a processor's time."""

    bundle: OrderedBundle
    share: Share = DEFAULT_SHARE


class OrderOptions(msgspec.Struct, frozen=True):
    """How the device goes about it. `None` leaves the agent's own setting.

    `retry` clears what the device holds against the ordered bundles, so that they are tried once more. A download begins
    `fetch_after_s` after the order came, and takes at most `fetch_bytes_s`, so that the devices of a site share its line.
    `despite_budget`: models are fetched even where the device's budget for its link is spent.
    """

    probation_s: Annotated[float, Meta(ge=0)] | None = None
    probation_requests: Count | None = None
    window_s: Annotated[float, Meta(gt=0)] | None = None
    retry: bool = False
    fetch_after_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    fetch_bytes_s: Annotated[float, Meta(gt=0)] | None = None
    despite_budget: bool = False


class Order(msgspec.Struct, frozen=True):
    """The signed desired state of a whole device; an empty or absent deployment means no model there.

    `added` are the deployments that an operator gave the device after it enrolled: the device has them from this order
    on, beside those of its enrolment file. `samples` says what it may keep of its inputs and bring to the fleet; what no
    policy of the newest order names is not kept, and what an ended one left waiting is deleted.
    """

    fleet: str
    device: str
    enrolment: Count
    deployments: dict[Name, OrderedBundle]
    counter: Count
    issued: datetime
    expires: datetime
    options: OrderOptions = OrderOptions()
    added: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    # Bundles that are compared with what a deployment serves.
    shadows: Annotated[dict[Name, OrderedShadow], Meta(max_length=32)] = {}
    samples: Annotated[tuple[SamplePolicy, ...], Meta(max_length=MAX_POLICIES)] = ()
    version: int = VERSION


class Fetched(msgspec.Struct, frozen=True):
    """What the network brought until the bundle `sha256` was whole, all tries since the agent started together."""

    sha256: Sha256
    size_bytes: Count
    by_delta: bool = False


ShadowState = Literal["fetch", "selftest", "running", "waiting", "refused", "served"]


class ShadowReport(msgspec.Struct, frozen=True):
    """What has become of an ordered shadow; `reason` says what it waits for, or why it is refused."""

    digest: Sha256
    state: ShadowState
    reason: Text = ""


class DeploymentReport(msgspec.Struct, frozen=True):
    """One deployment as the device has it. `digest` is what the worker loaded, never what was asked for.

    `memory_mb` is what its serving worker takes now, `fetched` the newest bundle that came since the agent started.
    """

    state: AgentState
    digest: Sha256 | None = None
    committed: Sha256 | None = None
    ordered: Sha256 | None = None
    model: Plain = ""
    model_version: Plain = ""
    reason: Text = ""
    memory_mb: Megabytes | None = None
    fetched: Fetched | None = None
    shadow: ShadowReport | None = None


class Condition(msgspec.Struct, frozen=True):
    """Something is wrong with the device, and it goes on: `code` for machines, `detail` for people.

    `deployment` is empty where it concerns the whole device; `since` is the device's own clock.
    """

    code: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
    detail: Text
    since: Moment
    deployment: Annotated[str, Meta(max_length=200)] = ""


class Reported(msgspec.Struct, frozen=True):
    """The device's retained self-description. `refused` says why the newest order was not followed, if so.

    `free_memory_mb` can still be taken beside what runs; with `overlap` an update needs room for old and new at once.
    """

    device: DeviceName
    boot: Boot
    seq: Count
    order_counter: Count
    deployments: Annotated[dict[Name, DeploymentReport], Meta(max_length=MAX_DEPLOYMENTS)]
    profile: Word
    isa: Annotated[tuple[Word, ...], Meta(max_length=64)]
    engines: Annotated[dict[Word, Plain], Meta(max_length=16)]
    agent_version: Plain
    bundle_format: Small
    free_bytes: Count
    free_memory_mb: Megabytes | None = None
    overlap: bool = True
    labels: Annotated[dict[Label, Label], Meta(max_length=64)] = {}
    refused: Text = ""
    conditions: Annotated[tuple[Condition, ...], Meta(max_length=MAX_CONDITIONS)] = ()
    version: int = VERSION


class Status(msgspec.Struct, frozen=True):
    """Retained; `online = false` is the last will."""

    online: bool
    boot: Boot
    version: int = VERSION


class Moments(msgspec.Struct, frozen=True, gc=False):
    """How often something was observed, and the sum of what was."""

    count: Count = 0
    total: Finite = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


class ShadowWindow(msgspec.Struct, frozen=True):
    """What a shadow did in a window, beside the bundle that served.

    `compared` inputs it answered too, `dropped` were served without a copy, on `failed` it gave no answer. `agreement` has
    for each output the sum of figures between 0 and 1 (`edgekit.agreement`), `cpu_ms` what an engine call took of one
    processor, `served_ms` what the served calls on the same inputs took by the clock.
    """

    digest: Sha256
    compared: Count = 0
    dropped: Count = 0
    failed: Count = 0
    agreement: Annotated[dict[Label, Moments], Meta(max_length=64)] = {}
    cpu_ms: Sketch = Sketch()
    served_ms: Sketch = Sketch()


class DeploymentWindow(msgspec.Struct, frozen=True):
    """What one loaded bundle did in a window.

    `infer_ms` is the engine call (contracts and gates mean this), `request_ms` includes the queue. `errors` are engine
    failures, timeouts and worker deaths over accepted `requests`; `rejected_inputs` are the callers' mistakes;
    `sequence_resets` are requests that meant to go on with a sequence whose state was gone; `guarded` are those of the
    accepted requests whose input the bundle's guard found unfamiliar, whatever was answered. `metrics` are what gates may
    name: `drift_psi` (the largest population stability index over the inputs, once per window) and `metric:NAME`, which
    the application reports; `metric:guard_share` is the share of `guarded`, of bundles that have a guard.

    `inputs`, `outputs` and `confidence` are counts over the bins of the bundle's reference, under its labels. `drift` is
    how far each of them is from it now, as `inputs/NAME`; what is missing there is not known. `anomalies` counts, by
    kind, inputs that were refused, and others that were answered and are unlike all that the model was judged on.
    """

    deployment: Name
    digest: Sha256 | None
    requests: Count = 0
    errors: Count = 0
    rejected_inputs: Count = 0
    worker_deaths: Count = 0
    sequence_resets: Count = 0
    infer_ms: Sketch = Sketch()
    request_ms: Sketch = Sketch()
    inputs: Annotated[dict[Label, Histogram], Meta(max_length=256)] = {}
    outputs: Annotated[dict[Label, Histogram], Meta(max_length=256)] = {}
    metrics: Annotated[dict[MetricName, Moments], Meta(max_length=MAX_METRICS)] = {}
    guarded: Count = 0
    confidence: Annotated[dict[Label, Histogram], Meta(max_length=64)] = {}
    anomalies: Annotated[dict[AnomalyKind, Count], Meta(max_length=32)] = {}
    drift: Annotated[dict[Label, Index], Meta(max_length=256)] = {}
    shadow: ShadowWindow | None = None


Purpose = Literal["orders", "telemetry", "models", "samples"]


class Passed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes that went to the fleet, and that came from it."""

    sent: Count
    received: Count


class Report(msgspec.Struct, frozen=True):
    """One telemetry message: a window of counters and sketches; idle windows are sent with zero counts.

    `started` is wall time as the device believes it, `length_s` monotonic. `traffic` is what the link has carried by
    purpose since the device's state folder was made (what TCP carries, with TLS).
    """

    device: DeviceName
    boot: Boot
    seq: Count
    started: Moment
    length_s: WindowSeconds
    clock_ok: bool
    # A deployment that changed its bundle meanwhile has a window for each.
    deployments: Annotated[tuple[DeploymentWindow, ...], Meta(max_length=4 * MAX_DEPLOYMENTS)]
    cpu_percent: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    memory_mb: Megabytes | None = None
    temperature_c: Annotated[float, Meta(ge=-300, le=10_000)] | None = None
    lost_reports: Count = 0
    traffic: dict[Purpose, Passed] = {}
    version: int = VERSION


class Ack(msgspec.Struct, frozen=True):
    """These reports are committed in the fleet's database."""

    boot: Boot
    seqs: tuple[Count, ...]
    version: int = VERSION


class Message(Protocol):
    """What goes over the wire by itself."""

    @property
    def version(self) -> int: ...


T = TypeVar("T", bound=Message)


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[T]) -> T:
    """Read one message.

    Raises: MessageError for oversized, malformed, impossible or unknown-version payloads.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{kind.__name__}: {len(data)} bytes, at most {MAX_MESSAGE_BYTES} are read")
    try:
        message = msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise MessageError(f"{kind.__name__}: {error}") from error
    if message.version != VERSION:
        raise MessageError(
            f"{kind.__name__}: version {message.version} is not known here (this side speaks {VERSION})"
        )
    if isinstance(message, Report) and (told := impossible(message)):
        raise MessageError(f"Report: {told}")
    return message


def impossible(report: Report) -> str:
    """Why no device can have done what a report claims, by its bounds taken together; empty if one could."""
    most = MAX_REQUESTS_PER_S * (report.length_s + 1)
    if len({(w.deployment, w.digest) for w in report.deployments}) < len(report.deployments):
        return "two windows of one bundle in one report"
    for window in report.deployments:
        counts = (
            window.requests, window.errors, window.rejected_inputs, window.sequence_resets, window.guarded,
        )  # fmt: skip
        timed = max(window.infer_ms.count, window.request_ms.count)
        if max(*counts, timed) > most:
            return f"{window.deployment}: more than {MAX_REQUESTS_PER_S} requests a second"
        if window.worker_deaths > 1000 * (report.length_s + 1):
            return f"{window.deployment}: {window.worker_deaths} worker deaths in {report.length_s:g} s"
    return ""
