"""The workbench of one build: the opened source, its data, and everything already converted or evaluated.

Always true
 1. What two profiles share (an artifact, its outputs on the evaluation data) is made once.
 2. Nothing outside the given folder and the cache is written.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx
from msgspec import structs

from converters import backends
from converters.backends import Prepared
from converters.backends.artifact import Artifact, copied
from converters.backends.buckets import gathered
from converters.backends.litert import vela
from converters.data.datasets import Datasets, spread
from converters.data.halves import Half
from converters.graph import canonical
from converters.graph.canonical import Canonical
from converters.judge import accuracy, outputs, padding, sense, snr
from converters.judge.kinds import OutputJudge
from converters.judge.metrics import Metric, first
from converters.judge.outputs import OutputScore
from converters.judge.score import Mark, Score, Yardstick, score
from converters.keep import own_code
from converters.keep.artifacts import Cache, key
from converters.quantize.sensitivity import LayerError
from converters.recipes import facts
from converters.recipes.recipes import Plan
from converters.source import code
from converters.source.opening import open_source
from converters.source.project import Project
from converters.source.quiet import quietly
from converters.source.source import Source
from converters.source.work import Work, work
from converters.work.findings import Evaluated, Findings, once
from converters.work.forms import Forms
from converters.work.golden import Golden
from converters.work.judging import Judging
from converters.work.limit import TooLongError, ends_after
from converters.work.pool import Order, PoolUnfitError, WorkerPool
from converters.work.steps import Steps
from edgekit import __version__, engines
from edgekit.engines import Model
from edgekit.errors import DataError, ManifestError, ProjectError, SourceError
from edgekit.manifest import Contract, EngineSpec, Option
from edgekit.profile import Budgets
from edgekit.samples import Samples, is_ragged, stacked
from edgekit.selftest import iter_samples
from edgekit.tensors import Array
from edgekit.transforms import check_post_steps, check_steps

# Of an artifact, beside its files.
_KEPT = ("model", "bindings", "notes", "judged", "compiled", "models")
Tell = Callable[[str], None]
Limited = TypeVar("Limited")


@dataclass
class Workbench:
    project: Project
    gate: code.CodeGate
    cache: Cache
    folder: Path
    tell: Tell
    findings: Findings = field(default_factory=Findings)
    # Processes that make and run candidates; None does both in this one.
    pool: WorkerPool | None = None
    # The source in canonical ONNX, of each bucket if it has some, where another process has brought it into that form.
    canonical_forms: tuple[Canonical, ...] = ()
    # How its outputs are judged, likewise.
    known_judges: tuple[OutputJudge, ...] = ()
    # Seconds that one step may take where this process makes candidates itself.
    limit_s: float = float("inf")
    # What was ended at its limit.
    cut: list[str] = field(default_factory=list)
    # How far the build is, for whoever watches.
    steps: Steps = field(default_factory=Steps)

    @cached_property
    def source(self) -> Source:
        source = open_source(self.project, self.gate)
        self._check_steps(source)
        return source

    @cached_property
    def data(self) -> Datasets:
        return Datasets(self.project, self.source, self.gate)

    @cached_property
    def judging(self) -> Judging:
        return Judging(self.project, self.source, self.data, self.gate, self.known_judges)

    @property
    def metric(self) -> Metric:
        return self.judging.metric

    @property
    def prepared(self) -> Prepared:
        """What backends convert from: of a source with buckets, its largest."""
        return self.by_size[-1]

    @cached_property
    def by_size(self) -> tuple[Prepared, ...]:
        """What backends convert from, for each bucket; without any, one."""
        return Forms(
            self.source, self.data, self.cache, self.folder, self.tell, self.canonical_forms
        ).prepared()

    @property
    def canonicals(self) -> tuple[Canonical, ...]:
        """The canonical ONNX of each bucket; nothing is converted of a native source."""
        return tuple(prepared.onnx for prepared in self.by_size if prepared.onnx is not None)

    @property
    def source_parity(self) -> float:
        """How far what backends convert from is from the source."""
        return max((form.parity for form in self.canonicals), default=0.0)

    @cached_property
    def work(self) -> Work:
        """What one inference of the source takes."""
        if self.source.native is not None:
            return self.source.native.work
        return work(onnx.load(str(self.prepared.canonical.path)))

    @cached_property
    def reference(self) -> Evaluated:
        """The source's own outputs."""
        self.tell("evaluating the source")
        return self._run_all(self.source.reference)

    @cached_property
    def golden(self) -> Golden:
        """What bundles' self-tests are made from."""
        return Golden(self.source, self.data, self.reference)

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

    def contract(self, target: str, budgets: Budgets) -> Contract:
        """A target's limits; where nobody gave one, the accuracy that may be lost is the metric's default."""
        own = self.project.contract(target, budgets)
        if own.max_accuracy_drop is not None:
            return own
        return structs.replace(own, max_accuracy_drop=self._default_limit[0])

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
            return self.digest(largest, self.data.judged)

        return padding.note(self.metric, self.labels, self.reference.digest, unpadded)

    @cached_property
    def yardstick(self) -> Yardstick:
        """What the judged half is scored against."""
        return self._yardstick(self.data.halves[1], self.reference, is_searched=False)

    @cached_property
    def search_yardstick(self) -> Yardstick:
        """What the search half is scored against."""
        return self._yardstick(self.data.halves[0], self.search_reference, is_searched=True)

    @cached_property
    def search_reference(self) -> Evaluated:
        """The source's own outputs on the search half."""
        return self._run_half(self.source.reference, self.data.halves[0])

    def searched(self, artifact: Artifact, plan: Plan, threads: int, limit: float) -> Score:
        """A candidate's figures on the search half. Raises: EngineError."""
        found = self.search(artifact, plan, threads)
        kept = self.output_scores(plan, found, self.search_reference, limit)
        return score(self.search_yardstick, found.digest, found.shifted, limit, outputs=kept)

    def output_scores(
        self, plan: Plan, found: Evaluated, source: Evaluated, limit: float
    ) -> tuple[OutputScore, ...]:
        """What a candidate keeps of every output. Raises: DataError."""
        rules = self.judging.rules(limit, self.yardstick.clean.figure)
        return outputs.scores(
            rules, found.outputs, source.outputs, is_float32=plan.recipe.precision == "fp32"
        )

    def _yardstick(self, half: Half, source: Evaluated, *, is_searched: bool) -> Yardstick:
        def mark(samples: Samples, digest: Mapping[str, Array]) -> Mark:
            wanted, seed = self._wanted(samples, lambda: digest), self.project.file.data.seed
            return Mark(self.metric, samples, digest, wanted, seed, is_searched)

        shifted = mark(half.shifted, source.shifted) if half.shifted and source.shifted else None
        return Yardstick(mark(half.samples, source.digest), shifted, half.pairs)

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

    def artifact_key(self, plan: Plan) -> dict[str, object]:
        """Everything that decides the artifact's bytes."""
        return {
            "edgekit": __version__,
            "code": own_code.digest(),
            "source": self.source.sha256,
            "inputs": msgspec.to_builtins(self.source.inputs),
            "outputs": msgspec.to_builtins(self.source.outputs),
            "state": msgspec.to_builtins(self.source.state),
            "buckets": msgspec.to_builtins(self.source.buckets),
            "recipe": plan.recipe.name,
            "tuning": msgspec.to_builtins(plan.tuning),
            "constraints": msgspec.to_builtins(plan.constraints),
            "engine": facts.foreign_digest(plan.recipe.engine),
            "tools": self.tools(plan),
            "calibration": self.data.fingerprint if plan.recipe.needs_calibration else "",
            # Which way a conversion goes is decided by its parity on these.
            "feeds": self.data.feeds_fingerprint,
            "preprocess": msgspec.to_builtins(self.project.preprocess)
            if plan.recipe.needs_calibration
            else "",
        }

    def tools(self, plan: Plan) -> dict[str, str]:
        """Versions of what decides the artifact's bytes. Raises: ToolFailedError for one that is missing."""
        return {
            **canonical.tools(self.source),
            **facts.tools(plan.recipe.engine),
            **(vela.tools() if plan.constraints.vela else {}),
        }

    def together(self, orders: Sequence[Order]) -> None:
        """Make and run what is not known yet, side by side; without a pool, each is made when it is asked for."""
        missing = [order for order in orders if not self._knows(order)]
        if self.pool is None or not missing:
            return
        try:
            for order, answer in self.pool.run(missing, self._shared, self.findings):
                self.steps.made(order.plan.name)
                if isinstance(answer, Findings):
                    self.findings.update(answer)
                else:
                    self._blame(order, answer)
        except PoolUnfitError as error:
            self.tell(f"candidates are made in this process: {error}")
            self.pool.close()
            self.pool = None

    def fulfil(self, order: Order) -> None:
        """All that an order asks, into the findings; a failure becomes one of them."""
        plan, threads = order.plan, order.threads
        try:
            artifact = self.artifact(plan)
            if order.is_judged:
                self.evaluate(artifact, plan, threads)
            if order.is_searched:
                self.search(artifact, plan, threads)
            if order.is_analysed:
                self.layers(plan, artifact)
        except Exception:  # noqa: BLE001  # it is in the findings, for whoever asks
            return

    def _steps(self, order: Order) -> list[tuple[dict[str, Any], str]]:
        """Where the findings of an order will stand, in the order in which they are made."""
        name, run = self._name(order.plan), self._run_name(order.plan, order.threads)
        steps: list[tuple[bool, dict[str, Any], str]] = [
            (True, self.findings.artifacts, name),
            (order.is_judged, self.findings.evaluated, run),
            (order.is_searched, self.findings.searched, run),
            (order.is_analysed, self.findings.layers, name),
        ]
        return [(table, at) for is_asked, table, at in steps if is_asked]

    def _knows(self, order: Order) -> bool:
        found = [table.get(at) for table, at in self._steps(order)]
        return isinstance(found[0], Exception) or None not in found

    def _blame(self, order: Order, error: Exception) -> None:
        """The process that had the order died: at the first step that is not known, as far as can be told."""
        table, at = next((table, at) for table, at in self._steps(order) if at not in table)
        table[at] = error
        if isinstance(error, TooLongError):
            self.cut.append(order.plan.name)

    def _limited(self, what: str, make: Callable[[], Limited]) -> Limited:
        """Within the limit, as far as this process can end itself; a worker is ended from outside."""
        if self.pool is not None:
            return make()
        try:
            with ends_after(self.limit_s, what):
                return make()
        except TooLongError:
            self.cut.append(what)
            raise

    def _shared(self, order: Order) -> str:
        """Orders of the same name share a conversion."""
        constraints = structs.replace(order.plan.constraints, vela=None)
        return self._name(replace(order.plan, constraints=constraints))

    def _name(self, plan: Plan) -> str:
        return key(self.artifact_key(plan))

    def _run_name(self, plan: Plan, threads: int) -> str:
        return key({"artifact": self._name(plan), "options": plan.judged_options, "threads": threads})

    def artifact(self, plan: Plan) -> Artifact:
        """Convert, or take from this build or the cache.

        Raises: what the backend raised, again for every profile that asks.
        """
        parts = self.artifact_key(plan)
        name = key(parts)

        def make() -> Artifact:
            folder = self.folder / f"artifact-{name[:16]}"
            folder.mkdir()
            return self._convert(plan, parts, folder)

        return once(self.findings.artifacts, name, make)

    def layers(self, plan: Plan, artifact: Artifact) -> tuple[LayerError, ...]:
        """What each layer of an int8 artifact costs, worst first; kept between builds.

        Raises: Unsupported where the engine's tools cannot tell layers apart, ToolFailedError.
        """
        parts = {
            **self.artifact_key(plan),
            "step": "sensitivity",
            "calibration": self.data.fingerprint,
            "search": self.data.search_fingerprint,
        }

        def look() -> dict[str, object]:
            self.tell(f"looking into the layers of {plan.name}")
            backend = backends.get(plan.recipe.engine)
            found = self._limited(
                f"looking into the layers of {plan.name}",
                lambda: backend.sensitivity(self.prepared, plan, artifact),
            )
            return {"layers": msgspec.to_builtins(found)}

        def make() -> tuple[LayerError, ...]:
            return msgspec.convert(self.kept(parts, look)["layers"], tuple[LayerError, ...])

        return once(self.findings.layers, self._name(plan), make)

    def kept(self, parts: Mapping[str, object], make: Callable[[], dict[str, object]]) -> dict[str, object]:
        """A finding, made once and kept in the cache."""
        with tempfile.TemporaryDirectory(dir=self.folder) as empty:
            return self.cache.fetch(parts, Path(empty), lambda _: make())

    def load(self, artifact: Artifact, plan: Plan, options: Mapping[str, Option], threads: int) -> Model:
        """The artifact in its engine, as it is judged. Raises: EngineError."""
        spec = EngineSpec(plan.recipe.engine, plan.versions, artifact.runs_here, dict(options), threads)
        bound = artifact.bound(self.source.inputs), artifact.bound(self.source.outputs)
        # LiteRT announces its delegate on standard error.
        buckets = artifact.buckets(self.source.buckets)
        return quietly(lambda: engines.load(artifact.folder, spec, *bound, buckets=buckets))

    def evaluate(self, artifact: Artifact, plan: Plan, threads: int) -> Evaluated:
        """Outputs on the judged half. Raises: EngineError."""
        make = partial(self._ran, artifact, plan, threads, "evaluating", self._run_all)
        return once(self.findings.evaluated, self._run_name(plan, threads), make)

    def search(self, artifact: Artifact, plan: Plan, threads: int) -> Evaluated:
        """Outputs on the search half. Raises: EngineError."""

        def run(model: Model) -> Evaluated:
            return self._run_half(model, self.data.halves[0])

        make = partial(self._ran, artifact, plan, threads, "searching with", run)
        return once(self.findings.searched, self._run_name(plan, threads), make)

    def _ran(
        self, artifact: Artifact, plan: Plan, threads: int, what: str, run: Callable[[Model], Evaluated]
    ) -> Evaluated:
        self.tell(f"{what} {plan.name}")
        model = self.load(artifact, plan, plan.judged_options, threads)
        try:
            return run(model)
        finally:
            model.close()

    def _convert(self, plan: Plan, parts: Mapping[str, object], folder: Path) -> Artifact:
        def make(target: Path) -> dict[str, object]:
            artifact = self._limited(f"converting {plan.name}", lambda: self._made(plan, target))
            kept = {key: value for key, value in vars(artifact).items() if key in _KEPT}
            made: dict[str, object] = msgspec.to_builtins(kept)
            return made

        meta = self.cache.fetch(parts, folder, make)
        return msgspec.convert({**meta, "folder": folder}, Artifact)

    def _made(self, plan: Plan, target: Path) -> Artifact:
        config = plan.constraints.vela
        if config is None and self.source.native is not None:
            return copied(self.source.native, target)
        if config is None:
            self.tell(f"converting {plan.name}")
            backend = backends.get(plan.recipe.engine)
            if self.source.buckets is None:
                return backend.convert(self.prepared, plan, target)
            return gathered(
                self.source.buckets.sizes,
                lambda index, own: backend.convert(self.by_size[index], plan, own),
                target,
                backend.move_weights,
            )
        uncompiled = self.artifact(replace(plan, constraints=structs.replace(plan.constraints, vela=None)))
        self.tell(f"compiling {plan.name} for {config.accelerator}")
        return vela.compiled(uncompiled, config, target)

    def _run_all(self, model: Model) -> Evaluated:
        golden: list[dict[str, Array]] = []
        found = self._run_half(model, self.data.halves[1], golden)
        return replace(
            found, golden={name: self._stacked([row[name] for row in golden]) for name in golden[0]}
        )

    def _run_half(self, model: Model, half: Half, golden: list[dict[str, Array]] | None = None) -> Evaluated:
        kept: dict[str, list[Array]] = {}
        digest = self.digest(model, half.samples, golden, kept)
        shifted = None if half.shifted is None else self.digest(model, half.shifted)
        return Evaluated(digest, shifted, {}, {name: stacked(arrays) for name, arrays in kept.items()})

    def digest(
        self,
        model: Model,
        samples: Samples,
        golden: list[dict[str, Array]] | None = None,
        judged: dict[str, list[Array]] | None = None,
    ) -> dict[str, Array]:
        """The metric's digest of every sample, one by one; whole outputs of the golden ones go into `golden`, what the
        judges of outputs keep into `judged`.
        """
        kept = set() if golden is None else set(self.data.golden.tolist())
        measured = set(spread(np.arange(len(samples)), snr.SAMPLES).tolist())
        parts: dict[str, list[Array]] = {}
        pieces = (self.source.admitted, self.source.state, self.project.preprocess)
        for index, (made, _) in enumerate(iter_samples(model.run, *pieces, samples)):
            if model is self.source.reference:
                self.data.refuse_nan(samples, index, made)
            if golden is not None and index in kept:
                golden.append(made)
            one = {name: array[None] for name, array in made.items()}
            if judged is not None:
                for name, array in self.judging.kept(one, with_entries=index in measured).items():
                    judged.setdefault(name, []).append(np.array(array[0]))
            digest = self.metric.digest(one)
            for name, array in digest.items():
                # A copy: a view would keep the whole output alive.
                parts.setdefault(name, []).append(np.array(array[0]))
        return {name: self._stacked(arrays) for name, arrays in parts.items()}

    def _stacked(self, arrays: Sequence[Array]) -> Array:
        """Raises: SourceError where an output's shape follows the data, not a bucket."""
        made = stacked(arrays)
        if self.source.buckets is None and is_ragged(made):
            raise SourceError("an output's shape changes from sample to sample; a bundle's shapes are fixed")
        return made

    def _check_steps(self, source: Source) -> None:
        try:
            for steps in self.project.preprocess.values():
                check_steps(steps)
            check_post_steps(self.project.postprocess, source.outputs)
        except ManifestError as error:
            raise ProjectError(f"{self.project.where}: {error}") from error
