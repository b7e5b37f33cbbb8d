"""Every error that a user can cause: what was wrong, where, and what to do about it.

One class per kind of trouble. `exit_code` is what a command ends with, `http_status` what an API answers,
`code` the stable word machines match on (also in `--json`).

Exit codes: 0 done · 2 usage or bad input · 3 contract not met · 4 a tool failed · 5 the fleet refused or cannot be
reached · 130 interrupted · 143 terminated.
"""

from dataclasses import dataclass
from typing import ClassVar


class EdgeKitError(Exception):
    """Base of all; the message is a full sentence for a person."""

    exit_code: ClassVar[int] = 2
    http_status: ClassVar[int] = 400
    code: ClassVar[str] = "error"


class UsageError(EdgeKitError):
    """The command or call itself is wrong: a flag, an argument, a combination."""

    code = "usage"


class NotPossibleError(UsageError):
    """Well formed, and nothing that can be done as things stand: no device matches, a gate could never conclude."""

    code = "not-possible"
    http_status = 409


class ProjectError(EdgeKitError):
    """`edgekit.toml` or the flags that stand for it are wrong."""

    code = "project"


class SourceError(EdgeKitError):
    """The model to build from cannot be read, or leaves something open that a build must know."""

    code = "source"


class DataError(EdgeKitError):
    """Calibration, evaluation or input data is missing or does not fit the model."""

    code = "data"


class ProfileError(EdgeKitError):
    """A hardware profile is unknown or says something impossible."""

    code = "profile"


class ManifestError(EdgeKitError):
    """A bundle's manifest is malformed or of an unknown format version."""

    code = "manifest"


class BundleError(EdgeKitError):
    """A bundle is truncated, altered or unsafe; nothing of it was written."""

    code = "bundle"


class EngineError(EdgeKitError):
    """An engine is unknown, not installed, of the wrong version, or failed on a model."""

    code = "engine"
    exit_code = 4
    http_status = 500


class EngineMissingError(EngineError):
    """The engine a bundle needs is not installed here, or its version is outside the bundle's range."""

    code = "engine-missing"
    exit_code = 2
    http_status = 503


class InputError(EdgeKitError):
    """An inference input does not fit the manifest; never the engine's fault. `kind` is what devices count it under."""

    code = "input"
    kind: str = "undecodable"

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        if kind:
            self.kind = kind


class FeedError(EdgeKitError):
    """A source of the device's agent cannot be read, or a sink takes nothing: a folder, a broker, a camera, a webhook."""

    code = "feed"
    exit_code = 4


class UnfamiliarError(EdgeKitError):
    """An input that fits, and is unlike all that the model was made with; its guard is set to refuse such."""

    code = "unfamiliar"
    http_status = 422


class SelfTestFailedError(EdgeKitError):
    """A bundle's golden inputs gave other outputs than the tolerances allow."""

    code = "selftest"
    exit_code = 3


@dataclass(frozen=True)
class Tried:
    """A candidate of a profile that got no bundle; figures that were not obtained are None.

    `drop` is the accuracy lost to the source in the harmful direction, `drop_bound_95` its upper 95 % bound.
    """

    profile: str
    recipe: str
    status: str
    reason: str
    accuracy: float | None = None
    drop: float | None = None
    drop_bound_95: float | None = None
    latency_p95_ms: float | None = None
    memory_mb: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class GuiltyLayer:
    """A layer of such a candidate and what quantizing it alone costs: signal-to-noise ratio of the outputs in decibels
    and, where that was measured, the divergence of their probabilities in nats.
    """

    profile: str
    recipe: str
    name: str
    op_type: str
    snr_db: float
    divergence: float | None = None


class ContractMissedError(EdgeKitError):
    """No candidate met the contract (or none could be shown to); the least bad one is kept on disk.

    `table` lists what was tried for the profiles that got no bundle, `layers` those that lost most, the worst of each
    candidate first. Both are empty where only the command's own demands (`--strict`, `--locked`) were missed.
    """

    code = "contract"
    exit_code = 3

    def __init__(
        self, message: str, table: tuple[Tried, ...] = (), layers: tuple[GuiltyLayer, ...] = ()
    ) -> None:
        super().__init__(message)
        self.table = table
        self.layers = layers


class LockError(EdgeKitError):
    """`edgekit.lock` is missing, cannot be read, or is about other inputs or tools than these."""

    code = "lock"


class ToolFailedError(EdgeKitError):
    """A converter, quantizer or system program failed in a way that the user did not cause."""

    code = "tool"
    exit_code = 4
    http_status = 500


class SignatureRefusedError(EdgeKitError):
    """A signature is missing, of an unknown key, or does not match."""

    code = "signature"
    http_status = 403


class MessageError(EdgeKitError):
    """A wire message cannot be read or has an unknown version."""

    code = "message"


class OrderRefusedError(EdgeKitError):
    """A well-signed order that this device must not follow (other device, old counter, expired)."""

    code = "order-refused"
    http_status = 409


class CommandRefusedError(EdgeKitError):
    """A well-signed command that this device must not follow. `is_ours`: it was meant for this device as it is."""

    code = "command-refused"
    http_status = 409

    def __init__(self, message: str, *, is_ours: bool = False) -> None:
        super().__init__(message)
        self.is_ours = is_ours


class FleetError(EdgeKitError):
    """The fleet refused a request or cannot be reached."""

    code = "fleet"
    exit_code = 5


class HardwareKeyError(FleetError):
    """A key's token is away or does not sign: later it may."""

    code = "hardware-key"
    http_status = 503


class NotFoundError(FleetError):
    """There is no such device, release or rollout."""

    code = "not-found"
    http_status = 404


class ConflictError(FleetError):
    """The request contradicts what is already there (a version that exists, two rollouts of one device)."""

    code = "conflict"
    http_status = 409


class EndedError(ConflictError):
    """What this is for is over, and does not come back."""

    code = "ended"
    http_status = 410


class ChangedMeanwhileError(ConflictError):
    """What was to be decided about is no longer as the caller saw it."""

    code = "changed-meanwhile"
    http_status = 412


class KeyReusedError(FleetError):
    """An Idempotency-Key came with another request than the first time."""

    code = "key-reused"
    http_status = 422


class AuthError(FleetError):
    """No valid token, or its role does not allow this."""

    code = "auth"
    http_status = 403
