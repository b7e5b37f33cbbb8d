"""A model run over the evaluation data; of its outputs, what judging needs is kept.

Always true
 1. Samples are run one by one and in their order, as a device runs them, with the state carried along each sequence.
 2. What is kept of an output is a copy: a sample's whole outputs are let go before the next one, but for golden ones.
 3. The source's own outputs hold no NaN: it is refused at the sample that gives one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from converters.data.datasets import Datasets, spread
from converters.data.halves import Half
from converters.judge import snr
from converters.source.project import Project
from converters.source.source import Source
from converters.work.findings import Evaluated
from converters.work.judging import Judging
from converters.work.watched import Watched, looked_at
from edgekit import rows
from edgekit.engines import Model
from edgekit.errors import SourceError
from edgekit.samples import Samples, is_ragged, stacked
from edgekit.selftest import iter_samples
from edgekit.tensors import Array


@dataclass(frozen=True)
class _Whole:
    """Which samples' outputs are kept whole, and those outputs."""

    wanted: frozenset[int]
    outputs: list[dict[str, Array]] = field(default_factory=list)


@dataclass(frozen=True)
class Running:
    """Each method runs a loaded model. Raises: EngineError."""

    project: Project
    source: Source
    data: Datasets
    judging: Judging

    def on_judged_half(self, model: Model) -> Evaluated:
        """With the golden samples' whole outputs."""
        seen: dict[str, Watched] = {}
        whole = _Whole(frozenset(self.data.golden.tolist()))
        found = self._half(model, self.data.halves[1], whole, seen)
        return replace(found, golden=self._joined(whole), watched=seen)

    def on_few(self, model: Model) -> Evaluated:
        """On a few samples of the judged half, none of them shifted; with the golden samples' whole outputs."""
        few = self.data.few
        whole = _Whole(frozenset(np.searchsorted(few, self.data.golden).tolist()))
        found = self._half(model, Half(self.data.judged.take(few), None, 0), whole)
        return replace(found, golden=self._joined(whole))

    def on_search_half(self, model: Model) -> Evaluated:
        return self._half(model, self.data.halves[0])

    def digest(
        self,
        model: Model,
        samples: Samples,
        whole: "_Whole | None" = None,
        judged: dict[str, list[Array]] | None = None,
        seen: dict[str, Watched] | None = None,
    ) -> dict[str, Array]:
        """The metric's digest of every sample; whole outputs of some go into `whole`, what the judges of outputs keep
        into `judged`, and what is watched for drift into `seen`.
        """
        watched = set() if seen is None else set(looked_at(len(samples)))
        measured = set(spread(np.arange(len(samples)), snr.SAMPLES).tolist())
        parts: dict[str, list[Array]] = {}
        pieces = (self.source.admitted, self.source.state, self.project.preprocess)
        for index, (made, _) in enumerate(iter_samples(model.run, *pieces, samples)):
            if model is self.source.reference:
                self.data.refuse_nan(samples, index, made)
            if whole is not None and index in whole.wanted:
                whole.outputs.append(made)
            if seen is not None and index in watched:
                for name, array in rows.bare(self.source.sets, made).items():
                    seen.setdefault(name, Watched()).add(array)
            one = {name: array[None] for name, array in made.items()}
            if judged is not None:
                for name, array in self.judging.kept(one, with_entries=index in measured).items():
                    judged.setdefault(name, []).append(np.array(array[0]))
            digest = self.judging.metric.digest(one)
            for name, array in digest.items():
                # A copy: a view would keep the whole output alive.
                parts.setdefault(name, []).append(np.array(array[0]))
        return {name: self._stacked(arrays) for name, arrays in parts.items()}

    def _half(
        self,
        model: Model,
        half: Half,
        whole: "_Whole | None" = None,
        seen: dict[str, Watched] | None = None,
    ) -> Evaluated:
        kept: dict[str, list[Array]] = {}
        digest = self.digest(model, half.samples, whole, kept, seen)
        shifted = None if half.shifted is None else self.digest(model, half.shifted)
        return Evaluated(digest, shifted, {}, {name: stacked(arrays) for name, arrays in kept.items()})

    def _joined(self, whole: "_Whole") -> dict[str, Array]:
        return {name: self._stacked([row[name] for row in whole.outputs]) for name in whole.outputs[0]}

    def _stacked(self, arrays: Sequence[Array]) -> Array:
        """Raises: SourceError where an output's shape follows the data, not a bucket."""
        made = stacked(arrays)
        if self.source.buckets is None and is_ragged(made):
            raise SourceError(
                "an output's shape changes from sample to sample, which the model did not show before; say of that output how"
                " many rows there are at most: [outputs.NAME] rows = 100"
            )
        return made
