"""Values of inputs, outputs and confidence, sorted into the bins of the bundle's reference.

Always true
 1. Of one tensor, or channel of it, at most `SAMPLED` values of one call are looked at: a large one costs no more than a
    small one.
 2. The answer's path only puts those values aside; they are sorted into bins after it.

Not safe by itself to use from several threads: `Counters` locks.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit import confidence, drift
from edgekit.manifest import Histogram, Reference
from edgekit.tensors import Array

SAMPLED = 512
# Values put aside before somebody should sort them.
FOLD_AT = 16 * SAMPLED
# Section of a window, and label in it.
Key = tuple[str, str]
Aside = dict[Key, list[Array]]


class Binned:
    """Counts of one bundle's calls, by section (`inputs`, `outputs`, `confidence`) and label."""

    def __init__(self, reference: Reference) -> None:
        reference = drift.bounded(reference)
        self._channels = reference.channels or {}
        self._is_probability = {
            name: name in reference.outputs and confidence.is_probability(reference.outputs[name])
            for name in reference.confidence or {}
        }
        self._edges = {key: np.asarray(one.edges, np.float64) for key, one in _of(reference)}
        self._random = np.random.default_rng()
        self._aside: Aside = {}
        self._aside_size = 0
        self._counts: dict[Key, NDArray[np.int64]] = {}
        self.odd: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        self._counts = {key: np.zeros(len(edges) - 1, np.int64) for key, edges in self._edges.items()}
        self.odd = {}

    def drawn(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[Key, Array]:
        """Copies of some values of one call."""
        found: dict[Key, Array] = {}
        for section, label, values in self._parts(inputs, outputs):
            if (section, label) in self._edges:
                found[section, label] = self._sampled(values)
        for name, is_probability in self._is_probability.items():
            if ("confidence", name) in self._edges and name in outputs:
                top = confidence.top(outputs[name], is_probability=is_probability)
                found["confidence", name] = top
        return found

    def _parts(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> Iterator[tuple[str, str, Array]]:
        for name, array in inputs.items():
            axis = self._channels.get(name)
            if axis is None or axis >= array.ndim:
                yield "inputs", name, array
            else:
                for at in range(array.shape[axis]):
                    yield "inputs", f"{name}/{at}", np.asarray(array.take(at, axis))
        for name, array in outputs.items():
            yield "outputs", name, array

    def _sampled(self, array: Array) -> Array:
        """A copy of some values, each as likely as any other."""
        flat = array.ravel()
        if flat.size <= SAMPLED:
            return flat.copy()
        return flat[self._random.integers(0, flat.size, SAMPLED)]

    def put_aside(self, drawn: Mapping[Key, Array]) -> bool:
        """Whether it is time to sort."""
        for key, values in drawn.items():
            self._aside.setdefault(key, []).append(values)
            self._aside_size += values.size
        return self._aside_size >= FOLD_AT

    def taken(self) -> Aside:
        """What was put aside, no longer here."""
        aside, self._aside, self._aside_size = self._aside, {}, 0
        return aside

    def sort(self, aside: Aside) -> Callable[[], None]:
        """Sort what was taken, which takes a while; adding the counts is left to whoever holds the lock."""
        counted = {key: self._binned(key, values) for key, values in aside.items()}
        odd: dict[str, int] = {}
        for (section, label), values in aside.items():
            if section == "inputs":
                for kind, count in _odd(values, self._edges[section, label]).items():
                    odd[kind] = max(odd.get(kind, 0), count)

        def add() -> None:
            for key, counts in counted.items():
                self._counts[key] += counts
            for kind, count in odd.items():
                self.odd[kind] = self.odd.get(kind, 0) + count

        return add

    def _binned(self, key: Key, values: list[Array]) -> NDArray[np.int64]:
        edges = self._edges[key]
        real = np.concatenate(values).astype(np.float64)
        # The ends are open: what lies outside counts in the first or last bin.
        bins = np.searchsorted(edges[1:-1], real[np.isfinite(real)], side="right")
        return np.bincount(bins, minlength=len(edges) - 1).astype(np.int64)

    def histograms(self, section: str) -> dict[str, Histogram]:
        return {
            label: Histogram(self._edges[of, label].tolist(), counts.tolist())
            for (of, label), counts in self._counts.items()
            if of == section
        }


def _of(reference: Reference) -> Iterator[tuple[Key, Histogram]]:
    sections = {
        "inputs": reference.inputs,
        "outputs": reference.outputs,
        "confidence": reference.confidence or {},
    }
    for section, named in sections.items():
        for label, one in named.items():
            yield (section, label), one


def _odd(calls: list[Array], edges: NDArray[np.float64]) -> dict[str, int]:
    """Of calls that were answered, how many had values that are not finite, or far beyond all of the reference: by more
    than its whole range.
    """
    low, high = edges[0], edges[-1]
    reach = high - low
    found = {"not-finite": 0, "out-of-range": 0}
    for values in calls:
        if values.dtype.kind not in "fiu" or not values.size:
            continue
        least, most = float(values.min()), float(values.max())
        # NaN is what compares with nothing.
        if not (np.isfinite(least) and np.isfinite(most)):
            found["not-finite"] += 1
        elif least < low - reach or most > high + reach:
            found["out-of-range"] += 1
    return {kind: count for kind, count in found.items() if count}
