"""How far two answers to one input agree, output by output: 0 is not at all, 1 is the same.

By what an output holds, told from the answers themselves:

 - integers and truths: the share of equal entries;
 - class scores (more than one entry along the class axis, of which one is the answer): the share of equal answers;
 - rows of unit length (embeddings): their cosine, 0 where it is negative;
 - sets of rows: how many of them both have (F1);
 - any other real numbers: the share of signal, S / (S + N), with S what the first has and N what the second differs by.
   Twenty decibels of signal to noise are 0.99.

Needs numpy.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from edgekit import rows
from edgekit.gaps import largest_gap
from edgekit.manifest import Manifest
from edgekit.rowset import RowSet
from edgekit.selftest import agreement, answers, class_axis, is_exact
from edgekit.tensors import Array

# Post-processing that ranks classes: the output that it names holds scores.
_RANKING = ("top_k", "softmax", "argmax")
# More entries than this along a last axis are an embedding or a signal, unless a step ranks them.
_MOST_CLASSES = 64
_UNIT = 0.01


def scored(manifest: Manifest) -> frozenset[str]:
    """The outputs that the bundle's own post-processing ranks."""
    return frozenset(
        str(step.args["output"])
        for step in manifest.postprocess
        if step.op in _RANKING and "output" in step.args
    )


def of(
    first: Mapping[str, Array],
    second: Mapping[str, Array],
    ranked: Collection[str] = (),
    sets: Sequence[RowSet] = (),
) -> dict[str, float]:
    """By the name of each output that both have; 0 where shapes or kinds differ. Of `sets`, at their own length, the share
    of rows that both have, whatever their order.
    """
    found = {
        name: one_of(array, second[name], is_ranked=name in ranked)
        for name, array in first.items()
        if name in second
    }
    for one in sets:
        if all(name in side for name in one.axes for side in (first, second)):
            found |= dict.fromkeys(one.axes, _of_rows(one, first, second))
    return found


def _of_rows(one: RowSet, first: Mapping[str, Array], second: Mapping[str, Array]) -> float:
    name, axis = next(iter(one.axes.items()))
    tables = [rows.table(one, side, side[name].shape[axis]) for side in (first, second)]
    return rows.share(len(rows.matched(*tables)[0]), sum(map(len, tables)))


def one_of(first: Array, second: Array, *, is_ranked: bool = False) -> float:
    """Of one output, `first` being what is served."""
    if first.shape != second.shape or is_exact(first) != is_exact(second) or not first.size:
        return 0.0
    if is_exact(first):
        return float(np.mean(first == second))
    if is_ranked or _has_classes(first):
        return agreement(answers(first), answers(second))
    ours, theirs = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float(largest_gap(first, second) == 0)
    if _is_unit(first):
        lengths = float(np.linalg.norm(ours)) * float(np.linalg.norm(theirs))
        return max(0.0, float(ours @ theirs) / lengths) if lengths else 0.0
    signal, noise = float(ours @ ours), float(((ours - theirs) ** 2).sum())
    return signal / (signal + noise) if signal + noise > 0 else 1.0


def _has_classes(output: Array) -> bool:
    if output.ndim < 2 or _is_unit(output):
        return False
    return 1 < int(output.shape[class_axis(output.shape)]) <= _MOST_CLASSES


def _is_unit(output: Array) -> bool:
    """Whether each row has length 1, as embeddings have; a single class of probability 1 has it too, and is a score."""
    rows = output.astype(np.float64).reshape(-1, output.shape[-1] if output.ndim else 1)
    if rows.shape[1] <= 2 or bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=_UNIT)):
        return False
    return bool(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=_UNIT))
