"""How faithful a candidate's outputs are to the float source's: a figure of each output's kind, and a floor below it.

Pure. A judge's digest keeps of one sample what figure and floor need, whatever the model's size; digests of many
samples are stacked by name. The figure falls apart into samples (N, 2), so that a bootstrap costs nothing (`figures`);
the floor is the signal to noise of each group of channels (`snr`).

Always true
 1. The source against itself has the best figure (1, or `CAP_DB`) and no group below `CAP_DB`.
 2. Where neither side has anything (no detection, no active entry) they agree.
 3. A value that is not finite on one side only makes the figure a miss and is named by its sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.judge import boxes, snr
from converters.judge.figures import FIGURES, Parts, compared, found_rows
from converters.judge.kinds import Kind, OutputJudge, bare
from converters.judge.metrics import VALUE, Metric
from converters.judge.snr import CAP_DB, Group, decibel
from edgekit import rows
from edgekit.errors import DataError
from edgekit.samples import stacked
from edgekit.tensors import Array

# Least signal to noise of each group: of candidates of reduced precision, and of those that compute in float32.
FLOOR_DB = 15.0
FLOAT32_FLOOR_DB = 40.0
_FIGURE, _ENTRIES = "@figure", "@entries"

Digest = Mapping[str, Array]


class Fidelity(msgspec.Struct, frozen=True):
    """One judge's finding: `figure` (0 to 1, or dB where `unit` says so), the worst group (None where there is none),
    the first bad sample.
    """

    name: str
    kind: Kind
    figure: float
    unit: str
    worst: Group | None
    bad_sample: int | None

    def holds(self, least: float, floor_db: float = FLOOR_DB) -> bool:
        """Whether the figure is at least `least` (one in dB: `floor_db`) and no group lies below the floor."""
        return (
            self.bad_sample is None
            and self.figure >= (floor_db if self.unit == "dB" else least)
            and (self.worst is None or self.worst.snr_db >= floor_db)
        )


def digest(
    judge: OutputJudge, outputs: Mapping[str, Array], *, with_entries: bool = True
) -> dict[str, Array]:
    """Of one sample's outputs, each (1, *shape), what figure and floor look at, each (1, …), under names of the judge's
    own. Floors need entries of `snr.SAMPLES` samples only; so do figures of values and embeddings, of which nothing
    else is kept.
    """
    parts = [np.asarray(bare(outputs[name])[0]) for name in judge.outputs]
    figure = FIGURES[judge.kind]
    kept = {} if figure.is_of_entries else {judge.name + _FIGURE: figure.keep(judge, parts)}
    if with_entries and figure.is_of_entries:
        kept[_key(judge)] = figure.keep(judge, parts)
    elif with_entries:
        # Detections after suppression and whole numbers have no scales.
        kept |= {
            name + _ENTRIES: snr.entries(part, scale)
            for name, part, scale in zip(judge.outputs, parts, judge.scales, strict=False)
        }
    return {name: array[None] for name, array in kept.items()}


def parts(judge: OutputJudge, candidate: Digest, source: Digest) -> Parts:
    """Each sample's share of the figure's numerator and denominator, (N, 2); of a bad sample (0, inf).

    Raises: DataError where shapes differ.
    """
    return compared(judge, source[_key(judge)], candidate[_key(judge)])


def figure(judge: OutputJudge, sums: NDArray[np.float64]) -> float:
    """The figure of summed parts: 0 to 1, or dB. 1 where neither side has anything."""
    above, below = float(sums[0]), float(sums[1])
    if FIGURES[judge.kind].unit == "dB":
        return decibel(above, below)
    return above / below if below > 0 else 1.0


def floors(judge: OutputJudge, candidate: Digest, source: Digest) -> tuple[Group, ...]:
    """Signal to noise of each group of channels, of the samples whose entries are kept; of detections after
    suppression and of rows in any order, of those that found each other. Nothing for whole numbers. Raises: DataError where shapes differ.
    """
    if judge.layout is not None and judge.layout.style == "suppressed":
        return _of_pairs(judge, candidate[_key(judge)], source[_key(judge)])
    if judge.rows is not None:
        return _of_rows(judge, candidate[_key(judge)], source[_key(judge)])
    found: list[Group] = []
    for name, scale in zip(judge.outputs, judge.scales, strict=False):
        mine, other = (_in_channels(judge, side[name + _ENTRIES]) for side in (source, candidate))
        found += snr.groups(name, scale, mine, other)
    return tuple(found)


def first_bad(judge: OutputJudge, candidate: Digest, source: Digest) -> int | None:
    """The first sample with something non-finite on one side only, of all whose figure is kept."""
    bad = np.flatnonzero(FIGURES[judge.kind].bad(source[_key(judge)], candidate[_key(judge)]))
    return int(bad[0]) if len(bad) else None


def judged(judge: OutputJudge, candidate: Digest, source: Digest) -> Fidelity:
    """All of it at once. Raises: DataError where shapes differ."""
    sums = parts(judge, candidate, source).sum(axis=0)
    groups = floors(judge, candidate, source)
    bad = [first_bad(judge, candidate, source), *(group.bad_sample for group in groups)]
    return Fidelity(
        name=judge.name,
        kind=judge.kind,
        figure=figure(judge, sums),
        unit=FIGURES[judge.kind].unit,
        worst=min(groups, key=lambda group: group.snr_db, default=None),
        bad_sample=next((index for index in bad if index is not None), None),
    )


# A field after those with defaults needs one too.
_NOTHING = OutputJudge((), "values")


@dataclass(frozen=True)
class FidelityMetric(Metric):
    """A judge's figure as a metric against the source."""

    judge: OutputJudge = _NOTHING

    def seen(self, names: Sequence[str]) -> frozenset[str]:  # noqa: ARG002  # its own are known
        return frozenset(self.judge.outputs)

    def shares(self, digest: Digest, labels: Array) -> Parts:
        """Of ragged samples too. Raises: DataError."""
        return _against(self.judge, digest, labels)

    def of_sums(self, sums: NDArray[np.float64]) -> float:
        return figure(self.judge, sums)


def as_metric(judge: OutputJudge) -> Metric:
    """The judge's figure with the source's digest instead of labels: the default where there are none."""
    kind = FIGURES[judge.kind]
    return FidelityMetric(
        kind.metric,
        digest=partial(_value, judge),
        parts=partial(_against, judge),
        is_bounded=kind.is_bounded,
        by_labels=False,
        judge=judge,
    )


def _value(judge: OutputJudge, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """One array, (N, …), that holds what the figure needs."""
    each = [
        digest(judge, {name: outputs[name][index : index + 1] for name in judge.outputs})[_key(judge)][0]
        for index in range(len(outputs[judge.outputs[0]]))
    ]
    return {VALUE: stacked(each)}


def _against(judge: OutputJudge, digest: Digest, labels: Array) -> Parts:
    return compared(judge, labels, digest[VALUE])


def _key(judge: OutputJudge) -> str:
    """Where the figure's part of a digest stands."""
    return judge.name + (_ENTRIES if FIGURES[judge.kind].is_of_entries else _FIGURE)


def _in_channels(judge: OutputJudge, entries: Array) -> Array:
    """Of embeddings, whose entries stand as vectors (V, D), channels first; in one row where they share one scale."""
    if judge.kind != "embedding":
        return entries
    is_split = judge.scales[0].axis is not None
    return stacked([part.T if is_split else part.reshape(1, -1) for part in entries])


def _of_pairs(judge: OutputJudge, candidate: Array, source: Array) -> tuple[Group, ...]:
    """Coordinates and scores of detections that found each other."""
    if len(source) != len(candidate):
        raise DataError(f"{judge.name}: {len(candidate)} samples cannot be compared with {len(source)}")
    pairs = [
        boxes.matched(ours.astype(np.float64), theirs.astype(np.float64))
        for ours, theirs in zip(source, candidate, strict=True)
    ]
    return _of_columns(judge, [(ours[:, :5], theirs[:, :5]) for ours, theirs, _ in pairs])


def _of_rows(judge: OutputJudge, candidate: Array, source: Array) -> tuple[Group, ...]:
    """Real numbers of rows that found each other."""
    assert judge.rows is not None
    is_real = np.asarray(judge.rows.reach) > 0
    pairs = []
    for ours, theirs in zip(map(found_rows, source), map(found_rows, candidate), strict=True):
        mine, other = rows.matched(ours, theirs)
        pairs.append((ours[mine][:, is_real], theirs[other][:, is_real]))
    return _of_columns(judge, pairs) if is_real.any() else ()


def _of_columns(
    judge: OutputJudge, pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> tuple[Group, ...]:
    mine, other = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    if not len(mine):
        return (Group(judge.name, CAP_DB),)
    return snr.groups(judge.name, snr.Scale(-1), mine[:, :, None], other[:, :, None])
