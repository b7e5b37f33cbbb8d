"""What an answer rests on: parts of an input are taken away, and what changes is their share.

Pure but for the model that is called. A model is asked as it is, without its gradients, so that an int8 engine is asked the
same question as the float source. (captum has the same ablations for torch modules alone, and brings torch along.)

Always true
 1. Bundle and source are asked about the same entry of the same output, with the same parts taken away.
 2. What stands in for a part says nothing by itself: the input's own mean (pictures, sequences), or what other real samples
    have there (features, and whole numbers such as ids, whose mean is some other id).

Sources: Zeiler, Fergus (2014), "Visualizing and Understanding Convolutional Networks", sec. 4.2 (occlusion); Breiman (2001),
"Random Forests", sec. 10 (permutation), here of one sample; Spearman (1904), Am. J. Psychol. 15(1) (rank correlation).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.selftest import class_axis
from edgekit.tensors import Array

Model = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Kind = Literal["picture", "sequence", "features"]
Floats = NDArray[np.float64]
# Channels that a picture has at most, and features that are shuffled one by one; more of them in a row are a signal.
_CHANNELS, _FEATURES = 4, 64
# Of integers those that name things; narrower ones are samples of a signal.
_NAMES = (np.int32, np.int64)
# Other samples that a feature takes its values from.
_OTHERS = 16


class Asked(msgspec.Struct, frozen=True):
    """Which answer is explained: an entry (its index in the flattened output), or None for the output as a whole."""

    output: str
    index: int | None


class Layout(msgspec.Struct, frozen=True):
    """How an input falls into parts: a grid of (rows, columns) over `axes`, which has one axis for all but pictures."""

    input: str
    kind: Kind
    axes: tuple[int, ...]
    edges: tuple[tuple[int, ...], ...]

    @property
    def grid(self) -> tuple[int, int]:
        counts = [1, 1, *(len(edges) - 1 for edges in self.edges)]
        return counts[-2], counts[-1]

    def part(self, index: int) -> tuple[tuple[int, int], ...]:
        """Where a part begins and ends on each axis."""
        places = divmod(index, self.grid[1])[2 - len(self.axes) :]
        return tuple((edges[at], edges[at + 1]) for edges, at in zip(self.edges, places, strict=True))

    def name(self, index: int) -> str:
        spans = [str(low) if high == low + 1 else f"{low}..{high - 1}" for low, high in self.part(index)]
        return " x ".join(spans) or "0"


class Explanation(msgspec.Struct, frozen=True):
    """Of one input: what each part is worth to the answer, (rows, columns). Positive parts speak for the entry; where no
    entry was asked about, how far the output moves (Euclidean), never negative.
    """

    layout: Layout
    worth: list[list[float]]

    @property
    def array(self) -> Floats:
        return np.array(self.worth, np.float64)


def layout(name: str, array: Array, cells: int) -> Layout:
    """Parts of one raw input, up to `cells` along each axis; one number is one feature."""
    axes = [axis for axis, size in enumerate(array.shape) if size > 1] or [*range(array.ndim)][-1:]
    if not axes:
        return Layout(name, "features", (), ())
    if len(axes) == 3:
        sizes = [array.shape[axis] for axis in axes]
        channel = 2 if sizes[2] <= _CHANNELS else 0 if sizes[0] <= _CHANNELS else None
        if channel is not None:
            axes.pop(channel)
    if len(axes) == 1 and array.shape[axes[0]] <= _FEATURES:
        return Layout(name, "features", tuple(axes), (tuple(range(array.shape[axes[0]] + 1)),))
    kind: Kind = "picture" if len(axes) == 2 else "sequence"
    axes = axes[:2] if kind == "picture" else axes[:1]
    return Layout(name, kind, tuple(axes), tuple(_edges(array.shape[axis], cells) for axis in axes))


def _edges(size: int, cells: int) -> tuple[int, ...]:
    return tuple(np.unique(np.linspace(0, size, min(cells, size) + 1).round().astype(int)).tolist())


def ask(outputs: Mapping[str, Array], output: str = "", index: int | None = None) -> Asked:
    """The best class of an output that has one, its only number, or an entry that was asked for.

    Raises: UsageError for what is not there.
    """
    name = output or next(iter(outputs))
    if name not in outputs:
        raise UsageError(f"there is no output {name!r}; there are {', '.join(outputs)}")
    array = outputs[name]
    if index is not None:
        if not 0 <= index < array.size:
            raise UsageError(f"output {name!r} has {array.size} entries; --entry {index} is none of them")
        if not np.isfinite(array.ravel()[index]):
            raise UsageError(
                f"entry {index} of output {name!r} is {array.ravel()[index]} for this input: nothing can be worth more or less"
                " to it; ask for another"
            )
        return Asked(name, index)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UsageError(
            f"output {name!r} is NaN for this input: there is nothing to explain; look at the input"
        )
    if not array.size:
        raise UsageError(f"output {name!r} is empty for this input: there is nothing to explain")
    is_one_answer = array.size == 1 or (array.ndim > 0 and array.size == array.shape[class_axis(array.shape)])
    return Asked(name, int(np.argmax(array)) if is_one_answer else None)


def explained(
    model: Model,
    sample: Mapping[str, Array],
    how: Layout,
    asked: Asked,
    others: Sequence[Mapping[str, Array]] = (),
) -> Explanation:
    """What each part of one input is worth; `others` are real samples that features take their values from.

    Costs a call of the model for each part, of each feature up to sixteen. Raises: as the model; UsageError where it does
    not have what was asked about.
    """
    before = model(sample)[asked.output]
    if asked.index is not None and asked.index >= before.size:
        raise UsageError(
            f"output {asked.output!r} of the other model has {before.size} entries, so it is another one"
        )
    rows, columns = how.grid
    worth = np.zeros(rows * columns)
    for index in range(rows * columns):
        changed = _without(sample[how.input], how, index, [other[how.input] for other in others])
        moved = [
            _moved(before, model({**sample, how.input: array})[asked.output], asked.index)
            for array in changed
        ]
        worth[index] = float(np.mean(moved)) if moved else 0.0
    return Explanation(how, worth.reshape(rows, columns).tolist())


def _without(array: Array, how: Layout, index: int, others: Sequence[Array]) -> list[Array]:
    """The input with a part taken away; several times where that takes the values of other samples."""
    place: list[slice] = [slice(None)] * array.ndim
    for axis, (low, high) in zip(how.axes, how.part(index), strict=True):
        place[axis] = slice(low, high)
    where = tuple(place)
    fitting = [other for other in others if other.shape == array.shape]
    if not fitting or (how.kind != "features" and array.dtype not in _NAMES):
        neutral = array.astype(np.float64).mean(axis=how.axes, keepdims=True)
        return [_replaced(array, where, neutral)]
    chosen = np.unique(np.linspace(0, len(fitting) - 1, min(_OTHERS, len(fitting))).astype(int))
    return [_replaced(array, where, fitting[at][where]) for at in chosen]


def _replaced(array: Array, where: tuple[slice, ...], value: Array) -> Array:
    changed = array.copy()
    kind = array.dtype.kind
    changed[where] = np.rint(value) if kind in "iu" else np.greater(value, 0.5) if kind == "b" else value
    return changed


def _moved(before: Array, after: Array, index: int | None) -> float:
    one, other = (np.asarray(array, np.float64).ravel() for array in (before, after))
    # What is masked before and after has not moved.
    apart = np.subtract(one, other, out=np.zeros_like(one), where=one != other)
    return float(apart[index]) if index is not None else float(np.linalg.norm(apart))


def similarity(one: Explanation, other: Explanation) -> float:
    """Spearman's rank correlation of two explanations of one layout, -1..1: 1 says that both rest on the same parts in the
    same order. NaN where either rests on nothing.
    """
    ranks = [_ranks(each.array.ravel()) for each in (one, other)]
    spreads = [float(np.std(each)) for each in ranks]
    if not all(spreads):
        return math.nan
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / math.prod(spreads))


def _ranks(values: Floats) -> Floats:
    """From 0; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: Floats = (ends - (counts + 1) / 2)[inverse]
    return mean
