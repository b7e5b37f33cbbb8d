"""What a build's candidates are held against: the source's own outputs on either half, and the labels.

Always true
 1. The source is run once over each half, when it is first asked for: every sample once, whatever is judged on it.
 2. On either half, source and candidate are scored by the same metric against the same answers: labels, or the source's
    own outputs where the metric takes none.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec import structs

from converters.data.datasets import Datasets
from converters.data.halves import Half
from converters.judge import accuracy, outputs, padding, sense
from converters.judge.metrics import Metric, first
from converters.judge.outputs import OutputScore
from converters.judge.score import Mark, Score, Yardstick, score
from converters.recipes.recipes import Plan
from converters.source.project import Project
from converters.source.source import Source
from converters.work.findings import Evaluated
from converters.work.judging import Judging
from converters.work.running import Running
from edgekit.errors import DataError, ProjectError
from edgekit.manifest import Contract
from edgekit.profile import Budgets
from edgekit.samples import Samples
from edgekit.tensors import Array


@dataclass
class Standard:
    project: Project
    source: Source
    data: Datasets
    judging: Judging
    running: Running

    @property
    def metric(self) -> Metric:
        return self.judging.metric

    @property
    def reference(self) -> Evaluated:
        """The source's own outputs on the judged half."""
        return self._references[0]

    @property
    def few_reference(self) -> Evaluated:
        """The source's own outputs on a few samples of the judged half."""
        return self._references[1]

    @cached_property
    def _references(self) -> tuple[Evaluated, Evaluated]:
        return self.running.source_on_judged_half()

    @cached_property
    def search_reference(self) -> Evaluated:
        """The source's own outputs on the search half."""
        return self.running.on_search_half(self.source.reference)

    @property
    def labels(self) -> Array:
        """What the judged outputs are scored against: labels, or the source's answers."""
        return self._wanted(self.data.judged, lambda: self.reference.digest)

    def check_labels(self) -> None:
        """Raises: DataError where the source itself can make nothing of the labels."""
        found = sense.objection(
            self.metric,
            self.reference.digest,
            self.labels,
            self.data.judged.sequence,
            classes=self.judging.classes,
        )
        if found:
            raise DataError(f"{self.data.evaluated_from}: {found}")

    def check_has_labels(self) -> None:
        """Raises: ProjectError where the metric needs labels and the judged samples have none."""
        if self.metric.by_labels:
            self._wanted(self.data.judged, dict)

    def asked(self, target: str, budgets: Budgets) -> Contract:
        """A target's limits as far as the user gave them.

        Raises: ProjectError for a limit of groups where the samples have none.
        """
        own = self.project.contract(target, budgets)
        if own.max_drop_per_slice is not None and self.data.evaluation.slices is None:
            raise ProjectError(
                f"{self.project.where}: max_drop_per_slice needs the group of each evaluation sample: an array 'slices' in"
                f" the .npz, or [data] slices = 'file.py:function' ({self.data.evaluated_from} names none)"
            )
        return own

    def contract(self, asked: Contract) -> Contract:
        """Where nobody gave one, the accuracy that may be lost is the metric's default."""
        if asked.max_accuracy_drop is not None:
            return asked
        return structs.replace(asked, max_accuracy_drop=self._default_limit[0])

    @property
    def default_note(self) -> str:
        return self._default_limit[1]

    @cached_property
    def _default_limit(self) -> tuple[float, str]:
        guess = (
            sense.best_guess(self.metric, self.reference.digest, self.labels)
            if self.metric.by_labels or self.metric.name == "rmse"
            else None
        )
        return accuracy.default_drop(self.metric, self.yardstick.clean.figure, guess.figure if guess else 0.0)

    @cached_property
    def padding_note(self) -> str:
        """Empty without buckets or labels: answers of other shapes cannot be compared."""
        if self.source.buckets is None or not self.metric.by_labels:
            return ""
        largest = self.source.by_size[-1].reference

        def unpadded() -> Mapping[str, Array]:
            return self.running.digest(largest, self.data.judged)

        return padding.note(self.metric, self.labels, self.reference.digest, unpadded)

    @cached_property
    def yardstick(self) -> Yardstick:
        """What the judged half is scored against."""
        return self._yardstick(self.data.halves[1], self.reference, is_coarse=False)

    @cached_property
    def few_yardstick(self) -> Yardstick:
        """What a few samples of the judged half are scored against."""
        few = Half(self.data.judged.take(self.data.few))
        return self._yardstick(few, self.few_reference, is_coarse=True)

    @cached_property
    def search_yardstick(self) -> Yardstick:
        """What the search half is scored against."""
        return self._yardstick(self.data.halves[0], self.search_reference, is_coarse=True)

    def look_ahead(self) -> None:
        """All of the source's that judging candidates in full takes: its outputs on the search half, and its side of the draws
        on either. What goes wrong here goes wrong again for whoever asks.
        """
        with suppress(Exception):
            for yardstick in (self.search_yardstick, self.yardstick):
                for mark in filter(None, (yardstick.clean, yardstick.shifted)):
                    mark.draw()

    def search_score(self, plan: Plan, found: Evaluated, limit: float, slice_limit: float | None) -> Score:
        """A candidate's figures on the search half, of its outputs there. Raises: DataError."""
        kept = self.output_scores(plan, found, self.search_reference, limit)
        return score(
            self.search_yardstick,
            found.digest,
            found.shifted,
            limit,
            drawn=found.drawn,
            outputs=kept,
            slice_limit=slice_limit,
        )

    def output_scores(
        self, plan: Plan, found: Evaluated, source: Evaluated, limit: float
    ) -> tuple[OutputScore, ...]:
        """What a candidate keeps of every output. Raises: DataError."""
        rules = self.judging.rules(limit, self.yardstick.clean.figure)
        return outputs.scores(
            rules, found.outputs, source.outputs, is_float32=plan.recipe.precision == "fp32"
        )

    def _yardstick(self, half: Half, source: Evaluated, *, is_coarse: bool) -> Yardstick:
        def mark(samples: Samples, digest: Mapping[str, Array], *, is_coarse: bool) -> Mark:
            wanted, seed = self._wanted(samples, lambda: digest), self.project.file.data.seed
            return Mark(self.metric, samples, digest, wanted, seed, is_coarse)

        shifted = (
            mark(half.shifted, source.shifted, is_coarse=True) if half.shifted and source.shifted else None
        )
        return Yardstick(mark(half.samples, source.digest, is_coarse=is_coarse), shifted, half.pairs)

    def _wanted(self, samples: Samples, source: Callable[[], Mapping[str, Array]]) -> Array:
        """Raises: ProjectError where there should be labels and are none."""
        if not self.metric.by_labels:
            return first(source())
        if samples.labels is None:
            raise ProjectError(
                f"{self.project.where}: data.metric {self.metric.name!r} needs labels, and the evaluation data (or the"
                " shifted data) has none; add them, or use metric = 'agreement'"
            )
        return np.asarray(samples.labels)
