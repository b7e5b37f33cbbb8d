"""What each group of the samples loses, as evidence and `result.json` hold it, and as rows that a person reads."""

import math
from collections.abc import Sequence
from typing import Any

from converters.judge.slices import SliceScore
from converters.report import numbers
from converters.sheet import Sheet
from edgekit.evidence import CandidateEvidence, Figure, SliceEvidence, Where

# Groups that a table has room for: those that lose most.
SHOWN = 6


def evidence(found: SliceScore, ours: Where, source: Where) -> SliceEvidence:
    """`ours` is what the candidate ran on."""
    own = found.accuracy
    told = SliceEvidence(
        found.name,
        found.samples,
        verdict=found.judgement.verdict if found.judgement else "",
        reason=found.reason,
    )
    if own is None or not all(map(math.isfinite, (own.source, own.candidate, own.drop))):
        return told
    return SliceEvidence(
        found.name,
        found.samples,
        Figure(own.source, "measured", source),
        Figure(own.candidate, "measured", ours),
        own.drop,
        _finite(own.low),
        _finite(own.bound),
        told.verdict,
        told.reason,
    )


def as_json(found: SliceScore) -> dict[str, Any]:
    own = found.accuracy
    return {
        "name": found.name,
        "samples": found.samples,
        "source": _finite(own.source) if own else None,
        "shipped": _finite(own.candidate) if own else None,
        "drop": _finite(own.drop) if own else None,
        "drop_low_95": _finite(own.low) if own else None,
        "drop_bound_95": _finite(own.bound) if own else None,
        "verdict": found.judgement.verdict if found.judgement else None,
        "reason": found.reason,
    }


def shown(sheet: Sheet) -> list[SliceEvidence]:
    """The groups that a table shows, of the first candidate that has them: the worst of all candidates first."""
    worst: dict[str, float] = {}
    first: dict[str, SliceEvidence] = {}
    for item in sheet.ranked:
        for each in item.slices:
            first.setdefault(each.name, each)
            worst[each.name] = max(worst.get(each.name, -math.inf), _loss(each))
    order = sorted(first, key=lambda name: (-worst[name], name))
    return [first[name] for name in order[:SHOWN]]


def hidden(sheet: Sheet) -> int:
    """How many groups a table leaves out."""
    return len({each.name for item in sheet.candidates for each in item.slices}) - len(shown(sheet))


def of(item: CandidateEvidence, name: str) -> SliceEvidence | None:
    return next((each for each in item.slices if each.name == name), None)


def interval(each: SliceEvidence | None) -> str:
    """A loss and its interval, as `0.021 (0.004..0.090)`; `?` where the metric says nothing of the group."""
    if each is None:
        return ""
    if each.drop is None:
        return "?"
    low, high = ("?" if end is None else numbers.brief(end) for end in (each.low, each.high))
    sign = {"missed": " !", "undecided": " ?"}.get(each.verdict, "")
    return f"{numbers.brief(each.drop)} ({low}..{high}){sign}"


def judged(sheets_candidates: Sequence[CandidateEvidence]) -> list[CandidateEvidence]:
    return [item for item in sheets_candidates if item.slices]


def _loss(each: SliceEvidence) -> float:
    return -math.inf if each.drop is None else each.drop


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
