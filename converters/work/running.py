"""A model run over the evaluation data; of its outputs, what judging needs is kept.

Always true
 1. Samples are run one by one and in their order, as a device runs them, with the state carried along each sequence.
 2. What is kept of an output is a copy: a sample's whole outputs are let go before the next one, but for golden ones.
 3. The source's own outputs hold no NaN: it is refused at the sample that gives one.
 4. What judging takes of a candidate that is many calls of the metric is made beside its outputs, by whoever runs it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np

from converters.data.datasets import Datasets, spread
from converters.data.halves import Half
from converters.judge import snr
from converters.judge.accuracy import resampled
from converters.judge.bounds import Own
from converters.source.project import Project
from converters.source.source import Source
from converters.work.findings import Evaluated
from converters.work.judging import Judging
from converters.work.watched import Watched, looked_at
from edgekit import rows
from edgekit.engines import Model
from edgekit.errors import EdgeKitError, SourceError
from edgekit.rowset import RowSet
from edgekit.samples import Samples, is_ragged, stacked
from edgekit.selftest import iter_samples
from edgekit.tensors import Array


@dataclass
class _Kept:
    """What is kept of a model's outputs on `count` samples, one after the other: of those whose number is `wanted` all of
    them, and what the judges of outputs keep only where `is_judged`.
    """

    judging: Judging
    sets: tuple[RowSet, ...]
    count: int
    wanted: frozenset[int] = frozenset()
    is_judged: bool = True
    is_watched: bool = False
    digest: dict[str, list[Array]] = field(default_factory=dict)
    outputs: dict[str, list[Array]] = field(default_factory=dict)
    whole: list[dict[str, Array]] = field(default_factory=list)
    watched: dict[str, Watched] = field(default_factory=dict)

    @cached_property
    def _looked_at(self) -> frozenset[int]:
        return frozenset(looked_at(self.count) if self.is_watched else ())

    @cached_property
    def _measured(self) -> frozenset[int]:
        return frozenset(spread(np.arange(self.count), snr.SAMPLES).tolist())

    def add(self, index: int, made: dict[str, Array]) -> None:
        if index in self.wanted:
            self.whole.append(made)
        if index in self._looked_at:
            for name, array in rows.bare(self.sets, made).items():
                self.watched.setdefault(name, Watched()).add(array)
        one = {name: array[None] for name, array in made.items()}
        if self.is_judged:
            for name, array in self.judging.kept(one, with_entries=index in self._measured).items():
                self.outputs.setdefault(name, []).append(np.array(array[0]))
        for name, array in self.judging.metric.digest(one).items():
            # A copy: a view would keep the whole output alive.
            self.digest.setdefault(name, []).append(np.array(array[0]))


@dataclass(frozen=True)
class Running:
    """Each method runs a loaded model. Raises: EngineError."""

    project: Project
    source: Source
    data: Datasets
    judging: Judging

    def on_judged_half(self, model: Model) -> Evaluated:
        """With the golden samples' whole outputs."""
        return self._half(model, self.data.halves[1], self._of_judged(), is_coarse=False)

    def on_few(self, model: Model) -> Evaluated:
        """On a few samples of the judged half, none of them shifted; with the whole outputs of the golden ones among them."""
        return self._half(model, Half(self.data.judged.take(self.data.few)), self._of_few())

    def source_on_judged_half(self) -> tuple[Evaluated, Evaluated]:
        """What the source gives there, and on the few, each sample run once."""
        half, few = self.data.halves[1], self._of_few()
        places = {at: index for index, at in enumerate(self.data.few.tolist())}
        whole = self._of_judged()
        for index, made in self._runs(self.source.reference, half.samples):
            whole.add(index, made)
            if index in places:
                few.add(places[index], made)
        shifted = None if half.shifted is None else self.digest(self.source.reference, half.shifted)
        return self._evaluated(whole, shifted), self._evaluated(few, None)

    def on_search_half(self, model: Model) -> Evaluated:
        half = self.data.halves[0]
        return self._half(model, half, self._kept(len(half.samples)))

    def digest(self, model: Model, samples: Samples) -> dict[str, Array]:
        """The metric's digest of every sample."""
        kept = self._kept(len(samples), is_judged=False)
        for index, made in self._runs(model, samples):
            kept.add(index, made)
        return self._stacked(kept.digest)

    def _of_judged(self) -> _Kept:
        golden = frozenset(self.data.golden.tolist())
        return self._kept(len(self.data.judged), golden, is_watched=True)

    def _of_few(self) -> _Kept:
        few = self.data.few
        return self._kept(len(few), frozenset(np.flatnonzero(np.isin(few, self.data.golden)).tolist()))

    def _kept(
        self,
        count: int,
        wanted: frozenset[int] = frozenset(),
        *,
        is_judged: bool = True,
        is_watched: bool = False,
    ) -> _Kept:
        return _Kept(self.judging, self.source.sets, count, wanted, is_judged, is_watched)

    def _runs(self, model: Model, samples: Samples) -> Iterator[tuple[int, dict[str, Array]]]:
        """Every sample's number and outputs. What judging has seen of the source already is not run again."""
        known: Sequence[dict[str, Array]] = ()
        is_source = model is self.source.reference
        if is_source and samples is self.data.halves[0].samples:
            known = self.judging.take_seen()
        pieces = (self.source.admitted, self.source.state, self.project.preprocess)

        def run() -> Iterator[dict[str, Array]]:
            if len(known) < len(samples):
                rest = samples.take(slice(len(known), None)) if known else samples
                yield from (outputs for outputs, _ in iter_samples(model.run, *pieces, rest))

        for index, outputs in enumerate(chain(known, run())):
            if is_source:
                self.data.refuse_nan(samples, index, outputs)
            yield index, outputs

    def _half(self, model: Model, half: Half, kept: _Kept, *, is_coarse: bool = True) -> Evaluated:
        for index, made in self._runs(model, half.samples):
            kept.add(index, made)
        shifted = None if half.shifted is None else self.digest(model, half.shifted)
        found = self._evaluated(kept, shifted)
        if model is self.source.reference:
            return found
        drawn = self._drawn(half.samples, found.digest, is_coarse=is_coarse)
        return replace(found, drawn=(drawn, self._drawn(half.shifted, shifted, is_coarse=True)))

    def _evaluated(self, kept: _Kept, shifted: dict[str, Array] | None) -> Evaluated:
        golden: dict[str, list[Array]] = {}
        for made in kept.whole:
            for name, array in made.items():
                golden.setdefault(name, []).append(array)
        outputs = {name: stacked(arrays) for name, arrays in kept.outputs.items()}
        return Evaluated(
            self._stacked(kept.digest), shifted, self._stacked(golden), outputs, watched=kept.watched
        )

    def _drawn(
        self, samples: Samples | None, digest: dict[str, Array] | None, *, is_coarse: bool
    ) -> Own | None:
        """None where draws cost nothing, or cannot be made: whoever compares meets the same, and says so."""
        metric = self.judging.metric
        if metric.parts is not None or samples is None or digest is None or samples.labels is None:
            return None
        try:
            return resampled(
                metric,
                digest,
                np.asarray(samples.labels),
                sequence=samples.sequence,
                seed=self.project.file.data.seed,
                is_coarse=is_coarse,
            )
        except EdgeKitError:
            return None

    def _stacked(self, parts: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
        """Raises: SourceError where an output's shape follows the data, not a bucket."""
        made = {name: stacked(arrays) for name, arrays in parts.items()}
        if self.source.buckets is None and any(map(is_ragged, made.values())):
            raise SourceError(
                "an output's shape changes from sample to sample, which the model did not show before; say of that output how"
                " many rows there are at most: [outputs.NAME] rows = 100"
            )
        return made
