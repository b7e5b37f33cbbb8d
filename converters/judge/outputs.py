"""What every output of a candidate must keep of the float source's, beside what the metric judges.

Pure: digests of both sides in, a figure and a verdict for each output out.

Always true
 1. Every output is looked at: by the metric, by a rule of this page, or by both.
 2. What a metric judges by labels is judged by them alone. Of all other outputs the figure of their kind may fall by as
    much as the metric may, and no group of channels may lie below its floor of signal to noise; nor may it where a
    metric of values (rmse, cosine, sqnr) would let a large channel hide a small one.
 3. A candidate that computes in float32 is held to a floor that only the same function reaches, on every output.
 4. These are floors, not bounds: points over all judged samples, which catch what is ruined.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from converters.judge import fidelity
from converters.judge.fidelity import FLOAT32_FLOOR_DB, FLOOR_DB, Fidelity
from converters.judge.kinds import Kind, OutputJudge
from converters.judge.metrics import AGAINST_SOURCE
from edgekit.tensors import Array

Digest = Mapping[str, Array]
# What the figure of each kind is called where it is shown.
FIGURES: Mapping[Kind, str] = {
    "labels": "equal",
    "scores": "same class",
    "map": "same class of a pixel",
    "activations": "F1 of the active",
    "boxes": "F1 of detections",
    "rows": "F1 of rows",
    "embedding": "cosine",
    "values": "sqnr",
}


class Wish(msgspec.Struct, frozen=True):
    """What the user set for an output: its kind, how far its figure may fall, its floor."""

    kind: Kind | None = None
    max_loss: float | None = None
    min_snr_db: float | None = None


class Rule(msgspec.Struct, frozen=True):
    """`max_loss`: how far the figure (0 to 1) may lie below 1; None where the metric judges it. `floor_db` None: none."""

    judge: OutputJudge
    max_loss: float | None
    floor_db: float | None


class OutputScore(msgspec.Struct, frozen=True):
    """What a candidate keeps of one output. `figure` is a share of 1, or in dB where `unit` says so; `snr_db` is that of
    the worst group of channels, None where nothing is measured in dB. `excess` says how bad it is: 1 at its limit.
    """

    name: str
    kind: Kind
    metric: str
    figure: float
    unit: str
    snr_db: float | None
    channels: str
    least: float | None
    floor_db: float | None
    reason: str = ""
    excess: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.reason


def rules(
    judges: Sequence[OutputJudge],
    metric: str,
    looked_at: Collection[str],
    *,
    limit: float,
    by_labels: bool,
    wishes: Mapping[str, Wish],
) -> tuple[Rule, ...]:
    """One for each judge; `limit` is what an output's figure may lose unless the user wished otherwise."""
    return tuple(
        _rule(judge, metric, looked_at, limit=limit, by_labels=by_labels, wishes=wishes) for judge in judges
    )


def _rule(
    judge: OutputJudge,
    metric: str,
    looked_at: Collection[str],
    *,
    limit: float,
    by_labels: bool,
    wishes: Mapping[str, Wish],
) -> Rule:
    own = [wishes[name] for name in judge.outputs if name in wishes]
    loss = next((wish.max_loss for wish in own if wish.max_loss is not None), None)
    floor = next((wish.min_snr_db for wish in own if wish.min_snr_db is not None), None)
    if set(judge.outputs) <= set(looked_at):
        is_blind = not by_labels or metric in AGAINST_SOURCE
        return Rule(judge, loss, FLOOR_DB if floor is None and is_blind else floor)
    return Rule(judge, limit if loss is None else loss, FLOOR_DB if floor is None else floor)


def scores(
    of: Sequence[Rule], candidate: Digest, source: Digest, *, is_float32: bool
) -> tuple[OutputScore, ...]:
    """Every rule's finding. Raises: DataError where the candidate's outputs have other shapes."""
    return tuple(_score(rule, candidate, source, is_float32=is_float32) for rule in of)


def _score(rule: Rule, candidate: Digest, source: Digest, *, is_float32: bool) -> OutputScore:
    floor = max(rule.floor_db or 0.0, FLOAT32_FLOOR_DB) if is_float32 else rule.floor_db
    found = fidelity.judged(rule.judge, candidate, source)
    is_share = not found.unit
    least = 1 - rule.max_loss if rule.max_loss is not None and is_share else None
    reasons = [*_bad(found), *_figure(found, least), *_floor(found, floor)]
    return OutputScore(
        name=found.name,
        kind=found.kind,
        metric=FIGURES[rule.judge.kind],
        figure=found.figure,
        unit=found.unit,
        snr_db=found.worst.snr_db if found.worst else None,
        channels=found.worst.label if found.worst else "",
        least=least,
        floor_db=floor if found.worst else None,
        reason=f"output {found.name!r} ({found.kind}): {'; '.join(reasons)}" if reasons else "",
        excess=_excess(found, rule.max_loss if is_share else None, floor),
    )


def _bad(found: Fidelity) -> list[str]:
    if found.bad_sample is None:
        return []
    return [
        f"not finite where the source is, or the other way round, first at judged sample {found.bad_sample}"
    ]


def _figure(found: Fidelity, least: float | None) -> list[str]:
    if least is None or found.figure >= least:
        return []
    return [f"{found.figure:.4f} of what the float source says is kept, at least {least:.4f} must be"]


def _floor(found: Fidelity, floor: float | None) -> list[str]:
    if floor is None or found.worst is None or found.worst.snr_db >= floor:
        return []
    where = found.worst.label.removeprefix(found.name).strip()
    told = (
        f"{found.worst.snr_db:.1f} dB of signal to noise against the float source{f' in {where}' if where else ''},"
        f" at least {floor:g} dB must be"
    )
    return [told]


def _excess(found: Fidelity, max_loss: float | None, floor: float | None) -> float:
    """The largest of: loss over what it may be, amplitude of noise over what it may be."""
    if found.bad_sample is not None:
        return float("inf")
    parts = [0.0]
    if max_loss is not None:
        parts.append((1 - found.figure) / max(max_loss, 1e-6))
    if floor is not None and found.worst is not None:
        parts.append(10 ** ((floor - found.worst.snr_db) / 20))
    return max(parts)
