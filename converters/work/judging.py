"""By what a build judges: the metric, and the judge of every output.

Always true
 1. The judges are told from the source's own outputs on the search half, once; every process judges by the same.
 2. An output that is fed back as state is judged by what comes of it in the others, over whole sequences.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from converters.data.datasets import Datasets
from converters.judge import accuracy, fidelity, kinds, metrics, outputs
from converters.judge.kinds import OutputJudge
from converters.judge.metrics import Metric
from converters.judge.outputs import Rule, Wish
from converters.judge.text import NO_ALPHABET, Alphabet, read_alphabet
from converters.source import code
from converters.source.project import Project
from converters.source.source import Source
from edgekit.errors import ProjectError
from edgekit.samples import stacked
from edgekit.selftest import iter_samples
from edgekit.tensors import Array

Made = TypeVar("Made")
# Samples that tell what outputs hold, as far as they take no more memory than this.
SAMPLES, BYTES = 64, 256_000_000
# The metric that compares with the source by what the first output holds.
BY_KIND = "agreement"


@dataclass
class Judging:
    """`known` are judges that another process has told."""

    project: Project
    source: Source
    data: Datasets
    gate: code.CodeGate
    known: tuple[OutputJudge, ...] = ()
    # The source's outputs on the first samples of the search half, until somebody takes them.
    _first: list[dict[str, Array]] = field(default_factory=list)

    @cached_property
    def metric(self) -> Metric:
        """Raises: ProjectError."""
        name = self.project.file.data.metric
        if code.is_reference(name):
            return metrics.users(name, code.load(name, self.project.folder, "the metric", self.gate))
        has_labels = self.data.evaluation.labels is not None
        if name == BY_KIND or not (name or has_labels):
            return fidelity.as_metric(self.judges[0])
        metric = metrics.built_in(name or "top1", self._alphabet)
        return metric if has_labels else self._located(lambda: metrics.against_source(metric))

    @property
    def metric_note(self) -> str:
        """Where what was asked for says nothing of such an output; empty otherwise."""
        if self.project.file.data.metric != BY_KIND or self.metric.name == BY_KIND:
            return ""
        first = self.judges[0]
        return (
            f"metric {BY_KIND} says nothing of output {first.name!r}, which holds {first.title}:"
            f" {self.metric.name} against the source is used ([outputs.{first.outputs[0]}] kind sets another kind)"
        )

    @cached_property
    def judges(self) -> tuple[OutputJudge, ...]:
        """How each output is judged. Raises: ProjectError for a kind that the user set and that cannot be."""
        if self.known:
            return self.known
        given = {name: wish.kind for name, wish in self.project.file.outputs.items() if wish.kind is not None}
        return self._located(lambda: kinds.infer(self._seen(), given, self.source.sets))

    def rules(self, limit: float, source_figure: float) -> tuple[Rule, ...]:
        """What is asked of each output where the metric, of which the source has this figure, may lose so much.

        Raises: ProjectError.
        """
        wishes = self.project.file.outputs
        known = [name for judge in self.judges for name in judge.outputs]
        strange = sorted(set(wishes) - set(known))
        if strange:
            raise ProjectError(
                f"{self.project.where}: outputs.{strange[0]}: no output of that name is judged;"
                f" there are {', '.join(known)}"
            )
        return outputs.rules(
            self.judges,
            self.metric.name,
            self.metric.seen([spec.name for spec in self.source.outputs]),
            limit=limit if accuracy.is_share(self.metric, source_figure) else accuracy.DEFAULT_DROP,
            by_labels=self.metric.by_labels,
            wishes={name: Wish(wish.kind, wish.max_loss, wish.min_snr_db) for name, wish in wishes.items()},
        )

    def kept(self, sample: dict[str, Array], *, with_entries: bool) -> dict[str, Array]:
        """What the judges keep of one sample's outputs, each (1, *shape)."""
        found: dict[str, Array] = {}
        for judge in self.judges:
            found |= fidelity.digest(judge, sample, with_entries=with_entries)
        return found

    def take_seen(self) -> Sequence[dict[str, Array]]:
        """The source's outputs on the first samples of the search half, as far as they were looked at, once: they may be
        large. Of a source that keeps state none, since it would have to go on from there.
        """
        found = [] if self.source.state else self._first
        self._first = []
        return found

    def _seen(self) -> dict[str, Array]:
        """The source's own outputs on a few samples of the search half, (N, *shape), states left out."""
        states = {pair.output for pair in self.source.state}
        pieces = (self.source.admitted, self.source.state, self.project.preprocess)
        samples = self.data.halves[0].samples
        seen: dict[str, list[Array]] = {}
        held = 0
        runs: Iterable[tuple[dict[str, Array], float]] = iter_samples(
            self.source.reference.run, *pieces, samples
        )
        for count, (made, _) in enumerate(runs, 1):
            found = {name: np.array(array) for name, array in made.items()}
            self._first.append(found)
            for name, array in found.items():
                if name not in states:
                    seen.setdefault(name, []).append(array)
                    held += array.nbytes
            if count >= SAMPLES or (count > 1 and held > BYTES):
                break
        return {name: stacked(arrays) for name, arrays in seen.items()}

    @property
    def classes(self) -> int | None:
        """How many classes the first output tells apart; None where it holds something else."""
        judge = self.judges[0]
        if judge.kind not in ("scores", "map"):
            return None
        shape = next(spec.shape for spec in self.source.outputs if spec.name == judge.outputs[0])
        return shape[judge.axis]

    @property
    def _alphabet(self) -> Alphabet:
        path = self.project.file.data.alphabet
        if path:
            return read_alphabet(self.project.folder / path)
        # What the file itself says its classes write.
        return Alphabet(self.source.labels) if self.source.labels else NO_ALPHABET

    def _located(self, make: Callable[[], Made]) -> Made:
        """With the project file's name before what is wrong."""
        try:
            return make()
        except ProjectError as error:
            raise ProjectError(f"{self.project.where}: {error}") from error
