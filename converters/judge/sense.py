"""Whether the source makes sense of the labels: against a constant guess, and against other samples' labels.

A drop says nothing where there is nothing to lose: a float source that answers no better than always the same answer
(labels from 1, text for numbers, inputs prepared in another way than in training) makes every candidate look as good as
its source.

Pure: the source's digest and labels in, a sentence out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.data.halves import groups_of
from converters.judge import text
from converters.judge.metrics import Metric, MetricError, Outputs, first
from edgekit.errors import DataError, EdgeKitError
from edgekit.samples import flat, is_ragged, stacked
from edgekit.tensors import Array

# Pairings of outputs with other samples' labels, and how many of them the right one must beat.
PERMUTATIONS = 20
LEAST_BEATEN = 0.9
SEED = 0
# Classes that are tried as the constant answer of a metric that weighs classes, the most frequent first.
CLASSES = 20
# Metrics whose digest holds classes, and those whose digest holds values.
CLASSED = ("f1", "agreement")
VALUED = ("rmse", "cosine", "sqnr")
# What an empty answer scores.
EMPTY: Mapping[str, tuple[str, float]] = {
    "cer": ("an empty answer", 1.0),
    "wer": ("an empty answer", 1.0),
    "map": ("no box at all", 0.0),
}
LOOK = (
    "look at the labels (classes count from 0, in the model's own order) and at [preprocess] (scale, channel order, size),"
    " or leave the labels out"
)
LOOK_AT_METRIC = "look at the metric, at the labels and at the source's outputs"


@dataclass(frozen=True)
class Guess:
    """What answering the same whatever the input scores; `what` says the answer."""

    figure: float
    what: str


def objection(
    metric: Metric,
    digest: Outputs,
    labels: Array,
    sequence: NDArray[np.int64] | None = None,
    *,
    classes: int | None = None,
) -> str:
    """Why these labels cannot be judged by, empty if they can. `digest` is the float source's of all samples with
    labels, `classes` the number of classes that the model tells apart, where that is known.

    Raises: DataError for labels that are no numbers where numbers are needed, or do not fit.
    """
    if not metric.by_labels:
        return ""
    wanted = np.asarray(labels)
    _refuse_text(metric, wanted)
    _refuse_nan(metric, wanted)
    found = _one_hot(metric, digest, wanted)
    if found:
        return found
    try:
        figure = metric.of_digest(digest, wanted)
    except MetricError as error:
        return f"on the float source, {error}; {LOOK_AT_METRIC}"
    seen = f"{metric.name} of the float source is {figure:.4f}"
    if not np.isfinite(figure):
        return f"{seen}, which is no finite number; {LOOK_AT_METRIC}"
    guess = best_guess(metric, digest, wanted)
    if guess is not None and not metric.drop(figure, guess.figure) > 0:
        if _is_one_value(metric, wanted):
            return f"{seen}, and all labels are the same ({guess.what} scores {guess.figure:.4f}): give samples of all kinds"
        hint = _hint(metric, digest, wanted, figure, classes)
        return f"{seen}, and always answering {guess.what} scores {guess.figure:.4f}: {hint}"
    shuffled = _shuffled_figures(metric, digest, wanted, sequence)
    if np.ptp(shuffled) == 0 and shuffled[0] == figure:
        return ""
    if np.mean([metric.drop(figure, other) > 0 for other in shuffled]) < LEAST_BEATEN:
        median = float(np.median(shuffled))
        hint = _hint(metric, digest, wanted, figure, classes)
        return f"{seen}, and {median:.4f} with the labels of other samples: {hint}"
    return ""


def best_guess(metric: Metric, digest: Outputs, labels: Array) -> Guess | None:
    """The best constant answer; None for metrics of which that is not known. Raises: DataError."""
    wanted = np.asarray(labels)
    if metric.name in EMPTY:
        what, figure = EMPTY[metric.name]
        return Guess(figure, what)
    if metric.name in CLASSED or _is_top(metric):
        return _class_guess(metric, digest, wanted)
    if metric.name in VALUED:
        return _mean_guess(metric, digest, wanted)
    return None


def _is_top(metric: Metric) -> bool:
    return metric.name.startswith("top") and metric.name[3:].isdigit()


def _class_guess(metric: Metric, digest: Outputs, labels: Array) -> Guess:
    (name, found), values = next(iter(digest.items())), flat(labels)
    seen, counts = np.unique(values, return_counts=True)
    frequent = [int(value) for value in seen[np.argsort(-counts, kind="stable")]]
    if _is_top(metric) and metric.name != "top1":
        # The answer of each place is a row of classes.
        best = np.array((frequent + [-1] * found.shape[-1])[: found.shape[-1]])
        told = ", ".join(str(item) for item in best.tolist() if item >= 0)
        figure = metric.of_digest({name: np.broadcast_to(best, found.shape)}, labels)
        return Guess(figure, f"classes {told}")
    guesses = [
        (metric.of_digest({name: _filled(found, value)}, labels), value)
        for value in (frequent[:CLASSES] if metric.name == "f1" else frequent[:1])
    ]
    figure, value = max(guesses, key=lambda guess: guess[0])
    return Guess(figure, f"class {value}")


def _mean_guess(metric: Metric, digest: Outputs, labels: Array) -> Guess | None:
    name, found = next(iter(digest.items()))
    if is_ragged(found) or is_ragged(labels):
        return None
    mean = labels.astype(np.float64).mean(axis=0).reshape(found.shape[1:])
    return Guess(metric.of_digest({name: np.broadcast_to(mean, found.shape)}, labels), "the labels' mean")


def _filled(found: Array, value: int) -> Array:
    """As many answers, all the same; of a type that holds any class."""
    if is_ragged(found):
        return stacked([np.full(part.shape, value, np.int64) for part in found])
    return np.full(found.shape, value, np.int64)


def _shuffled_figures(
    metric: Metric, digest: Outputs, labels: Array, sequence: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Figures with the labels of other samples, or of other sequences where all are as long: what stands at one place of
    a sequence then meets what stands there in another.
    """
    random = np.random.default_rng(SEED)
    groups = groups_of(len(labels), sequence)
    if len(groups) < 2 or len({len(group) for group in groups}) > 1:
        groups = groups_of(len(labels), None)
    figures = []
    for _ in range(PERMUTATIONS):
        order = np.concatenate([groups[index] for index in random.permutation(len(groups))])
        try:
            figures.append(metric.of_digest(digest, labels[order]))
        except EdgeKitError:
            # Ragged labels fit their own sample only: such pairs say nothing.
            return np.full(1, metric.of_digest(digest, labels))
    return np.array(figures)


def _refuse_text(metric: Metric, labels: Array) -> None:
    if labels.dtype.kind in "US" and (metric.name in (*CLASSED, *VALUED, "map") or _is_top(metric)):
        raise DataError(f"labels are text ({labels.dtype}); metric {metric.name!r} needs class numbers")


def _refuse_nan(metric: Metric, labels: Array) -> None:
    """A metric of the user's own may read "unknown" there."""
    if not (metric.name in (*CLASSED, *VALUED, "map") or _is_top(metric)) or is_ragged(labels):
        return
    if labels.dtype.kind != "f" or np.isfinite(labels).all():
        return
    wrong = np.flatnonzero(~np.isfinite(labels).reshape(len(labels), -1).all(axis=1))
    raise DataError(
        f"labels of {len(wrong)} samples are NaN or infinite (the first is {wrong[0]}, counted from 0); metric"
        f" {metric.name!r} compares with numbers: leave those samples out"
    )


def _one_hot(metric: Metric, digest: Outputs, labels: Array) -> str:
    """Rows of a single 1 where a class number should be."""
    if not (metric.name in CLASSED or _is_top(metric)) or is_ragged(labels) or labels.ndim < 2:
        return ""
    answers = flat(first(digest)).size
    if _is_top(metric) and metric.name != "top1":
        # As many classes for each answer as K says.
        answers //= first(digest).shape[-1]
    is_set = (labels == 0) | (labels == 1)
    if answers >= labels.size or not is_set.all() or not (labels.sum(axis=-1) == 1).all():
        return ""
    return (
        f"labels of shape {labels.shape} are one-hot, and metric {metric.name!r} takes class numbers: give"
        " labels.argmax(axis=-1)"
    )


def _is_one_value(metric: Metric, labels: Array) -> bool:
    return (metric.name in CLASSED or _is_top(metric)) and len(np.unique(flat(labels))) == 1


def _hint(metric: Metric, digest: Outputs, labels: Array, figure: float, classes: int | None) -> str:
    """What to look at."""
    hints = [found for hint in _HINTS if (found := hint(metric, digest, labels, figure, classes))]
    return "; ".join([*hints, LOOK])


def _counted_from_1(
    metric: Metric, digest: Outputs, labels: Array, figure: float, _classes: int | None
) -> str:
    """Another origin of the class numbers under which the source makes more sense."""
    if not (metric.name in CLASSED or _is_top(metric)) or is_ragged(labels):
        return ""
    for step, written in ((-1, "labels - 1"), (1, "labels + 1")):
        other = metric.of_digest(digest, labels + step)
        guess = best_guess(metric, digest, labels + step)
        if other > figure and guess is not None and other > guess.figure:
            return f"with {written} the source scores {other:.4f}, so the labels seem to count from another class"
    return ""


def _outside(metric: Metric, digest: Outputs, labels: Array, _figure: float, classes: int | None) -> str:
    """Labels that no answer of the model can equal."""
    if not (metric.name in CLASSED or _is_top(metric)):
        return ""
    values = flat(labels)
    largest, least = int(values.max()), int(values.min())
    if classes is not None and (largest >= classes or least < 0):
        return (
            f"labels go from {least} to {largest}, and the model has {classes} classes (0 to {classes - 1})"
        )
    answered = int(flat(first(digest)).max())
    if classes is None and largest > answered:
        return f"labels go from {least} to {largest}, and the model never answers above {answered}"
    return ""


def _of_text(metric: Metric, digest: Outputs, _labels: Array, _figure: float, _classes: int | None) -> str:
    """What the source reads."""
    if metric.name not in ("cer", "wer"):
        return ""
    written = float(np.mean([np.sum(row >= 0) for row in digest[text.IDS]]))
    return f"the source writes {written:.1f} characters a sample; look at [data] alphabet too, whose first line is the blank"


_HINTS: tuple[Callable[[Metric, Outputs, Array, float, int | None], str], ...] = (
    _counted_from_1,
    _outside,
    _of_text,
)
