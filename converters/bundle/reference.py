"""What devices are held against for drift: histograms of the evaluation data, and what each is worth.

Always true
 1. It is bounded: at most `MOST` histograms of `BINS` bins each, whatever the model takes and gives.
 2. Samples are what is independent, or sequences where there are any: thousands of values of a few pictures are worth little.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from converters.rounds.candidates import Candidate
from converters.work.watched import looked_at, sampled
from converters.work.workbench import Workbench
from edgekit import confidence, drift
from edgekit.manifest import Histogram, Reference
from edgekit.tensors import Array

BINS = 10
# Histograms of inputs that a bundle has at most; where there would be more, an input is taken as a whole.
MOST = 40
# Channels of a picture or a signal, and columns of a row of features.
_CHANNELS, _FEATURES = 16, 32
# Channels one of which lies so far from all together are watched each for itself.
_APART = 0.1
_CLASS_METRICS = ("top1", "top5")


def made(bench: Workbench, item: Candidate) -> Reference:
    """Histograms of what the model meets and gives on the evaluation data."""
    assert item.evaluated is not None
    judged = bench.data.judged
    picked = looked_at(len(judged))
    ready = [bench.data.ready(judged.sample(index)) for index in picked]
    groups = np.asarray(picked) if judged.sequence is None else judged.sequence[picked]
    inputs: dict[str, Histogram] = {}
    channels: dict[str, int] = {}
    for name in ready[0]:
        if name not in bench.source.states:
            axis, found = of_input(name, [row[name] for row in ready], groups, MOST - len(inputs))
            inputs |= found
            if axis is not None:
                channels[name] = axis
    states = {pair.output for pair in bench.source.state}
    watched = {name: seen for name, seen in item.evaluated.watched.items() if name not in states}
    outputs = {name: histogram(seen.values, groups) for name, seen in watched.items()}
    sure = {
        name: histogram(seen.peak if confidence.is_probability(outputs[name]) else seen.top, groups)
        for name, seen in watched.items()
        if seen.top and _is_classes(bench, name)
    }
    return Reference(inputs, outputs, channels or UNSET, sure or UNSET)


def _is_classes(bench: Workbench, name: str) -> bool:
    """By the metric, which looks at the first output, or by post-processing."""
    is_first = name == bench.source.outputs[0].name
    is_judged = is_first and bench.judging.metric.name in _CLASS_METRICS
    return is_judged or confidence.is_told(bench.project.postprocess, name)


def of_input(
    name: str, samples: Sequence[Array], groups: NDArray[np.int64], room: int
) -> tuple[int | None, dict[str, Histogram]]:
    """Histograms by label: of the whole input, or of each channel along the axis named first where they differ."""
    whole = histogram(samples, groups)
    for axis, count in _axes(samples):
        if count > room or not sum(whole.counts):
            continue
        parts = [[np.take(sample, at, axis) for sample in samples] for at in range(count)]
        edges = np.asarray(whole.edges)
        if any(_apart(_counts(part, edges).sum(axis=0), whole) > _APART for part in parts):
            return axis, {f"{name}/{at}": histogram(part, groups) for at, part in enumerate(parts)}
    return None, {name: whole}


def _axes(samples: Sequence[Array]) -> list[tuple[int, int]]:
    """Axes of one sample (*shape) that may be channels, with how many."""
    shape = samples[0].shape
    if any(sample.shape != shape for sample in samples) or samples[0].dtype.kind != "f":
        return []
    wide = [(axis, dim) for axis, dim in enumerate(shape) if dim > 1]
    if len(wide) == 1:
        return wide if wide[0][1] <= _FEATURES else []
    # Beside what is spread out: the first of them (N, C, H, W) or the last (N, H, W, C).
    return [one for one in (wide[0], wide[-1]) if one[1] <= _CHANNELS] if len(wide) > 2 else []


def _apart(counts: NDArray[np.int64], whole: Histogram) -> float:
    ours, theirs = ((row + 0.5) / (row + 0.5).sum() for row in (counts, np.asarray(whole.counts)))
    return drift.index(ours.tolist(), theirs.tolist())


def histogram(samples: Sequence[Array], groups: NDArray[np.int64]) -> Histogram:
    """Up to `BINS` bins of about equal counts, of the finite values: a mask's infinities tell nothing of drift.

    `groups` says which samples belong together; the counts are worth what these differ.
    """
    rows = [_finite(sampled(sample)) for sample in samples]
    row = np.concatenate(rows)
    if not row.size:
        return Histogram([-0.5, 0.5], [0])
    rounded = [float(f"{edge:.6g}") for edge in np.quantile(row, np.linspace(0, 1, BINS + 1))]
    edges = sorted(set(rounded))
    if len(edges) < 2:
        edges = [edges[0] - 0.5, edges[0] + 0.5]
    by_sample = _counts(samples, np.asarray(edges))
    total = by_sample.sum(axis=0)
    blocks = [by_sample[groups == group].sum(axis=0).tolist() for group in np.unique(groups)]
    shares = ((total + 0.5) / (total + 0.5).sum()).tolist()
    worth = drift.worth(blocks, shares, "none")
    return Histogram(edges, [int(count) for count in total], float(f"{worth:.6g}"))


def _finite(values: Array) -> NDArray[np.float64]:
    real = values.astype(np.float64)
    return real[np.isfinite(real)]


def _counts(samples: Sequence[Array], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """(samples, bins). The ends are open: what lies outside counts in the first or last bin."""
    bins = [np.searchsorted(edges[1:-1], _finite(sampled(sample)), side="right") for sample in samples]
    return np.stack([np.bincount(row, minlength=len(edges) - 1) for row in bins])
