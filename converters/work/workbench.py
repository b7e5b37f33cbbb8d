"""The workbench of one build: the opened source, its data, and everything already converted or evaluated.

Always true
 1. What two profiles share (an artifact, its outputs on the evaluation data) is made once.
 2. Nothing outside the given folder and the cache is written.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

import msgspec
import onnx
from msgspec import structs

from converters import backends
from converters.backends import Prepared
from converters.backends.artifact import Artifact, copied
from converters.backends.buckets import gathered
from converters.backends.litert import vela
from converters.data.datasets import Datasets
from converters.graph.canonical import Canonical
from converters.judge.kinds import OutputJudge
from converters.judge.metrics import Metric
from converters.keep.artifacts import Cache, key
from converters.quantize.sensitivity import LayerError
from converters.recipes import facts
from converters.recipes.recipe import AS_IS
from converters.recipes.recipes import Plan
from converters.source import code
from converters.source.opening import open_source
from converters.source.project import Project
from converters.source.source import Source
from converters.source.work import Work, work
from converters.work import lengths
from converters.work.findings import Evaluated, Findings, once
from converters.work.forms import Forms
from converters.work.golden import Golden
from converters.work.guarding import Guarding
from converters.work.judging import Judging
from converters.work.keys import Keys
from converters.work.limit import TooLongError, ends_after
from converters.work.orders import Ledger, Order
from converters.work.pool import PoolUnfitError, WorkerPool
from converters.work.running import Running
from converters.work.spent import AHEAD, HERE, IDLE, Stopwatch
from converters.work.standard import Standard
from converters.work.steps import Steps
from edgekit import engines, interrupt
from edgekit.engines import Model
from edgekit.errors import ManifestError, ProjectError
from edgekit.manifest import EngineSpec, Option
from edgekit.quiet import quietly
from edgekit.rows import FixedModel
from edgekit.rowset import RowSet
from edgekit.transforms import check_post_steps, check_steps

# Of an artifact, beside its files.
_KEPT = ("model", "bindings", "notes", "judged", "compiled", "models", "options")
# In the build's folder.
SPOOL = "calibration"
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
    # Its outputs whose length follows from the data, likewise.
    known_sets: tuple[RowSet, ...] | None = None
    # The calibration samples of the user's code, likewise (`data.spool`).
    spool: Path | None = None
    # How its outputs are judged, likewise.
    known_judges: tuple[OutputJudge, ...] = ()
    # Whether this is one of several processes that run models at a time.
    is_beside: bool = False
    # Seconds that one step may take where this process makes candidates itself.
    limit_s: float = float("inf")
    # What was ended at its limit.
    cut: list[str] = field(default_factory=list)
    # How far the build is, for whoever watches.
    steps: Steps = field(default_factory=Steps)
    # Where its time goes.
    spent: Stopwatch = field(default_factory=Stopwatch)
    # Models that are not to be loaded a second time, by plan; None where nobody asked for that.
    _kept_loaded: dict[str, Model] | None = None

    @property
    def source(self) -> Source:
        return self._opened[0]

    @property
    def data(self) -> Datasets:
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Source, Datasets]:
        source = open_source(self.project, self.gate)
        self._check_steps(source)
        data = Datasets(self.project, source, self.gate, self.spool or self.folder / SPOOL)
        data.source = lengths.settled(self.project, source, data, self.known_sets)
        return data.source, data

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
        told = self.source.native or self.source.quantized
        if told is not None:
            return told.work
        return work(onnx.load(str(self.prepared.canonical.path), load_external_data=False))

    @cached_property
    def guarding(self) -> Guarding:
        return Guarding(self.project, self.source, self.data)

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.project, self.source, self.data)

    @cached_property
    def running(self) -> Running:
        return Running(self.project, self.source, self.data, self.judging)

    @cached_property
    def standard(self) -> Standard:
        return Standard(self.project, self.source, self.data, self.judging, self.running)

    @cached_property
    def golden(self) -> Golden:
        """What bundles' self-tests are made from."""
        return Golden(self.source, self.data, self.standard.reference)

    def together(self, orders: Sequence[Order]) -> None:
        """Make and run what is not known yet, side by side; without a pool, each is made when it is asked for."""
        ledger = Ledger(self.findings, self.keys)
        missing = list(filter(None, map(ledger.rest, orders)))
        if self.pool is None or not missing:
            return
        self.spent.does(HERE, IDLE)
        try:
            for order, answer in self.pool.run(missing, ledger.shared, self.findings):
                self.steps.made(order.plan.name)
                if isinstance(answer, Findings):
                    self.findings.update(answer)
                    continue
                ledger.blame(order, answer)
                if isinstance(answer, TooLongError):
                    self.cut.append(order.plan.name)
        except PoolUnfitError as error:
            self.tell(f"candidates are made in this process: {error}")
            self.pool.close()
            self.pool = None

    @contextmanager
    def beside(self, look: Callable[[], None]) -> Iterator[None]:
        """While workers are busy, this process runs the source for what `look` asks of it; without workers it does so first.

        Raises: what `look` raises, as soon as it does.
        """
        if self.pool is None:
            look()
            yield
            return
        failed: list[Exception] = []

        def run() -> None:
            self.spent.does(AHEAD, "evaluating the source")
            try:
                look()
            except Exception as error:  # noqa: BLE001  # it is raised below
                failed.append(error)
            self.spent.does(AHEAD, IDLE)

        def check() -> None:
            interrupt.check()
            if failed:
                raise failed[0]

        # Nobody who interrupts the build waits for it.
        thread = Thread(target=run, daemon=True)
        thread.start()
        pool, self.pool.check = self.pool, check
        try:
            yield
        finally:
            pool.check = interrupt.check
        thread.join()
        check()

    def fulfil(self, order: Order) -> None:
        """All that an order asks, into the findings; a failure becomes one of them."""
        plan, threads = order.plan, order.threads
        with suppress(Exception), self._loaded_once():
            artifact = self.artifact(plan)
            if order.is_glimpsed:
                self.glimpse(artifact, plan, threads)
            if order.is_judged:
                self.evaluate(artifact, plan, threads)
            if order.is_searched:
                self.search(artifact, plan, threads)
            if order.is_analysed:
                self.layers(plan, artifact)

    @contextmanager
    def _loaded_once(self) -> Iterator[None]:
        """What is evaluated in here is loaded for the first time only: compiling takes OpenVINO seconds."""
        self._kept_loaded = {}
        try:
            yield
        finally:
            for model in self._kept_loaded.values():
                model.close()
            self._kept_loaded = None

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

    def artifact(self, plan: Plan) -> Artifact:
        """Convert, or take from this build or the cache.

        Raises: what the backend raised, again for every profile that asks.
        """
        parts = self.keys.parts(plan)
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
            **self.keys.parts(plan),
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

        return once(self.findings.layers, self.keys.artifact(plan), make)

    def kept(self, parts: Mapping[str, object], make: Callable[[], dict[str, object]]) -> dict[str, object]:
        """A finding, made once and kept in the cache."""
        with tempfile.TemporaryDirectory(dir=self.folder) as empty:
            return self.cache.fetch(parts, Path(empty), lambda _: make())

    def load(self, artifact: Artifact, plan: Plan, options: Mapping[str, Option], threads: int) -> Model:
        """The artifact in its engine, as it is judged. Raises: EngineError."""
        beside = facts.of(plan.recipe.engine).beside if self.is_beside else {}
        asked = {**options, **artifact.options, **beside}
        spec = EngineSpec(plan.recipe.engine, plan.versions, artifact.runs_here, asked, threads)
        bound = artifact.bound(self.source.inputs), artifact.bound(self.source.outputs, are_outputs=True)
        # LiteRT announces its delegate on standard error.
        buckets = artifact.buckets(self.source.buckets)
        model = quietly(lambda: engines.load(artifact.folder, spec, *bound, buckets=buckets))
        return FixedModel(model, self.source.sets) if self.source.sets else model

    def evaluate(self, artifact: Artifact, plan: Plan, threads: int) -> Evaluated:
        """Outputs on the judged half. Raises: EngineError."""
        make = partial(self._ran, artifact, plan, threads, "evaluating", self.running.on_judged_half)
        return once(self.findings.evaluated, self.keys.run(plan, threads), make)

    def glimpse(self, artifact: Artifact, plan: Plan, threads: int) -> Evaluated:
        """Outputs on a few samples of the judged half. Raises: EngineError."""
        make = partial(self._ran, artifact, plan, threads, "evaluating a little", self.running.on_few)
        return once(self.findings.glimpsed, self.keys.run(plan, threads), make)

    def search(self, artifact: Artifact, plan: Plan, threads: int) -> Evaluated:
        """Outputs on the search half. Raises: EngineError."""
        make = partial(self._ran, artifact, plan, threads, "searching with", self.running.on_search_half)
        return once(self.findings.searched, self.keys.run(plan, threads), make)

    def _ran(
        self, artifact: Artifact, plan: Plan, threads: int, what: str, run: Callable[[Model], Evaluated]
    ) -> Evaluated:
        if self._kept_loaded is None:
            with self._loaded_once():
                return self._ran(artifact, plan, threads, what, run)
        self.tell(f"{what} {plan.name}")
        at = self.keys.run(plan, threads)
        if at not in self._kept_loaded:
            self._kept_loaded[at] = self.load(artifact, plan, plan.judged_options, threads)
        return run(self._kept_loaded[at])

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
        native = self.source.native
        if config is None and native is not None and plan.recipe.scheme == AS_IS:
            return copied(native, target)
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

    def _check_steps(self, source: Source) -> None:
        try:
            for steps in self.project.preprocess.values():
                check_steps(steps)
            check_post_steps(self.project.postprocess, source.outputs)
        except ManifestError as error:
            raise ProjectError(f"{self.project.where}: {error}") from error
