"""The data of one build, each kind opened once: to calibrate with, to search on, to judge on, to ship as self-test.

Always true
 1. Search half and judged half share no sample, nor calibration data with what is held back of it; sequences stay whole.
 2. The same project and source give the same samples in the same order.
 3. Each bucket of a model has samples in the judged half: none is shipped unseen.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.data import halves, reading, shifted, sliced
from converters.data.halves import Half
from converters.data.spool import Spool
from converters.source import code
from converters.source.project import Project
from converters.source.source import Source, closed, refuse_nan
from edgekit.buckets import bucket_of, fitted
from edgekit.errors import DataError, InputError, ProjectError
from edgekit.samples import Samples, is_ragged
from edgekit.selftest import iter_samples
from edgekit.tensors import Array, fits
from edgekit.transforms import prepare

# Samples that parity is checked on, and share of the calibration data held back where there is no other.
PARITY_SAMPLES = 8
HELD_BACK = 0.2
MIN_GOLDEN = 32
GOLDEN = 64
# Golden samples of each bucket, at least, where it has them.
OF_A_BUCKET = 8
# Sequences are kept whole; a set of golden sequences ends after this many samples.
MAX_GOLDEN = 512
# Samples that are corrupted: a coarse question, which does not need all.
SHIFTED = 100


@dataclass
class Datasets:
    project: Project
    source: Source
    gate: code.CodeGate
    # Where calibration samples that the user's code makes are kept, or are already.
    spool: Path | None = None

    def __post_init__(self) -> None:
        """Raises: ProjectError for a corruption that there is none of."""
        unknown = [
            name
            for name in shifted.named(self.project.file.data.shifted) or ()
            if name not in shifted.CORRUPTIONS
        ]
        if unknown:
            raise ProjectError(
                f"{self.project.where}: data.shifted: there is no corruption {', '.join(unknown)};"
                f" there are {', '.join(shifted.CORRUPTIONS)}"
            )

    @cached_property
    def evaluation(self) -> Samples:
        """All evaluation samples, raw. Raises: DataError if there are too few for a self-test."""
        text = self.project.file.data.evaluation
        if text:
            samples = self._open(text).collect()
        else:
            everything = self._open(self.project.file.data.calibration).collect()
            samples = everything.take(slice(self._held_from, None))
        if len(samples) < 2 * MIN_GOLDEN:
            raise DataError(
                f"{self.evaluated_from}: {len(samples)} evaluation samples{self._held_words}; a bundle's"
                f" self-test alone needs {MIN_GOLDEN} in the judged half, {2 * MIN_GOLDEN} in all"
            )
        if self.source.state and samples.sequence is None:
            raise DataError(
                f"{text}: the model keeps state, so its data needs a 'sequence' array (N,) of ids, one a sample;"
                " without it every sample would meet a zero state"
            )
        return replace(samples, slices=self._slices(samples))

    def _slices(self, samples: Samples) -> NDArray[np.str_] | None:
        """The group of each evaluation sample. Raises: DataError, ProjectError."""
        text = self.project.file.data.slices
        if not text:
            return samples.slices
        found = sliced.read(text, self.project.folder, self.gate, samples, self._held_from or 0)
        if len(found) != len(samples):
            raise DataError(
                f"{text}: {len(found)} names of groups for {len(samples)} evaluation samples; give one a sample"
            )
        return found

    @property
    def _held_words(self) -> str:
        """Where they come from, if the project names none."""
        return "" if self._held_from is None else ", held back of the calibration data for want of others"

    @property
    def evaluated_from(self) -> str:
        """What the user calls the evaluation data."""
        return self.project.file.data.evaluation or self.project.file.data.calibration

    @cached_property
    def shares(self) -> dict[int, float]:
        """The share of the evaluation samples that fall into each bucket; empty without buckets."""
        if self.source.buckets is None:
            return {}
        return {size: float(np.mean(self.evaluation_buckets == size)) for size in self.source.buckets.sizes}

    @cached_property
    def evaluation_buckets(self) -> NDArray[np.int64]:
        """The bucket of each evaluation sample, (N,). Raises: DataError for one that none holds."""
        buckets = self.source.buckets
        assert buckets is not None
        found = []
        for index in range(len(self.evaluation)):
            try:
                found.append(bucket_of(buckets, self.ready(self.evaluation.sample(index))))
            except InputError as error:
                raise DataError(
                    f"evaluation sample {index}: {error}; add a bucket, or leave it out"
                ) from error
        return np.array(found, np.int64)

    @cached_property
    def halves(self) -> tuple[Half, Half]:
        """The evaluation data to search on, and to judge on; each with shifted samples where there can be any."""
        samples, seed = self.evaluation, self.project.file.data.seed
        self._check_judged()
        parts = [samples.take(part) for part in self._split]
        named = shifted.named(self.project.file.data.shifted)
        if named is None:
            own = self._open(str(self.project.file.data.shifted)).collect()
            others = [own.take(part) for part in halves.split(len(own), own.sequence, seed)]
            return _with_own(parts[0], others[0]), _with_own(parts[1], others[1])
        names = named or (shifted.DEFAULT,)
        # The judged half's corruptions must not be those that a search saw.
        return _corruptible(parts[0], seed + 1, names), _corruptible(parts[1], seed, names)

    @property
    def shift_note(self) -> str:
        """That nothing can be corrupted, where that is so; empty otherwise."""
        names = shifted.named(self.project.file.data.shifted)
        if names is None or self.halves[1].shift is not None:
            return ""
        return shifted.told(self.judged, names or (shifted.DEFAULT,))

    @property
    def judged(self) -> Samples:
        return self.halves[1].samples

    @cached_property
    def judged_buckets(self) -> NDArray[np.int64]:
        """The bucket of each judged sample."""
        return self.evaluation_buckets[self._split[1]]

    @cached_property
    def golden(self) -> NDArray[np.int64]:
        """Indices into the judged half of what a bundle's self-test gets: spread evenly over it, or its first whole
        sequences for a stateful model.
        """
        samples = self.judged
        count = len(samples)
        if samples.sequence is None:
            evenly = spread(np.arange(count), GOLDEN)
            if self.source.buckets is None:
                return evenly
            found = self.judged_buckets
            own = [spread(np.flatnonzero(found == size), OF_A_BUCKET) for size in self.source.buckets.sizes]
            return np.unique(np.concatenate([evenly, *own]))
        starts = [index for index in range(count) if samples.starts(index)]
        ends = (*starts[1:], count)
        fitting = [end for end in ends if end <= MAX_GOLDEN or end == ends[0]]
        return np.arange(next((end for end in reversed(fitting) if end >= MIN_GOLDEN), fitting[-1]))

    @cached_property
    def few(self) -> NDArray[np.int64]:
        """Indices into the judged half of what is looked at of a candidate that need not be judged on all of it."""
        return halves.few(self.judged, self.golden)

    @cached_property
    def fingerprint(self) -> str:
        """Of the calibration samples that are used, in their order; empty without. What is held back is not among them:
        the same file with and without evaluation data of its own calibrates differently.
        """
        if self._stored is None:
            return ""
        held = "all" if self._held_from is None else f"the first {self._held_from}"
        return f"{self._stored.fingerprint()}, {held}"

    @cached_property
    def feeds_fingerprint(self) -> str:
        """Of the samples that parity is checked on."""
        return feeds_fingerprint(self.feeds)

    @cached_property
    def search_fingerprint(self) -> str:
        """Of the samples that an analysis may look at: the search half's."""
        half = self.halves[0]
        return "".join(fingerprint(part) for part in (half.samples, half.shifted) if part is not None)

    @property
    def calibration(self) -> Callable[[], Iterator[dict[str, Array]]] | None:
        """Makes engine-ready calibration samples, afresh for each pass; None without reading."""
        return None if self._stored is None else self._calibration_feeds

    def calibration_at(self, size: int) -> Callable[[], Iterator[dict[str, Array]]] | None:
        """All of it at the size of one bucket, padded or cut: every bucket is calibrated with the same samples."""
        return self._at(size, self.calibration)

    def shifted_at(self, size: int) -> Callable[[], Iterator[dict[str, Array]]] | None:
        return self._at(size, self.shifted)

    @property
    def shifted(self) -> Callable[[], Iterator[dict[str, Array]]] | None:
        """Makes engine-ready samples of the search half's shifted data; None without. The judged half stays unseen."""
        half = self.halves[0]
        return None if half.shift is None else lambda: self._ready_feeds(filter(None, [half.shifted]))

    @cached_property
    def feeds(self) -> list[dict[str, Array]]:
        """A few engine-ready samples, states at zero: for parity and timing. Of each bucket some."""
        if self.source.buckets is not None:
            return [feed for size in self.source.buckets.sizes for feed in self.feeds_at(size)]
        return self._feeds(self.evaluation.take(slice(0, PARITY_SAMPLES)))

    def feeds_at(self, size: int) -> list[dict[str, Array]]:
        """A few that fall into one bucket, padded to it."""
        buckets = self.source.buckets
        assert buckets is not None
        own = np.flatnonzero(self.evaluation_buckets == size)
        return [
            fitted(buckets, feed, size) for feed in self._feeds(self.evaluation.take(own[:PARITY_SAMPLES]))
        ]

    def _feeds(self, samples: Samples) -> list[dict[str, Array]]:
        zeros = {
            spec.name: np.zeros(closed(spec), spec.dtype)
            for spec in self.source.inputs
            if spec.name in self.source.states
        }
        return [{**zeros, **self.ready(samples.sample(index))} for index in range(len(samples))]

    def ready(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """A raw sample as the model takes it. Raises: DataError."""
        made = prepare(self.source.admitted, self.project.preprocess, sample)
        for spec in self.source.admitted:
            if spec.name in made and (
                not fits(spec, made[spec.name].shape) or str(made[spec.name].dtype) != spec.dtype
            ):
                array = made[spec.name]
                raise DataError(
                    f"after pre-processing, input {spec.name!r} is {array.dtype} {'x'.join(map(str, array.shape))};"
                    f" the model takes {spec.describe()}"
                )
        return {name: np.asarray(array, order="C") for name, array in made.items()}

    def refuse_nan(self, samples: Samples, index: int, outputs: Mapping[str, Array]) -> None:
        """Raises: SourceError where the source's own answer to a sample as it came is NaN, which nothing agrees with."""
        for half, indices in zip(self.halves, self._split, strict=True):
            if half.samples is not samples:
                continue
            refuse_nan(outputs, f"evaluation sample {indices[index]} (counted from 0)")

    def opened(self, text: str) -> Samples:
        """All samples of other data of the project's, raw. Raises: DataError."""
        return self._open(text).collect()

    @cached_property
    def _held_from(self) -> int | None:
        """Without evaluation data: index of the first calibration sample that is held back, at a sequence's start."""
        if self.project.file.data.evaluation or self._stored is None:
            return None
        starts = [chunk.starts(index) for chunk in self._stored.chunks() for index in range(len(chunk))]
        wanted = min(int(len(starts) * (1 - HELD_BACK)), len(starts) - 2 * MIN_GOLDEN)
        return next((index for index in range(max(wanted, 1), 0, -1) if starts[index]), 0) if starts else 0

    @cached_property
    def _stored(self) -> reading.Source | None:
        text = self.project.file.data.calibration
        if self.spool is None or not code.is_reference(text):
            return self._open(text) if text else None
        return Spool(self.spool, text, lambda: self._open(text)).source()

    def _open(self, text: str) -> reading.Source:
        return reading.open_source(
            text,
            self.project.folder,
            self.source.admitted,
            self.gate,
            raw=tuple(self.project.preprocess),
            states=self.source.states,
        )

    @cached_property
    def _split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices into the evaluation data of the search half and the judged half."""
        samples = self.evaluation
        return halves.split(len(samples), samples.sequence, self.project.file.data.seed, samples.slices)

    def _check_judged(self) -> None:
        """Raises: DataError if a bucket has no judged sample."""
        if self.source.buckets is None:
            return
        found = self.judged_buckets.tolist()
        empty = [size for size in self.source.buckets.sizes if size not in found]
        if empty:
            counts = ", ".join(f"{size}: {found.count(size)}" for size in self.source.buckets.sizes)
            raise DataError(
                f"bucket {empty[0]} has no sample in the judged half of the evaluation data ({counts}), so nothing would"
                " show what it computes; add samples of that size, or leave the bucket out"
            )

    def _at(
        self, size: int, feeds: Callable[[], Iterator[dict[str, Array]]] | None
    ) -> Callable[[], Iterator[dict[str, Array]]] | None:
        buckets = self.source.buckets
        assert buckets is not None
        return None if feeds is None else lambda: (fitted(buckets, feed, size) for feed in feeds())

    def _calibration_feeds(self) -> Iterator[dict[str, Array]]:
        assert self._stored is not None
        return islice(self._ready_feeds(self._stored.chunks()), self._held_from)

    def _ready_feeds(self, chunks: Iterable[Samples]) -> Iterator[dict[str, Array]]:
        """Engine-ready samples one by one; a stateful model's states come from the source itself."""
        last: dict[str, Array] = {}

        def run(ready: Mapping[str, Array]) -> dict[str, Array]:
            last.clear()
            last.update(ready)
            return self.source.reference.run(ready) if self.source.state else {}

        for chunk in chunks:
            for _ in iter_samples(
                run, self.source.admitted, self.source.state, self.project.preprocess, chunk
            ):
                yield dict(last)


def feeds_fingerprint(feeds: Iterable[Mapping[str, Array]]) -> str:
    """sha256 over engine-ready samples in their order."""
    digest = hashlib.sha256()
    for feed in feeds:
        digest.update(_fingerprint(feed).encode())
    return digest.hexdigest()


def fingerprint(samples: Samples) -> str:
    """sha256 over names, types, shapes and bytes."""
    own = {"\0labels": samples.labels, "\0sequence": samples.sequence, "\0slices": samples.slices}
    return _fingerprint({**samples.inputs, **own})


def _fingerprint(arrays: Mapping[str, Array | None]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if array is not None:
            digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
            digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: Array) -> bytes:
    if is_ragged(array):
        return b"".join(str(part.shape).encode() + part.tobytes() for part in array)
    return array.tobytes()


def spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to `count` of the indices, evenly spread over them."""
    chosen = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(np.int64)
    return np.unique(indices[chosen])


def _with_own(part: Samples, own: Samples) -> Half:
    return Half(part, lambda: own, len(part))


def _corruptible(part: Samples, seed: int, names: Sequence[str]) -> Half:
    count = _pairs(part)
    first = part.take(slice(0, count))
    can_be = shifted.is_possible(first)
    return Half(part, partial(shifted.corrupted, first, seed, names) if can_be else None, count)


def _pairs(samples: Samples) -> int:
    """How many samples of a half are corrupted: `SHIFTED`, and the rest of a sequence begun."""
    starts = (index for index in range(SHIFTED, len(samples)) if samples.starts(index))
    return next(starts, len(samples))
