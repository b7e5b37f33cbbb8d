"""Detections of one-stage detectors: how boxes and scores stand in the outputs, and how two sets of them agree.

Pure. Detections are (100, 6) rows of x1, y1, x2, y2, score, class, the surest first, padded by rows of score -1.

Always true
 1. A model is taken for a detector only where boxes are boxes (of positive sides) and scores are rare and within 0 to 1.
 2. A detection counts as found again only if its class is the same and the boxes overlap by half.
 3. Rows are kept down to `LEAST_SCORE`, and both sides cut at the source's threshold: a box that survives suppression
    does so whatever stands below it.

Sources: Bodla et al. (2017), "Soft-NMS", §3 (greedy suppression); Redmon, Farhadi (2018), "YOLOv3" (objectness);
Liu et al. (2016), "SSD" (a background class).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.judge.detection import MAX_DETECTIONS, ious
from edgekit.samples import is_ragged
from edgekit.tensors import Array

THRESHOLD = 0.25
OVERLAP = 0.5
LEAST_SCORE = 1e-3
# Boxes that suppression looks at, the surest.
LOOKED_AT = 1000
# What a model must show before it is taken for a detector: places, and the share of them with a proper box.
LEAST_PLACES = 16
PROPER = 0.99
# Boxes are this many times larger than scores can be or, where both lie within 0 to 1, than scores are on average.
LARGER = 4.0
# The surest score is at least this, and boxes within 0 to 1 have sides of this on average.
LEAST_SEEN, LEAST_SIDE = 0.05, 0.01
PAD = -1.0

Floats = NDArray[np.float64]
Form = Literal["corners", "centre"]


class Layout(msgspec.Struct, frozen=True):
    """`style`: rows of boxes and scores joined along `axis` of a sample (from its end), in outputs apart, or detections
    after suppression. `form`: (x1, y1, x2, y2) or (centre x, centre y, width, height). `background` is a class that
    stands for nothing. `is_logit`: scores still need a sigmoid.
    """

    style: Literal["joined", "apart", "suppressed"]
    form: Form
    axis: int = -1
    has_objectness: bool = False
    background: int | None = None
    is_logit: bool = False


Found = tuple[tuple[str, ...], Layout]


def find(outputs: Mapping[str, Array]) -> Found | None:
    """The outputs that hold detections, boxes first, and how; None where nothing looks like a detector. Outputs are
    (N, *shape) without a batch axis of 1, perhaps ragged.
    """
    for look in (_suppressed, _joined, _apart):
        for found in look(outputs):
            return found
    return None


def claimed(outputs: Mapping[str, Array]) -> Found | None:
    """As `find`, for outputs that somebody calls boxes: only the shapes have to fit."""
    names = tuple(outputs)
    arrays = [_rows(array) for array in outputs.values()]
    if len(names) == 1:
        for axis in sorted((-1, -2), key=lambda axis: arrays[0].shape[axis] if arrays[0].ndim > 2 else 0):
            if arrays[0].ndim > 2 and arrays[0].shape[axis] > 4:
                table = np.moveaxis(arrays[0], axis, -1)
                boxes, scores = table[..., :4], table[..., 4:]
                return names, Layout(
                    "joined", _form(boxes), axis, _has_objectness(scores), is_logit=_is_logit(scores)
                )
    if len(names) == 2:
        boxes_first = sorted(names, key=lambda name: outputs[name].shape[-1:] != (4,))
        boxes, scores = (_rows(outputs[name]) for name in boxes_first)
        if boxes.shape[-1] == 4 and boxes.shape[:-1] == scores.shape[:-1]:
            layout = Layout("apart", _form(boxes), background=_background(scores), is_logit=_is_logit(scores))
            return tuple(boxes_first), layout
    return None


def _rows(array: Array) -> Array:
    """(N, places, last), or of ragged samples (1, all places, last); other shapes as they are."""
    if is_ragged(array):
        parts = [part.reshape(-1, part.shape[-1]) if part.ndim else part for part in array]
        is_even = len({part.shape[1:] for part in parts}) == 1 and parts[0].ndim == 2
        return np.concatenate(parts)[None] if is_even else np.zeros((len(array), 0))
    return array


def _suppressed(outputs: Mapping[str, Array]) -> Iterator[Found]:
    """(M, 6), or boxes (M, 4), scores (M,) and classes (M,)."""
    for name, array in outputs.items():
        rows = _rows(array)
        if rows.ndim == 3 and rows.shape[-1] == 6 and _are_detections(rows.reshape(-1, 6).astype(np.float64)):
            yield (name,), Layout("suppressed", "corners")
    for boxes, rows in ((name, _rows(array)) for name, array in outputs.items()):
        if rows.ndim != 3 or rows.shape[-1] != 4:
            continue
        beside = [
            name
            for name, array in outputs.items()
            if name != boxes and _count(array) == _count(outputs[boxes])
        ]
        for scores, classes in ((a, b) for a in beside for b in beside if a != b):
            parts = [rows.reshape(-1, 4), *(_column(outputs[name]) for name in (scores, classes))]
            if _are_detections(np.concatenate(parts, axis=1, dtype=np.float64)):
                yield (boxes, scores, classes), Layout("suppressed", "corners")


def _count(array: Array) -> list[int]:
    """Places of each sample: entries of a column, rows of boxes."""
    parts = list(array)
    return [
        part.shape[0] if part.ndim == 2 and part.shape[1] in (1, 4) else part.size if part.ndim == 1 else -1
        for part in parts
    ]


def _column(array: Array) -> Array:
    flat = np.concatenate([part.ravel() for part in array]) if is_ragged(array) else array.ravel()
    return flat.reshape(-1, 1)


def _are_detections(rows: Floats) -> bool:
    """Whether rows that count have corners in order, scores within 0 to 1 and whole classes."""
    if not len(rows) or not np.isfinite(rows).all():
        return False
    rows = rows[rows[:, 4] > 0]
    if len(rows) < 2 or rows[:, 4].max() > 1 or len(np.unique(rows[:, 4])) < 2:
        return False
    is_whole = np.all(rows[:, 5] == np.rint(rows[:, 5])) and rows[:, 5].min() >= 0
    return bool(is_whole and np.mean(_are_corners(rows[:, :4])) >= PROPER)


def _joined(outputs: Mapping[str, Array]) -> Iterator[Found]:
    for name, array in outputs.items():
        if array.dtype.kind != "f" and not is_ragged(array):
            continue
        for axis in (-1, -2):
            table = _rows(_turned(array, axis))
            if table.ndim != 3 or table.shape[-1] < 5 or table.shape[1] < LEAST_PLACES:
                continue
            boxes, scores = table[..., :4].astype(np.float64), table[..., 4:].astype(np.float64)
            if not _are_probabilities(table) and _look_like(boxes, scores):
                yield (name,), Layout("joined", _form(boxes), axis, _has_objectness(scores))


def _are_probabilities(table: Array) -> bool:
    """Whether either axis of (N, A, rows) sums to 1: classes of a sequence, of which there may be thousands."""
    return any(np.allclose(table.sum(axis=axis, dtype=np.float64), 1, atol=2e-3) for axis in (1, 2))


def _turned(array: Array, axis: int) -> Array:
    """With that axis of each sample last."""
    if not is_ragged(array):
        return np.moveaxis(array, axis, -1) if array.ndim == 3 else array
    turned = np.empty(len(array), object)
    for index, part in enumerate(array):
        turned[index] = np.moveaxis(part, axis, -1) if part.ndim == 2 else part
    return turned


def _apart(outputs: Mapping[str, Array]) -> Iterator[Found]:
    for left, right in combinations(outputs, 2):
        for boxes, scores in ((left, right), (right, left)):
            one, two = _rows(outputs[boxes]), _rows(outputs[scores])
            if one.ndim != 3 or two.ndim != 3 or one.shape[-1] != 4 or one.shape[:2] != two.shape[:2]:
                continue
            if one.dtype.kind != "f" or two.dtype.kind != "f" or one.shape[1] < LEAST_PLACES:
                continue
            background = _background(two)
            kept = two if background is None else np.delete(two, background, axis=-1)
            if _look_like(one.astype(np.float64), kept.astype(np.float64)):
                yield (boxes, scores), Layout("apart", _form(one), background=background)


def _look_like(boxes: Floats, scores: Floats) -> bool:
    """Whether (N, A, 4) may be boxes and (N, A, C) their scores."""
    if not boxes.size or not scores.size or not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        return False
    if scores.min() < 0 or not LEAST_SEEN <= scores.max() <= 1:
        return False
    flat = boxes.reshape(-1, 4)
    is_proper = max(np.mean(_are_corners(flat)), np.mean(np.all(flat[:, 2:] > 0, axis=1))) >= PROPER
    if not is_proper or not all(np.ptp(flat[:, row]) > 0 for row in range(4)):
        return False
    if np.abs(flat).max(axis=0).min() >= LARGER:
        return True
    # Both within 0 to 1: boxes lie inside the image, and most places hold nothing.
    corners = as_corners(flat, _form(boxes))
    is_inside = np.mean(np.all((corners >= -0.1) & (corners <= 1.1), axis=1)) >= PROPER
    is_large = np.abs(flat).mean(axis=0).min() >= max(LARGER * scores.mean(), LEAST_SIDE)
    return bool(is_inside and is_large)


def _are_corners(boxes: Floats) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.all(boxes[:, 2:] >= boxes[:, :2], axis=1)
    return found


def _form(boxes: Array) -> Form:
    return "corners" if np.mean(_are_corners(boxes.reshape(-1, 4).astype(np.float64))) >= PROPER else "centre"


def _has_objectness(scores: Array) -> bool:
    """The first row is objectness where it is rare and the others, given an object, are not."""
    if scores.shape[-1] < 2:
        return False
    values = scores.astype(np.float64)
    rare, others = float(np.median(values[..., 0])), float(np.median(values[..., 1:].max(axis=-1)))
    return rare < 0.05 and others > 0.1


def _background(scores: Array) -> int | None:
    """Of scores that sum to 1, the class of most places."""
    if scores.shape[-1] < 2 or not np.allclose(scores.sum(axis=-1, dtype=np.float64), 1, atol=2e-3):
        return None
    means = scores.reshape(-1, scores.shape[-1]).mean(axis=0, dtype=np.float64)
    return int(means.argmax()) if means.max() > 0.5 else None


def _is_logit(scores: Array) -> bool:
    return bool(scores.min() < 0 or scores.max() > 1)


def as_corners(boxes: Floats, form: Form) -> Floats:
    """(A, 4) of x1, y1, x2, y2."""
    if form == "corners":
        return boxes
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def detections(layout: Layout, parts: Sequence[Array]) -> Floats:
    """(100, 6) of one sample, whose outputs are `parts`. Something non-finite anywhere fills them with NaN."""
    made = np.full((MAX_DETECTIONS, 6), PAD)
    if not all(np.isfinite(part).all() for part in parts):
        made[:] = np.nan
        return made
    rows = _rows_of(layout, [part.astype(np.float64) for part in parts])
    rows = rows[rows[:, 4] >= LEAST_SCORE]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")][:LOOKED_AT]
    if layout.style != "suppressed":
        rows = _suppress(rows)
    rows = rows[:MAX_DETECTIONS]
    made[: len(rows)] = rows
    return made


def _rows_of(layout: Layout, parts: Sequence[Floats]) -> Floats:
    """Every place's best class, (A, 6)."""
    if layout.style == "suppressed":
        widths = (6,) if len(parts) == 1 else (4, 1, 1)
        rows = np.concatenate(
            [part.reshape(-1, width) for part, width in zip(parts, widths, strict=True)], axis=1
        )
        # A class is a number that some engines give as a float.
        return np.concatenate([rows[:, :5], np.rint(rows[:, 5:])], axis=1)
    if layout.style == "joined":
        table = np.moveaxis(parts[0], layout.axis, -1).reshape(-1, parts[0].shape[layout.axis])
        boxes, scores = table[:, :4], table[:, 4:]
    else:
        boxes, scores = parts[0].reshape(-1, 4), parts[1].reshape(-1, parts[1].shape[-1])
    if layout.is_logit:
        scores = 1 / (1 + np.exp(-np.clip(scores, -60, 60)))
    if layout.has_objectness:
        scores = scores[:, :1] * scores[:, 1:]
    if layout.background is not None:
        scores = scores.copy()
        scores[:, layout.background] = PAD
    best = scores.argmax(axis=1)
    columns = [as_corners(boxes, layout.form), scores.max(axis=1)[:, None], best[:, None]]
    return np.concatenate(columns, axis=1, dtype=np.float64)


def _suppress(rows: Floats) -> Floats:
    """What no surer box of its class overlaps by more than half; `rows` surest first."""
    kept = rows[:0]
    # In blocks: mostly the first ones fill the list, and the rest need not be looked at.
    for start in range(0, len(rows), MAX_DETECTIONS):
        block = rows[start : start + MAX_DETECTIONS]
        block = block[~_overlapping(block, kept).any(axis=1)]
        within = _overlapping(block, block)
        is_left = np.ones(len(block), np.bool_)
        for index in range(len(block)):
            if is_left[index]:
                is_left[index + 1 :] &= ~within[index, index + 1 :]
        kept = np.concatenate([kept, block[is_left]])[:MAX_DETECTIONS]
        if len(kept) == MAX_DETECTIONS:
            break
    return kept


def _overlapping(rows: Floats, others: Floats) -> NDArray[np.bool_]:
    """Which are of one class and overlap by more than half, (rows, others)."""
    result: NDArray[np.bool_] = (ious(rows[:, :4], others[:, :4]) > OVERLAP) & (
        rows[:, None, 5] == others[None, :, 5]
    )
    return result


def matched(source: Floats, candidate: Floats) -> tuple[Floats, Floats, int]:
    """Detections of both that found each other, in the same order, (M, 6) each, and how many there are on both sides.

    Both are cut at `THRESHOLD`, or at half the source's largest score where that does not reach it.
    """
    largest = float(source[:, 4].max(initial=0.0))
    least = THRESHOLD if largest >= THRESHOLD else max(largest / 2, LEAST_SCORE)
    ours, theirs = source[source[:, 4] >= least], candidate[candidate[:, 4] >= least]
    overlaps = ious(theirs[:, :4], ours[:, :4]) * (theirs[:, 5:6] == ours[None, :, 5])
    pairs: list[tuple[int, int]] = []
    for place, row in enumerate(overlaps):
        if len(row) and row.max() >= OVERLAP:
            pairs.append((int(row.argmax()), place))
            overlaps[:, pairs[-1][0]] = 0
    mine, other = ([pair[side] for pair in pairs] for side in (0, 1))
    return ours[mine], theirs[other], len(ours) + len(theirs)
