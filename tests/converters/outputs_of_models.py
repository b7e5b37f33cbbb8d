"""Outputs as models of every kind give them, and ways to damage them in steps: what the judge of models is judged by.

Plain numpy, fixed seeds; each output is (N, 1, *shape), a sample with its batch axis of 1. Run as a script it prints the
table: at which step each damage turns the verdict.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from converters.judge import fidelity, kinds
from edgekit.samples import stacked

N = 96
# A figure below this, or a group below `fidelity.FLOOR_DB`, turns the verdict.
LEAST = 0.98


def softmax(logits, axis=-1):
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _f32(array):
    return np.asarray(array, np.float32)


def logits(classes=10, seed=1, places=(1,)):
    r = np.random.default_rng(seed)
    wins = r.integers(0, classes, (N, *places))
    return _f32(r.normal(0, 1.5, (N, *places, classes)) + 9 * np.eye(classes)[wins])


def steps(seed=2):
    """CTC: 30 classes, blank most of the time, one spike a character."""
    r = np.random.default_rng(seed)
    wins = np.where(r.random((N, 1, 40)) < 0.3, r.integers(1, 30, (N, 1, 40)), 0)
    return _f32(softmax(r.normal(0, 1, (N, 1, 40, 30)) + 9 * np.eye(30)[wins]))


def class_map(seed=3):
    """Five classes on 24 x 24 pixels; the last one is a small spot, 1 % of all."""
    r = np.random.default_rng(seed)
    wins = np.zeros((N, 24, 24), int)
    for index in range(N):
        for cls in (1, 2, 3):
            top, left = r.integers(0, 16, 2)
            wins[index, top : top + 8, left : left + 8] = cls
        top, left = r.integers(0, 21, 2)
        wins[index, top : top + 2, left : left + 3] = 4
    found = r.normal(0, 1, (N, 24, 24, 5)) + 8 * np.eye(5)[wins]
    return _f32(np.moveaxis(found, -1, 1)[:, None])


def detector(seed=4, classes=3, places=300):
    """Boxes (N, places, 4) of centre and size in pixels of 320, scores (N, places, classes): up to 4 things a sample."""
    r = np.random.default_rng(seed)
    centres = r.uniform(10, 310, (places, 2))
    boxes = np.concatenate(
        [centres + r.normal(0, 3, (N, places, 2)), r.uniform(25, 90, (N, places, 2))], axis=-1
    )
    scores = r.beta(1, 60, (N, places, classes)) * 0.2
    for index in range(N):
        for place in r.choice(places, r.integers(2, 5), replace=False):
            near = np.argsort(np.linalg.norm(centres - centres[place], axis=1))[:3]
            scores[index, near, r.integers(0, classes)] = r.uniform(0.5, 0.95, 3)
            boxes[index, near] = boxes[index, place] + r.normal(0, 1, (3, 4))
    return _f32(boxes), _f32(scores)


def joined(**given):
    return _f32(np.moveaxis(np.concatenate(detector(**given), axis=-1), -1, 1)[:, None])


def corners(boxes):
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def suppressed(seed=5):
    """(M, 6) rows of x1, y1, x2, y2, score, class, padded by zeros."""
    r = np.random.default_rng(seed)
    made = np.zeros((N, 1, 20, 6))
    for index in range(N):
        count = r.integers(2, 9)
        cells = r.choice(25, count, replace=False)
        centres = np.stack([cells % 5, cells // 5], axis=-1) * 60 + r.uniform(25, 35, (count, 2))
        sizes = r.uniform(30, 55, (count, 2))
        made[index, 0, :count, :4] = corners(np.concatenate([centres, sizes], axis=-1))
        made[index, 0, :count, 4] = np.sort(r.uniform(0.4, 0.95, count))[::-1]
        made[index, 0, :count, 5] = r.integers(0, 4, count)
    return _f32(made)


def sparse(seed=6):
    """50 steps of 20 notes, 2 % of which sound."""
    r = np.random.default_rng(seed)
    is_on = r.random((N, 1, 50, 20)) < 0.02
    return _f32(np.where(is_on, r.uniform(0.65, 1, is_on.shape), r.beta(1, 40, is_on.shape)))


def probability(seed=7):
    r = np.random.default_rng(seed)
    is_on = r.random((N, 1, 1)) < 0.3
    return _f32(np.where(is_on, r.beta(20, 2, is_on.shape), r.beta(2, 20, is_on.shape)))


def embedding(seed=8):
    r = np.random.default_rng(seed)
    vectors = r.normal(0, 1, (N, 1, 128))
    return _f32(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def hidden(seed=9):
    """A text encoder's last layer: nearly all below 0.5."""
    r = np.random.default_rng(seed)
    return _f32(r.normal(0, 0.12, (N, 1, 16, 96)) + r.normal(0, 0.05, 96))


def mask(seed=10):
    """A matting network's raw mask, a blob a sample."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    cx, cy = r.uniform(8, 24, (2, N, 1, 1))
    found = 6 - np.hypot(x - cx, y - cy)
    return _f32(found[:, None, None] + r.normal(0, 0.1, (N, 1, 1, 32, 32)))


def audio(seed=11):
    r = np.random.default_rng(seed)
    time = np.arange(2000) / 8000
    waves = [
        sum(
            a * np.sin(2 * np.pi * f * time + p)
            for f, a, p in zip(*r.uniform(0.1, 1, (3, 4)) * [[900], [0.3], [6]], strict=True)
        )
        for _ in range(N)
    ]
    return _f32(np.stack(waves)[:, None])


def regression(seed=12):
    return _f32(np.random.default_rng(seed).normal(25, 0.5, (N, 1, 1)))


def whole_numbers(seed=13, most=4, shape=(1,)):
    return np.random.default_rng(seed).integers(0, most, (N, *shape))


def uneven(seed=14):
    """Four quantities whose ranges lie a thousand times apart, as box regressions give."""
    r = np.random.default_rng(seed)
    return _f32(r.normal(0, 1, (N, 1, 4)) * [300, 40, 2, 0.2] + [100, 50, 0, 0])


def masked_logits(seed=15):
    found = logits(12, seed)
    is_forbidden = (np.random.default_rng(seed).random(found.shape) < 0.3) & (found < 6)
    return np.where(is_forbidden, -np.inf, found).astype(np.float32)


def constant():
    return _f32(np.tile([[[0.5, -2.0, 3.0]]], (N, 1, 1)))


def with_dead_channel(seed=16):
    found = _f32(np.random.default_rng(seed).normal(0, 2, (N, 1, 6, 12, 12)))
    found[:, :, 3] = 0
    return found


def ragged(seed=17):
    """Hidden values of texts of several lengths."""
    r = np.random.default_rng(seed)
    return stacked([_f32(r.normal(0, 0.3, (1, 8 + 4 * (index % 3), 24))) for index in range(N)])


@dataclass(frozen=True)
class Case:
    """`damaged` is the output that damages are done to; `axis` its channels, from the end, None without any. `events`
    tells where its rare events stand and what is there without them.
    """

    outputs: dict
    kinds: tuple
    damaged: str
    axis: int | None = None
    events: Callable | None = None

    @cached_property
    def judges(self):
        return kinds.infer(self.outputs)

    @cached_property
    def digest(self):
        return digests(self.judges, self.outputs)

    def after(self, damage, step):
        """What is found of the damaged outputs."""
        other = digests(self.judges, damaged(self, damage, step))
        return [fidelity.judged(judge, other, self.digest) for judge in self.judges]


def _single(array, kind, axis=None, events=None):
    return Case({"y": array}, (kind,), "y", axis, events)


def cases():
    boxes, scores = detector()
    return {
        "logits": _single(logits(), "scores", -1),
        "softmax": _single(softmax(logits()), "scores", -1),
        "log-softmax": _single(np.log(softmax(logits()) + 1e-9).astype(np.float32), "scores", -1),
        "CTC steps": _single(steps(), "scores", -1, without_characters),
        "class map": _single(class_map(), "map", -3, without_spots),
        "boxes and scores joined": _single(joined(), "boxes", -2, without_detections),
        "boxes and scores apart": Case({"b": boxes[:, None], "s": scores[:, None]}, ("boxes",), "b", -1),
        "scores beside boxes": Case(
            {"b": boxes[:, None], "s": scores[:, None]}, ("boxes",), "s", -1, without_scores
        ),
        "detections after suppression": _single(suppressed(), "boxes", -1, without_rows),
        "sparse activations": _single(sparse(), "activations", -1, without_active),
        "a single probability": _single(probability(), "activations", None, without_active),
        "embedding": _single(embedding(), "embedding", -1),
        "hidden values": _single(hidden(), "values", -1),
        "hidden values, ragged": _single(ragged(), "values", -1),
        "mask": _single(mask(), "values"),
        "audio": _single(audio(), "values"),
        "regression near 25": _single(regression(), "values"),
        "four quantities": _single(uneven(), "values", -1),
        "labels": _single(whole_numbers(), "labels"),
        "counts": _single(whole_numbers(18, 50, (1, 4)), "labels"),
        "scores, then quantities": Case({"y": logits(4), "q": uneven()}, ("scores", "values"), "q", -1),
        "masked logits": _single(masked_logits(), "scores", -1),
        "constant": _single(constant(), "values", -1),
        "dead channel": _single(with_dead_channel(), "values", -3),
    }


def _copy(array):
    return stacked([part.copy() for part in array])


def without_active(array, share, r):
    found = array.copy()
    places = np.argwhere(array > 0.5)
    for place in places[r.permutation(len(places))[: round(share * len(places))]]:
        found[tuple(place)] = 0.05
    return found


def without_characters(array, share, r):
    found = array.copy()
    places = np.argwhere(array.argmax(-1) > 0)
    for place in places[r.permutation(len(places))[: round(share * len(places))]]:
        found[tuple(place)] = np.eye(30)[0]
    return found


def without_spots(array, share, r):
    """The rare class of whole samples goes."""
    found = array.copy()
    for index in r.permutation(N)[: max(1, round(share * N))]:
        found[index, 0, 4] = array[index, 0, :4].min(0)
    return found


def without_detections(array, share, r):
    found = array.copy()
    for index in r.permutation(N)[: max(1, round(share * N))]:
        found[index, 0, 4:] *= 0.1
    return found


def without_scores(array, share, r):
    found = array.copy()
    found[r.permutation(N)[: max(1, round(share * N))]] *= 0.1
    return found


def without_rows(array, share, r):
    found = array.copy()
    places = np.argwhere(array[..., 4] > 0)
    for place in places[r.permutation(len(places))[: round(share * len(places))]]:
        found[tuple(place)] = 0
    return found


def noise(case, array, step, r):
    """At so many dB below each channel's own variation, of one that does not vary below its magnitude."""
    spread = _spread(case, array) * 10 ** (-step / 20)
    return stacked([(part + r.normal(0, 1, part.shape) * spread).astype(np.float32) for part in array])


def numbers_changed(_case, array, step, r):
    return np.where(r.random(array.shape) < step, array + 1, array)


def _spread(case, array):
    if array.dtype == object:
        return np.concatenate([part.ravel() for part in array]).std()
    finite = np.where(np.isfinite(array), array, np.nan)
    off = finite - np.nanmean(finite, axis=0)
    if not np.nanmax(np.abs(off)) > 0:
        return np.abs(array[0])
    if case.axis is None:
        return np.sqrt(np.nanmean(off**2))
    others = tuple(axis for axis in range(array.ndim) if axis != array.ndim + case.axis)
    return np.sqrt(np.nanmean(off**2, axis=others, keepdims=True))[0]


def channels_lost(case, array, step, _r):
    """So many channels, the last ones, become zero."""
    found = _copy(array)
    for part in found:
        lost = np.moveaxis(part, case.axis, 0)[-step:]
        lost[np.isfinite(lost)] = 0
    return found


def scale_lost(_case, array, step, _r):
    return stacked([(part * step).astype(array[0].dtype) for part in array])


def rows_swapped(case, array, _step, _r):
    found = _copy(array)
    for part in found:
        rows = np.moveaxis(part, case.axis, 0)
        rows[[0, 1]] = rows[[1, 0]]
    return found


def events_lost(case, array, step, r):
    return case.events(array, step, r)


def output_lost(_case, array, step, _r):
    """The first sample's output every time, or zeros."""
    return stacked([np.zeros_like(part) if step == "zeros" else array[0] for part in array])


def not_a_number(_case, array, step, _r):
    found = _copy(array)
    found[5].flat[0] = step
    return found


@dataclass(frozen=True)
class Damage:
    """`steps` grow worse; up to `harmless` nothing may turn, at `by` all must have."""

    name: str
    do: Callable
    steps: tuple
    by: object
    harmless: object = None
    fits: Callable = lambda case, array: True


def _has_channels(case, array):
    return case.axis is not None and array[0].dtype.kind == "f"


def _is_whole(case, array):
    return not _is_float(case, array)


def _is_float(_case, array):
    return array[0].dtype.kind == "f"


def _varies(_case, array):
    return (
        _is_float(_case, array)
        and array.dtype != object
        and np.ptp(np.where(np.isfinite(array), array, 0), axis=0).max() > 0
    )


DAMAGES = (
    Damage("noise, dB below", noise, (60, 40, 30, 25, 20, 17, 13, 10, 6, 0), 13, 25, _is_float),
    Damage("numbers changed, share", numbers_changed, (0.001, 0.01, 0.05, 0.2, 0.5), 0.05, 0.001, _is_whole),
    Damage("channels lost", channels_lost, (1, 2, 4), 1, fits=_has_channels),
    Damage("scale lost, times", scale_lost, (1.00001, 1.01, 1.05, 1.2, 1.5, 3), 1.2, 1.00001, _is_float),
    Damage("rows swapped", rows_swapped, ("two",), "two", fits=_has_channels),
    Damage(
        "rare events lost, share",
        events_lost,
        (0.01, 0.03, 0.05, 0.1, 0.3, 1),
        0.1,
        fits=lambda case, _: case.events,
    ),
    Damage("output lost", output_lost, ("same", "zeros"), "same", fits=_varies),
    Damage("not a number", not_a_number, (np.nan,), np.nan, fits=_is_float),
    Damage("infinite", not_a_number, (np.inf,), np.inf, fits=_is_float),
)


def digests(judges, outputs):
    """Of all samples, one by one as a build does it."""
    each = []
    for index in range(len(next(iter(outputs.values())))):
        sample = {name: array[index : index + 1] for name, array in outputs.items()}
        sample = {name: stacked(list(array)) for name, array in sample.items()}
        each.append(
            {key: value[0] for judge in judges for key, value in fidelity.digest(judge, sample).items()}
        )
    return {key: stacked([one[key] for one in each]) for key in each[0]}


def findings(outputs, candidate, judges=None):
    judges = judges or kinds.infer(outputs)
    source, other = digests(judges, outputs), digests(judges, candidate)
    return [fidelity.judged(judge, other, source) for judge in judges]


def turns(found):
    return not all(one.holds(LEAST) for one in found)


def damaged(case, damage, step):
    array = case.outputs[case.damaged]
    return {**case.outputs, case.damaged: damage.do(case, array, step, np.random.default_rng(99))}


def rows() -> Iterator[tuple[str, Case, Damage, object, list]]:
    """Case, damage, the first step that turns the verdict (None: none does), and what was found there."""
    for name, case in cases().items():
        for damage in DAMAGES:
            if not damage.fits(case, case.outputs[case.damaged]):
                continue
            found = []
            for step in damage.steps:
                found = case.after(damage, step)
                if turns(found):
                    yield name, case, damage, step, found
                    break
            else:
                yield name, case, damage, None, found


def table() -> str:
    """The first step of each damage that turns the verdict, one row a kind of output."""
    told: dict[str, dict[str, str]] = {}
    for name, _, damage, step, _found in rows():
        told.setdefault(name, {})[damage.name] = "never" if step is None else str(step)
    heads = ["output", *(damage.name for damage in DAMAGES)]
    lines = [heads, ["---"] * len(heads)]
    lines += [[name, *(cells.get(head, "") for head in heads[1:])] for name, cells in told.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table())
