"""Each kind's figure: what a digest keeps of a sample for it, and how two digests compare, sample by sample.

Pure. A figure falls apart into samples, (N, 2) of a numerator and a denominator.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.judge import boxes, snr
from converters.judge.kinds import Kind, OutputJudge
from edgekit import rows
from edgekit.errors import DataError
from edgekit.tensors import Array

# Activations of a sample that are kept, one bit each.
BITS = 131_072

Parts = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """`keep(judge, outputs)` is one sample's part of the digest. `parts(source, candidate)` are (N, 2), `bad(source,
    candidate)` (N,): whether something is not finite on one side only.

    `is_of_entries`: the floor's entries are what is kept. `is_bounded`: one sample moves the figure by 1/N at most.
    `unit`: empty for a ratio of 0 to 1.
    """

    metric: str
    keep: Callable[[OutputJudge, Sequence[Array]], Array]
    parts: Callable[[Array, Array], Parts]
    bad: Callable[[Array, Array], Flags]
    is_of_entries: bool = False
    is_bounded: bool = False
    unit: str = ""


def compared(judge: OutputJudge, source: Array, candidate: Array) -> Parts:
    """Shares of the figure. A bad sample has no numerator and an endless denominator, which makes any sum a miss.

    Raises: DataError where numbers or shapes of samples differ.
    """
    if len(source) != len(candidate):
        raise DataError(f"{judge.name}: {len(candidate)} samples cannot be compared with {len(source)}")
    for mine, other in zip(source, candidate, strict=True):
        if np.shape(mine) != np.shape(other):
            raise DataError(
                f"{judge.name}: a sample of {np.shape(other)} cannot be compared with {np.shape(mine)}"
            )
    figure = FIGURES[judge.kind]
    found = figure.parts(source, candidate)
    found[figure.bad(source, candidate)] = (0.0, math.inf)
    return found


def _each(function: Callable[[Array, Array], tuple[float, float]]) -> Callable[[Array, Array], Parts]:
    def parts(source: Array, candidate: Array) -> Parts:
        pairs = [
            function(np.asarray(mine), np.asarray(other))
            for mine, other in zip(source, candidate, strict=True)
        ]
        return np.array(pairs, np.float64).reshape(-1, 2)

    return parts


def _any(function: Callable[[Array, Array], bool]) -> Callable[[Array, Array], Flags]:
    def bad(source: Array, candidate: Array) -> Flags:
        return np.array([function(*pair) for pair in zip(source, candidate, strict=True)], np.bool_)

    return bad


def _spread(values: Array, most: int) -> Array:
    """In one row, at most so many."""
    row = values.reshape(-1)
    found: Array = row[snr.chosen(row.size, most)]
    return found


def _keep_labels(_judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    """int32 where that holds them. What is not finite in a float output becomes the smallest number."""
    kept = _spread(outputs[0], snr.KEPT)
    if kept.dtype.kind == "f":
        numbers = np.rint(np.where(np.isfinite(kept), kept.astype(np.float64), -(2.0**62))).astype(np.int64)
        kept = numbers
    if kept.dtype.kind in "iu" and kept.dtype.itemsize > 4 and kept.size:
        is_small = int(kept.min()) >= -(2**31) and int(kept.max()) < 2**31
        return kept.astype(np.int32) if is_small else kept
    return kept


def _keep_answers(judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    """The class of each place; where there is a NaN, the largest number of the type, which is no class."""
    values = outputs[0]
    best = np.asarray(values.argmax(axis=judge.axis))
    best = best.astype(np.min_scalar_type(values.shape[judge.axis]))
    is_odd = np.isnan(values).any(axis=judge.axis)
    return _spread(np.where(is_odd, np.iinfo(best.dtype.name).max, best).astype(best.dtype), snr.KEPT)


def _keep_bits(judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    """A byte that tells whether all is finite, then a bit for each entry: whether it lies on the rarer side."""
    values = outputs[0]
    is_above = _spread(values, BITS).astype(np.float64) > judge.threshold
    bits = np.packbits(is_above if judge.is_rare_above else ~is_above)
    return np.concatenate([[np.uint8(not np.isfinite(values).all())], bits])


def _keep_boxes(judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    assert judge.layout is not None
    found: Array = boxes.detections(judge.layout, outputs).astype(np.float32)
    return found


def _keep_rows(judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    """(rows, 1 + entries) in units of reach, with 1 before each row that is real."""
    assert judge.rows is not None
    named = dict(zip(judge.outputs, outputs, strict=True))
    real = rows.table(judge.rows, named)
    kept = np.zeros((min(judge.rows.bound, rows.MOST), 1 + real.shape[1]))
    kept[: len(real), 0], kept[: len(real), 1:] = 1, real
    return kept


def found_rows(kept: Array) -> rows.Floats:
    """The real rows of what is kept."""
    table: rows.Floats = kept.astype(np.float64)
    return table[table[:, 0] > 0, 1:]


def _same_rows(source: Array, candidate: Array) -> tuple[float, float]:
    mine, other = found_rows(source), found_rows(candidate)
    return 2.0 * len(rows.matched(mine, other)[0]), float(len(mine) + len(other))


def _is_other_number(source: Array, candidate: Array) -> bool:
    return bool(np.isfinite(source).all() and not np.isfinite(candidate).all())


def _keep_vectors(_judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    """Whole vectors of the last axis, (V, D), of as many as there is room for."""
    values = np.atleast_1d(outputs[0])
    rows = values.reshape(-1, values.shape[-1])
    kept = rows[snr.chosen(len(rows), max(1, snr.KEPT // max(rows.shape[1], 1)))]
    found: Array = kept.astype(np.float32 if values.dtype.itemsize < 8 else np.float64)
    return found


def _keep_entries(judge: OutputJudge, outputs: Sequence[Array]) -> Array:
    return snr.entries(outputs[0], judge.scales[0])


def _equal(source: Array, candidate: Array) -> tuple[float, float]:
    return float(np.sum(source == candidate)), float(source.size)


def _active(source: Array, candidate: Array) -> tuple[float, float]:
    """2 TP and 2 TP + FP + FN."""
    mine, other = source[1:].astype(np.uint8), candidate[1:].astype(np.uint8)
    return 2.0 * _ones(mine & other), float(_ones(mine) + _ones(other))


def _ones(bits: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _detected(source: Array, candidate: Array) -> tuple[float, float]:
    mine, _, total = boxes.matched(source.astype(np.float64), candidate.astype(np.float64))
    return 2.0 * len(mine), float(total)


def _cosines(source: Array, candidate: Array) -> tuple[float, float]:
    """From the distance of the unit vectors, so that a vector's cosine with itself is 1 exactly."""
    with np.errstate(invalid="ignore"):
        apart = ((_unit(source) - _unit(candidate)) ** 2).sum(axis=1)
    return float(np.sum(1 - apart / 2)), float(len(source))


def _unit(rows: Array) -> NDArray[np.float64]:
    values = rows.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    found: NDArray[np.float64] = values / np.where(norms > 0, norms, 1)
    return found


def _never(source: Array, _candidate: Array) -> Flags:
    return np.zeros(len(source), np.bool_)


def _is_other_answer(source: Array, candidate: Array) -> bool:
    most = np.iinfo(source.dtype.name).max
    return bool(np.any((source == most) != (candidate == most)))


def _is_other_flag(source: Array, candidate: Array) -> bool:
    return bool(source[0] != candidate[0])


FIGURES: Mapping[Kind, Figure] = {
    "labels": Figure("agreement", _keep_labels, _each(_equal), _never, is_bounded=True),
    "scores": Figure("agreement", _keep_answers, _each(_equal), _any(_is_other_answer), is_bounded=True),
    "map": Figure("agreement", _keep_answers, _each(_equal), _any(_is_other_answer), is_bounded=True),
    "activations": Figure("agreement", _keep_bits, _each(_active), _any(_is_other_flag)),
    "boxes": Figure("agreement", _keep_boxes, _each(_detected), snr.mismatches),
    "rows": Figure("agreement", _keep_rows, _each(_same_rows), _any(_is_other_number)),
    "embedding": Figure("cosine", _keep_vectors, _each(_cosines), snr.mismatches, is_of_entries=True),
    "values": Figure("sqnr", _keep_entries, snr.powers, snr.mismatches, is_of_entries=True, unit="dB"),
}
