"""What a page shows of one profile, taken from a build's result or from an evidence file.

Pure: structs in, structs out.
"""

import msgspec

from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure, Outcome, TrialEvidence
from edgekit.manifest import Contract

_ORDER = ("picked", "alternate", "lost", "refused", "failed")


class Sheet(msgspec.Struct, frozen=True, omit_defaults=True):
    """One profile: its contract, every candidate, and the pick (empty where nothing met the contract).

    `accuracy` figures are of `metric` on `samples` judged samples; `missed` says why there is no bundle; `built` is when
    the build began (ISO 8601, UTC); `is_limit_default` that nobody set the contract's accuracy limit.
    """

    name: str
    version: str
    profile: str
    title: str
    metric: str
    picked: str
    contract: Contract
    candidates: tuple[CandidateEvidence, ...]
    higher_is_better: bool = True
    samples: int = 0
    source_accuracy: Figure | None = None
    source_sha256: str = ""
    source_parity: Figure | None = None
    budgets: dict[str, Outcome] = {}
    tools: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    missed: str = ""
    trials: tuple[TrialEvidence, ...] = ()
    built: str = ""
    is_limit_default: bool = False

    @property
    def pick(self) -> CandidateEvidence | None:
        return next((item for item in self.candidates if item.recipe == self.picked), None)

    @property
    def ranked(self) -> list[CandidateEvidence]:
        """The candidates as a reader wants them: the pick, the alternates, and so on; otherwise as they were tried."""
        return sorted(self.candidates, key=lambda item: _ORDER.index(item.status))

    @property
    def is_measured(self) -> bool:
        """Whether latency was measured on the profile's kind of machine."""
        return any(item.latency_p50_ms and item.latency_p50_ms.how == "measured" for item in self.candidates)

    @property
    def boards(self) -> str:
        """The boards of a fleet that measured it; empty where none did."""
        figure = self.pick.latency_p50_ms if self.pick is not None else None
        return figure.on.device if figure is not None else ""

    @property
    def ranks_only(self) -> bool:
        """Whether it was measured on a machine with more than the profile has: such times only order candidates."""
        return any(item.latency_p50_ms and item.latency_p50_ms.ranks_only for item in self.candidates)


def of_evidence(told: BuildEvidence) -> Sheet:
    """The sheet that a bundle's evidence holds; an alternate's evidence shows its profile's pick."""
    picked = next((item.recipe for item in told.candidates if item.status == "picked"), told.recipe)
    return Sheet(
        name=told.name,
        version=told.version,
        profile=told.profile,
        title=told.title,
        metric=told.metric,
        picked=picked,
        contract=told.contract,
        candidates=told.candidates,
        higher_is_better=told.higher_is_better,
        samples=told.samples,
        source_accuracy=told.source_accuracy,
        source_sha256=told.source_sha256,
        source_parity=told.source_parity,
        budgets=told.budgets,
        tools=told.tools,
        notes=told.notes,
        trials=told.trials,
        built=told.built,
        is_limit_default=told.is_limit_default,
    )
