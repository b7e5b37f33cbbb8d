"""Evidence: what a build measured, and how, as an in-toto statement about the bundle's digest.

A figure never travels alone: `Figure` says how it came about and on what. It stands beside the bundle
(`NAME-VERSION-PROFILE.evidence.json`), never inside it, so that measuring again does not change a digest.

Source: in-toto Attestation Framework v1, "Statement".
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgekit.errors import BundleError
from edgekit.manifest import Contract, Option
from edgekit.plain import plain

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://edgekit.dev/build-evidence/v1"

How = Literal["measured", "emulated", "estimated"]


class Where(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a figure was obtained on. `held` says what kept the engine to the profile's instruction sets, where the CPU has
    more; `device` names the boards of a fleet that measured it, where some did.
    """

    cpu: str
    isa: tuple[str, ...] = ()
    engine: str = ""
    engine_version: str = ""
    threads: int = 0
    held: str = ""
    device: str = ""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value with its origin. `high` makes it a range from `value` to `high` (estimates are ranges).

    `ranks_only`: a time of a CPU whose engine uses what the profile does not promise. It orders candidates; no budget is
    met or missed by it.
    """

    value: float
    how: How
    on: Where
    unit: str = ""
    high: float | None = None
    ranks_only: bool = False


class Compiled(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the compiler of an accelerator that is not here estimates of what it made.

    `cycles`, `latency_ms` and `inferences_per_s` count the accelerator only, without the operators in `on_cpu` (name
    and number, of `operators` in the model). Memory is what it allocated, in kB of 1000 bytes; `sram_limit_kb` None
    where the memory mode sets none. `uncompiled_sha256` is the model that went in, on which accuracy was judged.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    compiler: str
    cycles: int
    latency_ms: float
    inferences_per_s: float
    macs: int
    sram_kb: float
    dram_kb: float
    flash_kb: float
    operators: int
    on_cpu: dict[str, int]
    uncompiled_sha256: str
    sram_limit_kb: float | None = None
    how: How = "estimated"

    @property
    def memory_mb(self) -> float:
        """Working memory of one inference: SRAM and DRAM, weights that stay in flash left out."""
        return (self.sram_kb + self.dram_kb) / 1000


Outcome = Literal["met", "missed", "unverified", "no-limit"]


class LayerEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """What quantizing one layer alone costs: the model's output signal-to-noise ratio in decibels and, where an output
    holds probabilities and it was measured, their Kullback-Leibler divergence from the float model's in nats.
    """

    name: str
    op_type: str
    snr_db: float
    divergence: float | None = None


class BucketEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """One bucket of a model that has some: `share` of all evaluation samples, the metric on its `samples` judged ones, the
    latency of calls that fall into it (None where nothing was measured).
    """

    size: int
    share: float
    samples: int
    source_accuracy: Figure
    accuracy: Figure
    latency_p50_ms: Figure | None = None
    latency_p95_ms: Figure | None = None


class OutputEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """How faithful one output of a candidate is to the float source's.

    `metric` names the figure that suits what the output holds (`kind`), `value` is that figure; for `agreement` and its
    like the `drop_bound` is how much the source's own figure may lie above it at 95 % confidence, for comparison with
    `limit`. `snr_db` is the signal-to-noise ratio in decibels of the worst group of channels (`channels` names it), for
    comparison with `floor_db`; None where the output has no meaningful one. `reason` says why it does not hold.
    """

    name: str
    kind: str
    metric: str
    value: float
    drop_bound: float | None
    snr_db: float | None
    channels: str = ""
    limit: float | None = None
    floor_db: float | None = None
    holds: bool = True
    reason: str = ""


class SliceEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a candidate loses in one group of the judged samples. `drop` is in the harmful direction, `low` and `high` its
    95 % bounds, for all groups of all judged candidates together; None where the metric says nothing of such a group.
    `verdict` is empty where no `max_drop_per_slice` was set.
    """

    name: str
    samples: int
    source_accuracy: Figure | None = None
    accuracy: Figure | None = None
    drop: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Literal["", "met", "missed", "undecided"] = ""
    reason: str = ""


class CandidateEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """One recipe tried: its figures, and why it won or lost. `size_bytes` is of the model, `bundle_bytes` about what its
    bundle weighs, self-test data included.
    """

    recipe: str
    status: Literal["picked", "alternate", "lost", "refused", "failed"]
    reason: str
    size_bytes: int | None = None
    accuracy: Figure | None = None
    accuracy_drop: Figure | None = None
    parity: Figure | None = None
    latency_p50_ms: Figure | None = None
    latency_p95_ms: Figure | None = None
    memory_mb: Figure | None = None
    # Of that, what Python and numpy take before the engine is loaded.
    memory_base_mb: Figure | None = None
    notes: tuple[str, ...] = ()
    compiled: Compiled | None = None
    layers: tuple[LayerEvidence, ...] = ()
    buckets: tuple[BucketEvidence, ...] = ()
    bundle_bytes: int | None = None
    outputs: tuple[OutputEvidence, ...] = ()
    slices: tuple[SliceEvidence, ...] = ()
    # Of how many judged samples the figures are, where that is not all of them: it was too slow to be picked.
    samples: int | None = None


def worst_output(outputs: Sequence[OutputEvidence]) -> OutputEvidence | None:
    """The output that is furthest gone: what does not hold, then the one closest to its floor, then to its limit."""

    def standing(item: OutputEvidence) -> tuple[bool, float, float]:
        over_floor = math.inf if item.snr_db is None else item.snr_db - (item.floor_db or 0.0)
        return item.holds, over_floor, -(item.drop_bound or 0.0)

    return min(outputs, key=standing, default=None)


class TrialEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """One trial of a search. `number` 0 is a fixed recipe; `loss` is on the search half, clean or corrupted, whichever is
    more; `cost` milliseconds or, where the target's time could not be measured, MB. `candidate` names what became of it.
    """

    number: int
    recipe: str
    settings: dict[str, Option] = {}
    float_layers: tuple[str, ...] = ()
    loss: Figure | None = None
    cost: Figure | None = None
    holds: bool = False
    is_on_front: bool = False
    candidate: str = ""
    failure: str = ""


class Emulation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A bundle's self-test on an emulated CPU of its profile.

    `max_error` is the largest difference of each output to what the artifact gave on the building machine (`against`),
    `samples` how many of the golden ones ran in the time given. `reason` says what failed, or why nothing ran.
    """

    outcome: Literal["passed", "failed", "not emulated"]
    reason: str = ""
    samples: int = 0
    of: int = 0
    agreement: Figure | None = None
    max_error: dict[str, Figure] = {}
    tolerance: dict[str, float] = {}
    against: Where | None = None


class GuardCatch(msgspec.Struct, frozen=True):
    """How many of some inputs a guard catches; `low` and `high` are the 95 % interval of the share."""

    name: str
    found: int
    of: int
    low: float
    high: float


class GuardEvidence(msgspec.Struct, frozen=True):
    """What a build found of a bundle's guard: `stated` is the rate of false alarms that it was set for, on `set_on` samples,
    `familiar` those of others that it caught, which are false alarms, `unfamiliar` what it was judged on beside them.
    """

    answer: str
    stated: float
    fitted_on: int
    set_on: int
    familiar: GuardCatch
    unfamiliar: tuple[GuardCatch, ...] = ()


class BuildEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """The predicate: one bundle's build. `accuracy` and `source_accuracy` are of `samples` judged samples.

    With `buckets`, the median latency is the mean of theirs by their shares, and the 95th percentile their largest.
    `built` is when the build began (ISO 8601, UTC); `is_limit_default` that nobody set the contract's accuracy limit.
    """

    name: str
    version: str
    profile: str
    recipe: str
    metric: str
    source_accuracy: Figure
    accuracy: Figure
    latency_p50_ms: Figure
    latency_p95_ms: Figure
    budgets: dict[str, Outcome]
    candidates: tuple[CandidateEvidence, ...]
    tools: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    source_parity: Figure | None = None
    memory_mb: Figure | None = None
    compiled: Compiled | None = None
    emulation: Emulation | None = None
    title: str = ""
    source_sha256: str = ""
    contract: Contract = Contract()
    higher_is_better: bool = True
    samples: int = 0
    trials: tuple[TrialEvidence, ...] = ()
    buckets: tuple[BucketEvidence, ...] = ()
    built: str = ""
    is_limit_default: bool = False
    guard: GuardEvidence | None = None


class Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: BuildEvidence


def statement(bundle_name: str, sha256: str, predicate: BuildEvidence) -> Statement:
    return Statement(STATEMENT_TYPE, (Subject(bundle_name, {"sha256": sha256}),), PREDICATE_TYPE, predicate)


def encode(value: Statement) -> bytes:
    return (
        msgspec.json.format(msgspec.json.encode(value, order="deterministic", enc_hook=plain), indent=1)
        + b"\n"
    )


def decode(data: bytes, *, sha256: str | None = None) -> Statement:
    """Read a statement; with `sha256`, refuse one about another bundle.

    Raises: BundleError.
    """
    try:
        value = msgspec.json.decode(data, type=Statement)
    except msgspec.DecodeError as error:
        raise BundleError(f"evidence cannot be read: {error}") from error
    if value.type_ != STATEMENT_TYPE or value.predicate_type != PREDICATE_TYPE:
        raise BundleError(f"evidence of type {value.predicate_type!r} is not known here")
    if sha256 is not None and not any(subject.digest.get("sha256") == sha256 for subject in value.subject):
        raise BundleError(f"the evidence is about another bundle than {sha256[:12]}…")
    return value


def beside(bundle: Path) -> Path:
    """Where the evidence of a bundle file lies."""
    return bundle.with_name(bundle.name.removesuffix(".edgekit") + ".evidence.json")
