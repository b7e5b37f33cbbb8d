"""Sets of rows: padded to their bound where arrays need one shape, compared whatever their order.

Pure. Always true
 1. A padded row is `PAD` in every entry; rows that the model gave come first, in its order.
 2. A row finds at most one other, the nearest that is left within reach, so that a finding that is given twice counts as
    one too many.
 3. Two empty sets are the same.

Needs numpy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit.rowset import RowSet
from edgekit.tensors import Array

if TYPE_CHECKING:  # the engines' package need not be loaded for this
    from edgekit.engines import Model

# What no finding has everywhere: index, class and score of none.
PAD = -1
# Rows of one sample that are compared, the first: what detectors give surest first.
MOST = 1000
# What whole numbers are multiplied by, so that neighbours are out of reach and rounding is not.
_WHOLE = 2.0
Run = Callable[[Mapping[str, Array]], dict[str, Array]]
Floats = NDArray[np.float64]


class FixedModel:
    """A model whose answers are padded."""

    def __init__(self, model: "Model", sets: Sequence[RowSet]) -> None:
        self._model = model
        self._run = fixed(model.run, sets)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises: EngineError."""
        return self._run(inputs)

    def close(self) -> None:
        self._model.close()


def fixed(run: Run, sets: Sequence[RowSet]) -> Run:
    """`run` with its answers padded, and cut where they are longer; itself without sets."""
    if not sets:
        return run
    return lambda inputs: padded(sets, cut(sets, run(inputs))[0])


def cut(sets: Sequence[RowSet], outputs: Mapping[str, Array]) -> tuple[dict[str, Array], bool]:
    """The outputs of one call with no more rows than the bound, and whether there were more.

    Raises: EngineError where the outputs of a set differ in length.
    """
    found, is_cut = dict(outputs), False
    for one in sets:
        have = {found[name].shape[axis] for name, axis in one.axes.items()}
        if len(have) > 1:
            raise EngineError(f"{', '.join(one.axes)} have {sorted(have)} rows in one answer")
        if max(have) > one.bound:
            is_cut = True
            for name, axis in one.axes.items():
                found[name] = _first(found[name], axis, one.bound)
    return found, is_cut


def padded(sets: Sequence[RowSet], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of one call, of which none is longer than its bound, at their bounds."""
    found = dict(outputs)
    for one in sets:
        for name, axis in one.axes.items():
            array = found[name]
            rest = [(0, one.bound - size if at == axis else 0) for at, size in enumerate(array.shape)]
            found[name] = np.pad(array, rest, constant_values=_pad_of(array.dtype))
    return found


def bare(sets: Sequence[RowSet], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Padded outputs of one call at their own length."""
    found = dict(outputs)
    for one in sets:
        count = length(one, outputs)
        for name, axis in one.axes.items():
            found[name] = _first(found[name], axis, count)
    return found


def length(one: RowSet, outputs: Mapping[str, Array]) -> int:
    """How many rows padded outputs of one call have: up to the last that is not padding."""
    real = np.zeros(max(outputs[name].shape[axis] for name, axis in one.axes.items()), np.bool_)
    for name, axis in one.axes.items():
        flat = _rows(outputs[name], axis)
        real |= (flat != _pad_of(flat.dtype)).any(axis=1)
    return int(np.flatnonzero(real)[-1]) + 1 if real.any() else 0


def table(one: RowSet, outputs: Mapping[str, Array], count: int | None = None) -> Floats:
    """(M, entries) of one call's rows, at most `MOST`, in units of reach: two are within it where no entry differs by more
    than 1. `count` of them are real, of padded outputs as many as are not padding.
    """
    kept = min(length(one, outputs) if count is None else count, MOST)
    parts = [_rows(outputs[name], axis)[:kept].astype(np.float64) for name, axis in one.axes.items()]
    joined = np.concatenate(parts, axis=1)
    reach = np.asarray(one.reach)
    scaled: Floats = joined * np.where(reach > 0, 1 / np.where(reach > 0, reach, 1), _WHOLE)
    return scaled


def matched(ours: Floats, theirs: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of rows of two tables that found each other, the nearest first."""
    if not len(ours) or not len(theirs):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    apart = np.zeros((len(ours), len(theirs)))
    for column in range(ours.shape[1]):
        left, right = ours[:, column, None], theirs[None, :, column]
        with np.errstate(invalid="ignore"):
            gap = np.abs(left - right)
        # What is not finite has to be the same.
        gap = np.where(
            np.isnan(gap), np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0, 2), gap
        )
        np.maximum(apart, gap, out=apart)
    near = np.argwhere(apart <= 1)
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for place in np.argsort(apart[near[:, 0], near[:, 1]], kind="stable"):
        mine, other = near[place].tolist()
        if mine not in taken[0] and other not in taken[1]:
            pairs.append((mine, other))
            taken[0].add(mine)
            taken[1].add(other)
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def share(pairs: int, rows: int) -> float:
    """F1 of so many pairs among the rows of both sides, 0 to 1."""
    return 2 * pairs / rows if rows else 1.0


def aligned(
    sets: Sequence[RowSet], ours: Mapping[str, Array], theirs: Mapping[str, Array]
) -> dict[str, Array]:
    """Padded outputs of one call with the rows of each set where `theirs` has those that they find; others follow in the
    places that are left.
    """
    found = dict(ours)
    for one in sets:
        places, rest = _places(one, ours, theirs)
        size = max(ours[name].shape[axis] for name, axis in one.axes.items())
        order = np.full(size, -1)
        order[list(places)] = list(places.values())
        order[order < 0] = rest
        for name, axis in one.axes.items():
            found[name] = np.take(found[name], order, axis)
    return found


def _places(
    one: RowSet, ours: Mapping[str, Array], theirs: Mapping[str, Array]
) -> tuple[dict[int, int], list[int]]:
    """Where each of our rows that finds one goes, and the rows that go nowhere in particular, padding last."""
    mine, other = matched(table(one, ours), table(one, theirs))
    places = dict(zip(other.tolist(), mine.tolist(), strict=True))
    size = max(ours[name].shape[axis] for name, axis in one.axes.items())
    taken = set(places.values())
    return places, [row for row in range(size) if row not in taken]


def _first(array: Array, axis: int, count: int) -> Array:
    return array[(*(slice(None),) * axis, slice(0, count))]


def _rows(array: Array, axis: int) -> Array:
    """(rows, entries) of one call's output."""
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(len(moved), -1) if moved.size else np.zeros((len(moved), _width(moved)), array.dtype)


def _width(moved: Array) -> int:
    width = 1
    for dim in moved.shape[1:]:
        width *= dim
    return width


def _pad_of(dtype: np.dtype[np.generic]) -> int | bool:
    """Unsigned types and truths have no number that nothing is: their largest, which a row beside them makes plain."""
    if dtype.kind == "b":
        return True
    return int(np.iinfo(dtype.name).max) if dtype.kind == "u" else PAD
