"""Mean average precision of boxes, as COCO counts it: over IoU .50 to .95, 101 points of recall, classes averaged.

Outputs are boxes after suppression: one output (N, [1,] M, 6) of x1, y1, x2, y2, score, class, or three outputs of boxes
(N, [1,] M, 4), scores (N, [1,] M) and classes (N, [1,] M), in that order; rows whose score is not above zero count as none.
Labels are (N, K, 5) of x1, y1, x2, y2, class, where rows of a negative class are padding.

Source: Lin et al. (2014), "Microsoft COCO: Common Objects in Context", and the detection evaluation described with it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.tensors import Array

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# Detections of one sample that count, the surest first.
MAX_DETECTIONS = 100
BOXES = "boxes"
Floats = NDArray[np.float64]


def detections(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """(N, M, 6) of x1, y1, x2, y2, score, class. Raises: DataError for other outputs."""
    arrays = list(outputs.values())
    count = len(arrays[0])
    if arrays[0].shape[-1] == 6:
        return {BOXES: arrays[0].reshape(count, -1, 6).astype(np.float64)}
    if len(arrays) < 3 or arrays[0].shape[-1] != 4:
        shapes = ", ".join(f"{name} {array.shape[1:]}" for name, array in outputs.items())
        raise DataError(
            f"metric 'map' needs one output of rows (x1, y1, x2, y2, score, class), or boxes, scores and classes;"
            f" the model gives {shapes}. Decode it in a metric of your own (file.py:function)"
        )
    parts = [arrays[0].reshape(count, -1, 4), *(array.reshape(count, -1, 1) for array in arrays[1:3])]
    return {BOXES: np.concatenate([part.astype(np.float64) for part in parts], axis=-1)}


def mean_average_precision(digest: Mapping[str, Array], labels: Array) -> float:
    """0 to 1. Raises: DataError for labels of another shape."""
    wanted = np.asarray(labels, np.float64)
    if wanted.ndim != 3 or wanted.shape[-1] != 5:
        raise DataError(f"labels {wanted.shape}: metric 'map' needs (N, K, 5) of x1, y1, x2, y2, class")
    found = digest[BOXES]
    classes = np.unique(wanted[..., 4][wanted[..., 4] >= 0])
    if not len(classes):
        raise DataError("labels hold no box; metric 'map' needs some")
    return float(np.mean([_average_precision(found, wanted, cls, iou) for cls in classes for iou in IOUS]))


def _average_precision(found: Array, wanted: Floats, cls: float, iou: float) -> float:
    scores: list[float] = []
    hits: list[bool] = []
    total = 0
    for rows, truth in zip(found, wanted, strict=True):
        ours = rows[(rows[:, 5] == cls) & (rows[:, 4] > 0)]
        ours = ours[np.argsort(-ours[:, 4], kind="stable")][:MAX_DETECTIONS]
        theirs = truth[truth[:, 4] == cls][:, :4]
        total += len(theirs)
        scores.extend(ours[:, 4].tolist())
        hits.extend(_matched(ours[:, :4], theirs, iou))
    order = np.argsort(-np.asarray(scores), kind="stable")
    right = np.cumsum(np.asarray(hits, np.float64)[order])
    if not len(right):
        return 0.0
    precision = right / np.arange(1, len(right) + 1)
    # Precision at a recall is the best at that recall or beyond.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / total, RECALLS, side="left")
    return float(
        np.where(places < len(envelope), envelope[np.minimum(places, len(envelope) - 1)], 0.0).mean()
    )


def _matched(ours: Floats, theirs: Floats, iou: float) -> list[bool]:
    """Whether each box, the surest first, finds a labelled one that no surer box took."""
    taken: set[int] = set()
    hits: list[bool] = []
    overlaps = ious(ours, theirs)
    for row in overlaps:
        free = [place for place in range(len(theirs)) if place not in taken and row[place] >= iou]
        if free:
            taken.add(max(free, key=lambda place, row=row: float(row[place])))  # type: ignore[misc]  # a default binds the row
        hits.append(bool(free))
    return hits


def ious(ours: Floats, theirs: Floats) -> Floats:
    """Intersection over union of every pair, (ours, theirs)."""
    # Column by column: numpy is slow along an axis of two.
    sides = [
        np.clip(
            np.minimum(ours[:, None, axis + 2], theirs[None, :, axis + 2])
            - np.maximum(ours[:, None, axis], theirs[None, :, axis]),
            0,
            None,
        )
        for axis in (0, 1)
    ]
    both = sides[0] * sides[1]
    area = _areas(ours)[:, None] + _areas(theirs)[None] - both
    result: Floats = both / np.maximum(area, 1e-12)
    return result


def _areas(boxes: Floats) -> Floats:
    result: Floats = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=-1)
    return result
