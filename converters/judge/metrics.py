"""Task metrics: one figure from outputs and labels, and which direction is better.

A metric sees the outputs of many samples, each (N, *output shape), and labels (N, …) or the source's outputs. The
built-in ones look at the model's first output; a user's own is `f(outputs, labels) -> float`, with an attribute
`higher_is_better` (True unless it says otherwise).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import DataError, ProjectError
from edgekit.selftest import answers
from edgekit.tensors import Array

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Metric:
    """`is_bounded`: one sample can move the figure by at most 1/N, so that a count of samples bounds what was not
    seen. `by_labels` False compares with the source instead.
    """

    name: str
    score: Callable[[Outputs, Array], float]
    higher_is_better: bool = True
    is_bounded: bool = True
    by_labels: bool = True

    def drop(self, source: float, candidate: float) -> float:
        """How much worse the candidate is, in the metric's own unit."""
        return source - candidate if self.higher_is_better else candidate - source


def first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _top1(outputs: Outputs, labels: Array) -> float:
    found = answers(first(outputs))
    return float(np.mean(_per_sample(found) == _per_sample(_fitted(labels, found))))


def _topk(k: int) -> Callable[[Outputs, Array], float]:
    def score(outputs: Outputs, labels: Array) -> float:
        values = first(outputs)
        rows = values.reshape(len(values), -1, values.shape[-1])
        best = np.argsort(-rows.astype(np.float64), axis=-1, kind="stable")[..., :k]
        wanted = np.asarray(labels).reshape(len(values), -1, 1)
        if wanted.shape[1] != best.shape[1]:
            raise _shape_error(labels, best)
        return float(np.mean(np.any(best == wanted, axis=-1)))

    return score


def _f1(outputs: Outputs, labels: Array) -> float:
    """Of the positive class (1) for two classes, otherwise the mean over the classes that occur."""
    found = answers(first(outputs)).ravel()
    wanted = np.asarray(labels).ravel().astype(np.int64)
    if found.shape != wanted.shape:
        raise _shape_error(labels, found)
    classes = np.unique(np.concatenate([found, wanted]))
    scored = [1] if set(classes.tolist()) <= {0, 1} else classes.tolist()
    return float(np.mean([_f1_of(found, wanted, cls) for cls in scored]))


def _f1_of(found: Array, wanted: Array, cls: int) -> float:
    hits = int(np.sum((found == cls) & (wanted == cls)))
    total = int(np.sum(found == cls)) + int(np.sum(wanted == cls))
    return 2 * hits / total if total else 1.0


def _rmse(outputs: Outputs, labels: Array) -> float:
    values = first(outputs).astype(np.float64)
    return float(np.sqrt(np.mean((values - _fitted(labels, values).astype(np.float64)) ** 2)))


def _cosine(outputs: Outputs, labels: Array) -> float:
    """Mean cosine between output and label vectors."""
    left = first(outputs).reshape(len(labels), -1).astype(np.float64)
    right = np.asarray(labels).reshape(len(labels), -1).astype(np.float64)
    if left.shape != right.shape:
        raise _shape_error(labels, left)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean(np.sum(left * right, axis=1) / np.maximum(norms, 1e-12)))


def _agreement(outputs: Outputs, source_answers: Array) -> float:
    return float(np.mean(answers(first(outputs)) == source_answers))


BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", _top1),
        Metric("top5", _topk(5)),
        Metric("f1", _f1),
        Metric("cosine", _cosine, is_bounded=False),
        Metric("rmse", _rmse, higher_is_better=False, is_bounded=False),
        Metric("agreement", _agreement, by_labels=False),
    )
}


def built_in(name: str) -> Metric:
    """The metric of that name; `topK` takes any K. Raises: ProjectError."""
    if name.startswith("top") and name[3:].isdigit() and int(name[3:]) > 1:
        return Metric(name, _topk(int(name[3:])))
    if name not in BUILT_IN:
        raise ProjectError(
            f"unknown metric {name!r}; known are {', '.join(BUILT_IN)} (topK for any K), or give file.py:function"
        )
    return BUILT_IN[name]


def users(name: str, function: Callable[..., Any]) -> Metric:
    """A user's `f(outputs, labels) -> float`."""

    def score(outputs: Outputs, labels: Array) -> float:
        try:
            return float(function(dict(outputs), labels))
        except Exception as error:
            raise ProjectError(f"{name}: the metric failed: {type(error).__name__}: {error}") from error

    return Metric(
        name, score, higher_is_better=bool(getattr(function, "higher_is_better", True)), is_bounded=False
    )


def _per_sample(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _fitted(labels: Array, found: Array) -> Array:
    """Labels of as many entries, in the shape of what they are compared with."""
    array = np.asarray(labels)
    if array.size != found.size:
        raise _shape_error(labels, found)
    return array.reshape(found.shape)


def _shape_error(labels: Array, found: Array) -> DataError:
    return DataError(
        f"labels of shape {np.asarray(labels).shape} do not fit {found.shape} answers of the model;"
        " give one label for each answer"
    )
