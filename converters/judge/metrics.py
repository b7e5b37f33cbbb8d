"""Task metrics: one figure from outputs and labels, and which direction is better.

A metric works in two steps. Its *digest* keeps of a model's outputs, sample by sample, what it looks at (an answer
instead of 18,000 scores), so that an evaluation never holds all outputs of all candidates. Its figure is then computed
from the digests of many samples, each (N, …) (ragged where buckets make outputs differ in shape), and labels (N, …) or, where `by_labels` is False, the source's digest.

The built-in ones look at the model's first output (`map` may look at three); a user's own is
`f(outputs, labels) -> float`, with an attribute `higher_is_better` (True unless it says otherwise), and sees everything.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.judge import detection, snr, text
from converters.source import code
from edgekit.errors import DataError, ProjectError
from edgekit.samples import flat, is_ragged, rows
from edgekit.selftest import answers, class_axis, recorded_answers
from edgekit.tensors import Array

Outputs = Mapping[str, Array]
Parts = NDArray[np.float64]
VALUE = "value"
# Characters of what a user's metric returned instead of a number.
_SHOWN = 80


def _everything(outputs: Outputs) -> Outputs:
    return outputs


def _same(value: float) -> float:
    return value


def _the_first(names: Sequence[str]) -> Sequence[str]:
    return names[:1]


def _the_first_three(names: Sequence[str]) -> Sequence[str]:
    return names[:3]


@dataclass(frozen=True)
class Metric:
    """One of `parts` and `whole` is set. `parts(digest, labels)` gives each sample's share of a numerator and a
    denominator, (N, 2): the figure is `finish(sum / sum)`, and resampling costs nothing. `whole(digest, labels)` gives
    the figure itself, for what does not fall apart into samples.

    `harms(digest, labels)` is how far the figure falls were each sample wrong that is right, (N,), where it is known of a
    `whole`.

    `is_bounded`: one sample can move the figure by at most 1/N, so that a count of samples bounds what was not seen.
    `by_labels` False compares with the source instead.
    """

    name: str
    digest: Callable[[Outputs], Outputs] = _everything
    parts: Callable[[Outputs, Array], Parts] | None = None
    whole: Callable[[Outputs, Array], float] | None = None
    harms: Callable[[Outputs, Array], NDArray[np.float64]] | None = None
    finish: Callable[[float], float] = _same
    higher_is_better: bool = True
    is_bounded: bool = True
    by_labels: bool = True
    looks_at: Callable[[Sequence[str]], Sequence[str]] = _the_first

    def seen(self, names: Sequence[str]) -> frozenset[str]:
        """Which of the model's outputs it looks at; of a user's own, which it has looked at so far."""
        return frozenset(self.looks_at(names))

    def score(self, outputs: Outputs, labels: Array) -> float:
        """The figure of raw outputs."""
        return self.of_digest(self.digest(outputs), labels)

    def of_digest(self, digest: Outputs, labels: Array) -> float:
        """Raises: DataError if the labels do not fit; MetricError where the user's function gives no number."""
        if self.parts is not None:
            return self.of_sums(self.shares(digest, labels).sum(axis=0))
        assert self.whole is not None
        return self.whole(digest, labels)

    def shares(self, digest: Outputs, labels: Array) -> Parts:
        """`parts` of samples whose outputs may differ in shape. Raises: DataError."""
        assert self.parts is not None
        if not any(map(is_ragged, (*digest.values(), labels))):
            return self.parts(digest, labels)
        each = zip(rows(digest), labels, strict=True)
        return np.concatenate(
            [
                self.parts({name: array[None] for name, array in row.items()}, np.asarray(label)[None])
                for row, label in each
            ]
        )

    def of_sums(self, sums: NDArray[np.float64]) -> float:
        """The figure of a summed numerator and denominator."""
        return self.finish(float(sums[0]) / max(float(sums[1]), 1e-12))

    def drop(self, source: float, candidate: float) -> float:
        """How much worse the candidate is, in the metric's own unit; of signal to noise against the source, which has no
        natural scale, the share of noise in the signal's power: 0.01 is 20 dB.
        """
        if self.name == "sqnr" and not self.by_labels:
            return float(10 ** (-candidate / 10) - 10 ** (-source / 10))
        return source - candidate if self.higher_is_better else candidate - source


def first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _answers(outputs: Outputs) -> Outputs:
    return {VALUE: answers(first(outputs))}


def _recorded_answers(outputs: Outputs) -> Outputs:
    return {VALUE: recorded_answers(first(outputs))}


def _first(outputs: Outputs) -> Outputs:
    return {VALUE: first(outputs)}


def _shares(right: Array) -> Parts:
    """Right entries and entries of each sample."""
    rows = right.reshape(len(right), -1)
    return np.stack([rows.sum(axis=1), np.full(len(rows), rows.shape[1])], axis=1).astype(np.float64)


def _equal(digest: Outputs, labels: Array) -> Parts:
    found = first(digest)
    return _shares(found == _fitted(labels, found))


def _best(k: int, outputs: Outputs) -> Outputs:
    values = first(outputs)
    values = np.moveaxis(values, class_axis(values.shape), -1)
    rows = values.reshape(len(values), -1, values.shape[-1])
    return {VALUE: np.argsort(-rows.astype(np.float64), axis=-1, kind="stable")[..., :k]}


def _among(digest: Outputs, labels: Array) -> Parts:
    best = first(digest)
    wanted = np.asarray(labels).reshape(len(best), -1, 1)
    if wanted.shape[1] != best.shape[1]:
        raise _shape_error(labels, best)
    return _shares(np.any(best == wanted, axis=-1))


def _f1(digest: Outputs, labels: Array) -> float:
    """Of the positive class (1) for two classes, otherwise the mean over the classes that occur."""
    found = flat(first(digest))
    wanted = flat(np.asarray(labels)).astype(np.int64)
    if found.shape != wanted.shape:
        raise _shape_error(labels, found)
    classes = np.unique(np.concatenate([found, wanted]))
    scored = [1] if set(classes.tolist()) <= {0, 1} else classes.tolist()
    return float(np.mean([_f1_of(found, wanted, cls) for cls in scored]))


def _f1_harms(digest: Outputs, labels: Array) -> NDArray[np.float64]:
    """A true positive that is lost costs its class (2 - F1) / (found + labelled - 1): much where the class is rare."""
    found = flat(first(digest))
    wanted = flat(np.asarray(labels)).astype(np.int64)
    classes = np.unique(np.concatenate([found, wanted]))
    scored = [1] if set(classes.tolist()) <= {0, 1} else classes.tolist()
    costs = np.zeros(len(wanted))
    for cls in scored:
        total = int(np.sum(found == cls)) + int(np.sum(wanted == cls))
        costs[wanted == cls] = (2 - _f1_of(found, wanted, cls)) / max(total - 1, 1) / len(scored)
    ends = np.cumsum([np.size(label) for label in labels])
    return np.array([part.sum() for part in np.split(costs, ends[:-1])])


def _f1_of(found: Array, wanted: Array, cls: int) -> float:
    hits = int(np.sum((found == cls) & (wanted == cls)))
    total = int(np.sum(found == cls)) + int(np.sum(wanted == cls))
    return 2 * hits / total if total else 1.0


def _squares(digest: Outputs, labels: Array) -> Parts:
    values = first(digest).astype(np.float64)
    return _shares((values - _fitted(labels, values).astype(np.float64)) ** 2)


def _powers(digest: Outputs, labels: Array) -> Parts:
    """Signal (what varies over the samples) and noise of each sample."""
    found = first(digest)
    wanted = _fitted(labels, found).astype(np.float64).reshape(len(found), -1)
    return snr.signal_and_noise(wanted, found.astype(np.float64).reshape(len(found), -1))


def _cosines(digest: Outputs, labels: Array) -> Parts:
    """Cosine between output and label vectors."""
    left = first(digest).reshape(len(labels), -1).astype(np.float64)
    right = np.asarray(labels).reshape(len(labels), -1).astype(np.float64)
    if left.shape != right.shape:
        raise _shape_error(labels, left)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return _shares(np.sum(left * right, axis=1) / np.maximum(norms, 1e-12))


BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", _answers, _equal),
        Metric("top5", partial(_best, 5), _among),
        Metric("f1", _answers, whole=_f1, harms=_f1_harms),
        Metric("cosine", _first, _cosines, is_bounded=False),
        Metric("rmse", _first, _squares, finish=math.sqrt, higher_is_better=False, is_bounded=False),
        Metric("sqnr", _first, _powers, finish=snr.of_ratio, is_bounded=False),
        Metric(
            "map",
            detection.detections,
            whole=detection.mean_average_precision,
            is_bounded=False,
            looks_at=_the_first_three,
        ),
        Metric("agreement", _recorded_answers, _equal, by_labels=False),
    )
}
# What needs no labels: it can be asked of a candidate's outputs beside the source's.
AGAINST_SOURCE = ("cosine", "rmse", "sqnr")
# Error rates of texts, which may need an alphabet.
_TEXT: Mapping[str, Callable[[text.Alphabet, Outputs, Array], Parts]] = {
    "cer": text.character_errors,
    "wer": text.word_errors,
}


def built_in(name: str, alphabet: text.Alphabet = text.NO_ALPHABET) -> Metric:
    """The metric of that name; `topK` takes any K. Raises: ProjectError."""
    if name.startswith("top") and name[3:].isdigit() and int(name[3:]) > 1:
        return Metric(name, partial(_best, int(name[3:])), _among)
    if name in _TEXT:
        return Metric(
            name,
            text.greedy,
            partial(_TEXT[name], alphabet),
            higher_is_better=False,
            is_bounded=False,
        )
    if name not in BUILT_IN:
        raise ProjectError(
            f"unknown metric {name!r}; known are {', '.join((*BUILT_IN, *_TEXT))} (topK for any K), or give"
            " file.py:function"
        )
    return BUILT_IN[name]


def against_source(metric: Metric) -> Metric:
    """The same metric with the source's outputs in place of labels. Raises: ProjectError for one that needs labels."""
    if not metric.by_labels:
        return metric
    if metric.name not in AGAINST_SOURCE:
        raise ProjectError(
            f"metric {metric.name!r} needs labels; without any, {', '.join(AGAINST_SOURCE)} and agreement compare with"
            " the source"
        )
    return replace(metric, by_labels=False)


class MetricError(ProjectError):
    """A user's metric failed, or returned what is no number."""


@contextmanager
def of_source() -> Iterator[None]:
    """What a user's metric makes of the source ends the build: its error says so."""
    try:
        yield
    except MetricError as error:
        raise MetricError(f"on the float source, {error}") from error


def users(name: str, function: Callable[..., Any]) -> Metric:
    """A user's `f(outputs, labels) -> float`; a figure that is not finite is passed on. Its calls raise MetricError."""
    seen: set[str] = set()

    def whole(outputs: Outputs, labels: Array) -> float:
        try:
            found = function(_Watched(outputs, seen), labels)
        except Exception as error:
            if not isinstance(outputs, dict):
                # Perhaps it went past `_Watched` to what was not copied.
                return whole(dict(outputs), labels)
            raise MetricError(f"{name} failed: {code.told(error)}") from error
        try:
            return _number(found)
        except Exception as error:
            told = " ".join(repr(found).split())[:_SHOWN]
            raise MetricError(f"{name} returned {told}, not a number") from error

    return Metric(
        name,
        whole=whole,
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
        is_bounded=False,
        # A function that nothing could be seen of may have looked at everything.
        looks_at=lambda names: [name for name in names if name in seen] or names,
    )


def _number(found: Any) -> float:
    """Raises: whatever says that it is none; TypeError for text too, although it may spell one."""
    if isinstance(found, str | bytes):
        raise TypeError(found)
    return float(found)


class _Watched(dict[str, Any]):
    """A user's metric is handed a dict; which outputs it takes out of it is remembered.

    What is no dict makes its arrays when they are looked at: whoever goes past the methods below finds None in their place.
    """

    def __init__(self, outputs: Outputs, seen: set[str]) -> None:
        super().__init__(outputs if isinstance(outputs, dict) else dict.fromkeys(outputs))
        self._seen, self._outputs = seen, outputs

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        found = super().__getitem__(name)
        return self._outputs[name] if found is None else found

    def __iter__(self) -> Iterator[str]:
        # Overridden, so that dict(outputs) and **outputs come through `__getitem__` too (CPython).
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def values(self) -> Any:
        return (self[name] for name in super().__iter__())

    def items(self) -> Any:
        return ((name, self[name]) for name in super().__iter__())


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
