"""From a chosen candidate to the bundle file and its evidence.

The self-test's tolerance. The artifact runs again in other ways that the same bytes may meet on a device: one thread,
graph optimizations or the delegate off, and for OpenVINO a CPU limited to AVX2. The tolerance of an output is
`MARGIN` times the largest difference seen, and at least a share of the output's largest value that depends on the
precision: kernels of another architecture round intermediate results differently, by one step of an integer or the
last bits of a float, in ways that no run here shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import UNSET, structs

from converters.judge import metrics
from converters.recipes.recipes import Plan
from converters.rounds.candidates import Candidate, Host, seen_alone
from converters.source.quiet import first_line
from converters.work import golden
from converters.work.workbench import Workbench
from edgekit import bundle, manifest
from edgekit.errors import ToolFailedError
from edgekit.gaps import largest, largest_gap
from edgekit.manifest import (
    Buckets,
    Contract,
    EngineSpec,
    FileEntry,
    Histogram,
    Manifest,
    Option,
    Reference,
    SelfTest,
)
from edgekit.profile import Profile
from edgekit.samples import Samples, flat, stacked
from edgekit.selftest import agreement, recorded_answers
from edgekit.tensors import Array

MARGIN = 4.0
# Golden samples that run in the other ways too, and the rest of a sequence begun: plain kernels are slow.
OTHER_WAYS_SAMPLES = 16
# Share of an output's largest value below which a difference is another CPU's rounding.
_FLOORS: Mapping[str, float] = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01, "int8": 0.02}
# An accelerator that is not here computes with other widths inside.
_ACCELERATOR_FLOOR = 0.05
# Golden samples whose answer may differ on a device from what the build saw.
AGREEMENT_MARGIN_SAMPLES = 2
HISTOGRAM_BINS = 10
# Values that a histogram is drawn from, at most.
HISTOGRAM_VALUES = 100_000


@dataclass(frozen=True)
class Written:
    path: Path
    sha256: str
    size_bytes: int


def write(
    bench: Workbench, profile: Profile, contract: Contract, item: Candidate, host: Host, *, folder: Path
) -> Written:
    """Write the candidate's bundle into `folder`. Raises: BundleError, ToolFailedError."""
    artifact, plan = item.artifact, item.plan
    assert artifact is not None
    assert item.evaluated is not None
    chosen = bench.data.golden
    files: dict[str, bytes | Path] = {f"model/{path.name}": path for path in artifact.files}
    ours, source = item.evaluated.golden, bench.reference.golden
    inputs = bench.data.judged.take(chosen)
    files |= golden.files(bench, item.evaluated)
    seen = agreement(recorded_answers(metrics.first(ours)), recorded_answers(metrics.first(source)))
    test = SelfTest(
        inputs=golden.INPUTS,
        source=golden.SOURCE,
        artifact=golden.ARTIFACT,
        samples=len(chosen),
        tolerance=_tolerances(bench, item, host, ours, inputs),
        agreement=max(0.0, round(seen - AGREEMENT_MARGIN_SAMPLES / len(chosen), 6)),
    )
    buckets = artifact.buckets(bench.source.buckets)
    entries: list[FileEntry] = [bundle.file_entry(path, data) for path, data in sorted(files.items())]
    content = Manifest(
        format=manifest.PLAIN_FORMAT if buckets is None else manifest.FORMAT,
        name=bench.project.model.name,
        version=bench.project.model.version,
        profile=profile.name,
        engine=EngineSpec(
            plan.recipe.engine, plan.versions, f"model/{artifact.model}", plan.options, plan.threads
        ),
        inputs=artifact.bound(bench.source.inputs),
        outputs=artifact.bound(bench.source.outputs),
        recipe=plan.name,
        source_sha256=bench.source.sha256,
        files=tuple(entries),
        selftest=test,
        state=bench.source.state,
        preprocess=bench.project.preprocess,
        postprocess=bench.project.postprocess,
        contract=contract,
        tools=bench.tools(plan),
        reference=_reference(bench, item),
        buckets=UNSET if buckets is None else _shipped(buckets),
    )
    target = folder / content.filename
    digest = bundle.write(target, content, files)
    return Written(target, digest, target.stat().st_size)


def _shipped(buckets: Buckets) -> Buckets:
    """With the files where the bundle has them."""
    return structs.replace(buckets, models=tuple(f"model/{name}" for name in buckets.models))


# Other ways to run the same bytes: options that replace the judged ones, and environment of the process.
_OTHER_WAYS: Mapping[str, tuple[tuple[dict[str, Option], dict[str, str]], ...]] = {
    "onnxruntime": (
        ({"graph_optimization_level": "disabled"}, {}),
        ({"graph_optimization_level": "basic"}, {}),
    ),
    "openvino": (({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}), ({}, {})),
    "litert": (({"delegate": "none"}, {}), ({}, {})),
}


def _tolerances(
    bench: Workbench, item: Candidate, host: Host, ours: Mapping[str, Array], inputs: Samples
) -> dict[str, float]:
    """Per output, see the module's docstring."""
    plan = item.plan
    assert item.artifact is not None
    few = next((at for at in range(OTHER_WAYS_SAMPLES, len(inputs)) if inputs.starts(at)), len(inputs))
    ready = _ready(bench, inputs.take(slice(0, few)))
    gaps = dict.fromkeys(ours, 0.0)
    for options, environment in _OTHER_WAYS[plan.recipe.engine]:
        if plan.recipe.isa and environment:
            continue  # AVX2 has no bf16: that would be another precision, not another way
        spec = EngineSpec(
            plan.recipe.engine, plan.versions, item.artifact.runs_here, {**plan.judged_options, **options}, 1
        )
        try:
            other = seen_alone(bench, item, host, environment, samples=ready, spec=spec).outputs
        except ToolFailedError as error:
            if not environment:
                raise
            # openvino 2026.4 crashes on some models (PP-OCRv6's recogniser, float too) when held to AVX2 on a CPU that
            # has more.
            told = " ".join(f"{key}={value}" for key, value in environment.items())
            bench.tell(
                f"{item.recipe} does not run with {told}, so that way does not count: {first_line(error)}"
            )
            continue
        for name, array in ours.items():
            gaps[name] = max(gaps[name], largest_gap(array[:few], other[name]))
    return {name: _tolerance(plan, ours[name], gap) for name, gap in gaps.items()}


def _tolerance(plan: Plan, output: Array, gap: float) -> float:
    floor = _FLOORS[plan.recipe.precision]
    if plan.is_accelerated:
        floor = max(floor, _ACCELERATOR_FLOOR)
    scale = largest(output)
    # Three digits: the value states a magnitude, and the last bits of a maximum would change a digest.
    return float(f"{max(MARGIN * gap, floor * scale, 1e-6):.3g}")


def _ready(bench: Workbench, inputs: Samples) -> Samples:
    """The golden inputs after pre-processing, for a process that runs the engine alone."""
    rows = [bench.data.ready(inputs.sample(index)) for index in range(len(inputs))]
    return Samples({name: stacked([row[name] for row in rows]) for name in rows[0]}, sequence=inputs.sequence)


def _reference(bench: Workbench, item: Candidate) -> Reference:
    """Histograms of what the model meets and gives on the evaluation data, for drift."""
    assert item.evaluated is not None
    count = len(bench.data.judged)
    picked = np.unique(np.linspace(0, count - 1, min(count, 256)).astype(np.int64))
    rows = [bench.data.ready(bench.data.judged.sample(int(index))) for index in picked]
    inputs = {
        name: stacked([row[name] for row in rows]) for name in rows[0] if name not in bench.source.states
    }
    states = {pair.output for pair in bench.source.state}
    outputs = {name: array for name, array in item.evaluated.golden.items() if name not in states}
    return Reference(
        inputs={name: _histogram(array) for name, array in inputs.items()},
        outputs={name: _histogram(array) for name, array in outputs.items()},
    )


def _histogram(values: Array) -> Histogram:
    """Up to ten bins of about equal counts, of the finite values: a mask's infinities tell nothing of drift."""
    row = flat(values).astype(np.float64)
    row = row[np.isfinite(row)]
    if not row.size:
        return Histogram([-0.5, 0.5], [0])
    row = row[:: max(1, len(row) // HISTOGRAM_VALUES)]
    rounded = [float(f"{edge:.6g}") for edge in np.quantile(row, np.linspace(0, 1, HISTOGRAM_BINS + 1))]
    edges = sorted(set(rounded))
    if len(edges) < 2:
        edges = [edges[0] - 0.5, edges[0] + 0.5]
    # Ends are open: what lies outside counts in the first or last bin.
    counts, _ = np.histogram(np.clip(row, edges[0], edges[-1]), bins=np.asarray(edges))
    return Histogram(edges, [int(count) for count in counts])
