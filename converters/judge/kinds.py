"""What each output of a model holds, told from the float source's own outputs on real samples, or by the user.

Pure. Outputs are (N, *sample shape), ragged where buckets make samples differ; a sample's own batch axis of 1 is left out
(`bare`). Of joined detector outputs, and of boxes and scores in outputs apart, one judge looks at both.

Always true
 1. Every output is looked at by one judge; what looks like nothing known holds `values`.
 2. Scores are told by structure (softmax, log-softmax) where there is one. Logits have none: they must be peaked, have
    changing winners, and look unlike measurements (neighbours alike, channels moving together, ranges far apart).
    What is taken for logits by mistake still stands under the floor of signal to noise. What stands beside the scores
    of the same many places (a detector's anchors) is none: it says where, not what.
 3. The same outputs give the same judges, in any process.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.judge import boxes, looks
from converters.judge.boxes import Layout
from converters.judge.snr import ONE_SCALE, SILENT, Scale
from edgekit.errors import ProjectError
from edgekit.rowset import RowSet
from edgekit.samples import is_ragged, stacked
from edgekit.tensors import Array

Kind = Literal["labels", "scores", "map", "activations", "boxes", "rows", "embedding", "values"]
# What each is called where it is shown.
TITLES: Mapping[Kind, str] = {
    "labels": "whole numbers",
    "scores": "class scores",
    "map": "class map",
    "activations": "activations",
    "boxes": "detections",
    "rows": "rows in any order",
    "embedding": "embedding",
    "values": "values",
}
# Entries that are looked at to tell a kind.
LOOKED_AT = 4_000_000
# A vector of more entries, or one whose neighbours are more alike than this, has places instead of channels.
CHANNELS, SMOOTH, SMOOTH_FROM = 4096, 0.5, 64
# So many places are a detector's anchors, not the few words or heads of a classifier.
ANCHORS = 64

Floats = NDArray[np.float64]


class OutputJudge(msgspec.Struct, frozen=True):
    """How an output, or the outputs of a detector, are judged. `scales` stand beside `outputs`; empty where entries have
    no fixed place (whole numbers, detections after suppression). `axis` is that of the classes or vectors, from the end.

    `rows`: the set that outputs of as many rows as the data says are judged as; its axes count from the end.
    `is_rare_above`: activations above `threshold` are rarer than those below. `is_given`: the user said so.
    """

    outputs: tuple[str, ...]
    kind: Kind
    scales: tuple[Scale, ...] = ()
    axis: int = -1
    threshold: float = 0.5
    is_rare_above: bool = True
    layout: Layout | None = None
    rows: RowSet | None = None
    is_given: bool = False

    @property
    def name(self) -> str:
        return " + ".join(self.outputs)

    @property
    def title(self) -> str:
        return TITLES[self.kind]


def bare(array: Array) -> Array:
    """Without the batch axis of 1 that samples (N, 1, *shape) have of their own."""
    if is_ragged(array):
        return stacked([part[0] if part.ndim > 1 and part.shape[0] == 1 else part for part in array])
    return array[:, 0] if array.ndim > 2 and array.shape[1] == 1 else array


def infer(
    outputs: Mapping[str, Array],
    given: Mapping[str, Kind] | None = None,
    sets: Sequence[RowSet] = (),
) -> tuple[OutputJudge, ...]:
    """A judge for every output, in the order of the outputs; `given` names the kinds that the user set, `sets` the outputs
    whose length follows from the data, which are padded.

    Raises: ProjectError for an unknown output or kind, or shapes that cannot hold it.
    """
    given = given or {}
    for name, kind in given.items():
        if name not in outputs:
            raise ProjectError(f"outputs.{name}: the model has no such output; it has {', '.join(outputs)}")
        if kind not in TITLES:
            raise ProjectError(f"outputs.{name}.kind: unknown kind {kind!r}; known are {', '.join(TITLES)}")
    few = {name: _few(bare(array)) for name, array in outputs.items()}
    judges = _detectors(few, given)
    taken = {name for judge in judges for name in judge.outputs}
    judges += _in_sets(outputs, sets, taken, given)
    taken |= {name for judge in judges for name in judge.outputs}
    scored = _scored_places(few, judges)
    judges += [
        _single(name, array, given.get(name), is_scored=_places(array) in scored)
        for name, array in few.items()
        if name not in taken
    ]
    order = list(outputs)
    return tuple(sorted(judges, key=lambda judge: min(order.index(name) for name in judge.outputs)))


def _in_sets(
    outputs: Mapping[str, Array], sets: Sequence[RowSet], taken: Collection[str], given: Mapping[str, Kind]
) -> list[OutputJudge]:
    """One judge of what is left of each set, row by row."""
    found = []
    for one in sets:
        names = [
            name
            for name in one.axes
            if name not in taken and given.get(name, "rows") == "rows" and name in outputs
        ]
        if not names:
            continue
        # From the end, since a sample's own batch axis of 1 is left out.
        axes = {name: one.axes[name] - (outputs[name].ndim - 1) for name in names}
        found.append(OutputJudge(tuple(names), "rows", rows=_part(one, outputs, axes)))
    return found


def _part(one: RowSet, outputs: Mapping[str, Array], axes: dict[str, int]) -> RowSet:
    """The set with some of its outputs."""
    reach: list[float] = []
    start = 0
    for name in one.axes:
        width = outputs[name][0].size // one.bound
        if name in axes:
            reach += one.reach[start : start + width]
        start += width
    return RowSet(axes, one.bound, tuple(reach))


def _few(array: Array) -> Array:
    """As many samples as are looked at; two at least, since one does not vary."""
    size = max(part.size for part in array) if is_ragged(array) else array[0].size
    return array[: max(2, LOOKED_AT // max(size, 1))]


def _detectors(outputs: Mapping[str, Array], given: Mapping[str, Kind]) -> list[OutputJudge]:
    claimed = {name: outputs[name] for name in outputs if given.get(name) == "boxes"}
    free = {name: array for name, array in outputs.items() if name not in given}
    if not claimed:
        found = boxes.find(free)
        return [] if found is None else [_detector(*found)]
    found = boxes.find(claimed) or boxes.claimed(claimed)
    if found is None and len(claimed) == 1:
        # Its scores may stand in an output that the user did not name.
        found = _beside(claimed, free)
    if found is None:
        shapes = ", ".join(f"{name} {array.shape[1:]}" for name, array in claimed.items())
        raise ProjectError(
            f"outputs.{next(iter(claimed))}.kind: {shapes} cannot hold boxes; they are rows of 4 and more joined with"
            " scores, boxes (A, 4) and scores (A, C) in two outputs, or rows of x1, y1, x2, y2, score, class"
        )
    left = [name for name in claimed if name not in found[0]]
    if left:
        raise ProjectError(
            f"outputs.{left[0]}.kind: no boxes can be told from it; name another kind, or none"
        )
    return [msgspec.structs.replace(_detector(*found), is_given=True)]


def _beside(claimed: Mapping[str, Array], free: Mapping[str, Array]) -> boxes.Found | None:
    for name in free:
        found = boxes.claimed({**claimed, name: free[name]})
        if found is not None:
            return found
    return None


def _detector(names: tuple[str, ...], layout: Layout) -> OutputJudge:
    scales: Mapping[str, tuple[Scale, ...]] = {
        "joined": (Scale(layout.axis, 4),),
        "apart": (Scale(-1), Scale(-1, 0)),
        "suppressed": (),
    }
    return OutputJudge(names, "boxes", scales[layout.style], layout=layout)


def _places(array: Array) -> int:
    """How many places (N, places, channels) has; 0 for other shapes."""
    return 0 if is_ragged(array) or array.ndim != 3 else array.shape[1]


def _scored_places(outputs: Mapping[str, Array], judges: Sequence[OutputJudge]) -> set[int]:
    """Numbers of places that have their scores in an output of their own: one score each, or beside a detector's boxes."""
    alone = {array.shape[1] for array in outputs.values() if _places(array) and array.shape[2] == 1}
    detectors = {
        _places(outputs[name]) for judge in judges if judge.layout is not None for name in judge.outputs
    }
    return {count for count in alone | detectors if count >= ANCHORS}


def _single(name: str, array: Array, kind: Kind | None, *, is_scored: bool) -> OutputJudge:
    found = kind or _kind(array, is_scored=is_scored)
    judge = _JUDGES[found](name, array)
    return msgspec.structs.replace(judge, is_given=kind is not None)


def _kind(array: Array, *, is_scored: bool) -> Kind:
    """`is_scored`: another output has the scores of the same places."""
    if _dtype(array).kind in "biu":
        return "labels"
    axis = looks.class_axis(array, may_be_logits=not is_scored)
    if axis is not None:
        return "map" if looks.is_map(array) else "scores"
    if looks.is_unit(array):
        return "embedding"
    values = _finite(array)
    if _is_distribution(array):
        return "values"
    if (
        values.size
        and values.min() >= -1e-6
        and values.max() <= 1 + 1e-6
        and values.min() < 0.5 < values.max()
    ):
        return "activations"
    return "values"


def _is_distribution(array: Array) -> bool:
    """Whether each sample as a whole is one distribution over places: none of them is an event of its own."""
    if looks.axes_of(array) < 2:
        return False
    sums = np.array([float(np.sum(part, dtype=np.float64)) for part in array])
    return bool(np.all(np.abs(sums - 1) < looks.UNIT)) and all(float(np.min(part)) >= -1e-6 for part in array)


def _dtype(array: Array) -> np.dtype[np.generic]:
    return np.result_type(*array) if is_ragged(array) else array.dtype


def _finite(array: Array) -> Array:
    values = np.concatenate([part.ravel() for part in array]) if is_ragged(array) else array.ravel()
    return values[np.isfinite(values)]


def _labels(name: str, _array: Array) -> OutputJudge:
    return OutputJudge((name,), "labels")


def _scores(kind: Literal["scores", "map"]) -> Callable[[str, Array], OutputJudge]:
    def make(name: str, array: Array) -> OutputJudge:
        axis = looks.class_axis(array) or looks.default_axis(array)
        if not looks.axes_of(array) or any(part.ndim < -axis or part.shape[axis] < 2 for part in array):
            raise ProjectError(
                f"outputs.{name}.kind: {kind!r} needs more than one class, and samples are {array[0].shape};"
                " 'activations' are single probabilities"
            )
        return OutputJudge((name,), kind, (_channels(array, axis, own=0),), axis)

    return make


def _channels(array: Array, axis: int | None, *, own: int | None) -> Scale:
    """Channels along that axis where samples agree on them and they leave something to keep of each."""
    if axis is None or looks.axes_of(array) < -axis:
        return ONE_SCALE
    widths = {part.shape[axis] for part in array}
    return Scale(axis, own) if len(widths) == 1 and 1 < max(widths) <= CHANNELS else ONE_SCALE


def _activations(name: str, array: Array) -> OutputJudge:
    values = _finite(array)
    # Somebody calls them so: logits of probabilities cross at 0.
    threshold = 0.5 if not values.size or (values.min() >= -1e-6 and values.max() <= 1 + 1e-6) else 0.0
    scale = _channels(array, _channel_axis(array), own=0)
    is_rare_above = not values.size or bool(np.mean(values.astype(np.float64) > threshold) <= 0.5)
    return OutputJudge((name,), "activations", (scale,), threshold=threshold, is_rare_above=is_rare_above)


def _embedding(name: str, array: Array) -> OutputJudge:
    return OutputJudge((name,), "embedding", (_channels(array, -1, own=0),))


def _values(name: str, array: Array) -> OutputJudge:
    if _is_distribution(array):
        # Its entries compete for the one whole.
        return OutputJudge((name,), "values", (ONE_SCALE,))
    return OutputJudge((name,), "values", (_channels(array, _channel_axis(array), own=None),))


def _channel_axis(array: Array) -> int | None:
    """The axis along which ranges differ most; None for a signal that has places only."""
    axes = looks.axes_of(array)
    if axes == 1:
        rows = looks.places(array, -1)
        if rows is None or rows.shape[1] > CHANNELS:
            return None
        is_smooth = rows.shape[1] >= SMOOTH_FROM and looks.likeness(looks.centred(rows)) > SMOOTH
        return None if is_smooth else -1
    default = looks.default_axis(array) if axes else None
    if axes != 2:
        return default
    # Rows of different meaning may stand before their places: (56, 8400) of a pose detector.
    first, last = (_unevenness(looks.places(array, axis)) for axis in (-2, -1))
    return -2 if first > 2 * last + 0.5 else -1


def _unevenness(rows: Floats | None) -> float:
    """Spread of the channels' ranges, as a standard deviation of their natural logarithms."""
    if rows is None:
        return 0.0
    reach = np.abs(looks.centred(rows)).max(axis=0)
    reach = reach[reach > SILENT * reach.max(initial=0.0)]
    return float(np.log(reach).std()) if len(reach) > 1 else 0.0


def _refused(name: str, array: Array) -> OutputJudge:
    raise ProjectError(
        f"outputs.{name}.kind: {array.shape[1:]} cannot hold boxes, nor rows of which there are as many as the data says"
    )


_JUDGES: Mapping[Kind, Callable[[str, Array], OutputJudge]] = {
    "labels": _labels,
    "scores": _scores("scores"),
    "map": _scores("map"),
    "activations": _activations,
    "boxes": _refused,
    "rows": _refused,
    "embedding": _embedding,
    "values": _values,
}
