"""What a device must reproduce: a bundle's golden data, and the bounds that outputs are held to.

The artifact runs in other ways that the same bytes may meet on a device: one thread, graph optimizations or the
delegate off, and for OpenVINO a CPU limited to AVX2. The tolerance of an output is `MARGIN` times the largest difference
seen, and at least a share of the output's largest value that depends on the precision: kernels of another architecture
round intermediate results differently, by one step of an integer or the last bits of a float, in ways that no run here
shows.

The signal to noise that an output must keep against the float source allows twice the noise that was seen here in any
of these ways, and a device's own rounding beside it: `ROUNDING` of that same share. Rows of another magnitude have a level of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from msgspec import UNSET, structs

from converters.bundle import ranges
from converters.data import compact
from converters.measure.host import Host, judged_spec
from converters.recipes import facts
from converters.recipes.recipe import Way
from converters.recipes.recipes import Plan
from converters.rounds.candidates import Candidate
from converters.rounds.isolated import seen_alone
from converters.work import golden
from converters.work.golden import Shipped
from converters.work.workbench import Workbench
from edgekit import golden_rows, noise
from edgekit.errors import ToolFailedError
from edgekit.golden_rows import Again
from edgekit.manifest import EngineSpec, Floor, SelfTest, TensorSpec
from edgekit.quiet import first_line
from edgekit.samples import Samples, dump_arrays, flat, stacked
from edgekit.selftest import ANSWERS, agreed_on, is_exact, record
from edgekit.tensors import Array

MARGIN = 4.0
# Processes that run the artifact in its ways at a time.
SIDE_BY_SIDE = 2
# Golden samples that run in the other ways too, and the rest of a sequence begun: plain kernels are slow.
OTHER_WAYS_SAMPLES = 16
# An accelerator that is not here computes with other widths inside.
_ACCELERATOR_FLOOR = 0.05
# Root mean square of a device's own rounding, as a share of that: a floor is the largest of many entries.
ROUNDING = 1 / 4
NOISE = 2.0
# Share of rows that a device may find otherwise than any way here.
FOUND_AGAIN_MARGIN = 0.05
# Golden samples whose answer may differ on a device from what the build saw, of as many as there usually are at least.
AGREEMENT_MARGIN_SAMPLES, USUAL_SAMPLES = 2, 32


def made(bench: Workbench, item: Candidate, host: Host) -> tuple[SelfTest, dict[str, bytes]]:
    """A candidate's self-test and its members of the bundle by path. Raises: ToolFailedError, EngineError."""
    assert item.artifact is not None
    is_whole, given = golden.is_whole(item.plan), shipped(bench, item)
    ready = _ready(bench, given.samples)
    few = next((at for at in range(OTHER_WAYS_SAMPLES, len(ready)) if ready.starts(at)), len(ready))
    own, first = judged_spec(item.plan, item.artifact, host), ready.take(slice(0, few))
    with ThreadPoolExecutor(1 if bench.source.is_apart else SIDE_BY_SIDE) as beside:
        whole = beside.submit(seen_alone, bench, item, host, {}, samples=ready, spec=own)
        seen = [
            (way, beside.submit(seen_alone, bench, item, host, way.environment, samples=first, spec=spec))
            for way, spec in _other_ways(item)
        ]
        outputs = _ordered(bench, whole.result())
    file = golden.artifact_file(outputs, given.layout, bench.source.sets, is_whole=is_whole)
    # As a device reads it.
    ours = compact.decoded(file)
    answered = record(outputs, given.layout.kept, bench.source.sets)
    others = list(_that_count(bench, item, seen, ours=ours, kept=given.layout.kept))
    test = SelfTest(
        inputs=golden.INPUTS,
        source=golden.SOURCE,
        artifact=golden.ARTIFACT,
        samples=len(given.samples),
        tolerance={
            spec.name: _tolerance(item.plan, ours[spec.name], _gap(bench, spec.name, ours, others))
            for spec in bench.source.outputs
        },
        agreement=_agreement(bench, answered, given),
        kept=given.layout.kept,
        snr_db=_snr_floors(bench, item.plan, given, [ours, *others]),
        found_again=tuple(_found_again(bench, at, ours, others) for at in range(len(bench.source.sets)))
        or UNSET,
    )
    return test, {
        golden.INPUTS: given.inputs,
        golden.SOURCE: given.source_file,
        golden.ARTIFACT: dump_arrays(file),
    }


def shipped(bench: Workbench, item: Candidate) -> Shipped:
    """The golden inputs that a candidate's bundle gets. Raises: EngineError."""
    assert item.artifact is not None
    return bench.golden.shipped(item.artifact.size_bytes, is_whole=golden.is_whole(item.plan))


def _other_ways(item: Candidate) -> Iterator[tuple[Way, EngineSpec]]:
    """In which the same bytes may be run."""
    plan = item.plan
    assert item.artifact is not None
    for way in facts.of(plan.recipe.engine).ways:
        if plan.recipe.isa and way.environment:
            continue  # AVX2 has no bf16: that would be another precision, not another way
        options = {**plan.judged_options, **item.artifact.options, **way.options}
        yield way, EngineSpec(plan.recipe.engine, plan.versions, item.artifact.runs_here, options, 1)


def _that_count(
    bench: Workbench,
    item: Candidate,
    seen: Sequence[tuple[Way, Future[dict[str, Array]]]],
    *,
    ours: Mapping[str, Array],
    kept: int,
) -> Iterator[dict[str, Array]]:
    """Records of the first samples as the same bytes give them in other ways."""
    for way, outputs in seen:
        environment = way.environment
        try:
            made = outputs.result()
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
        found = record(_ordered(bench, made), kept, bench.source.sets)
        if _is_another_function(bench, found, ours):
            # openvino 2026.4 computes some int8 models wrong on one thread (attention with infinite masks); a tolerance that
            # lets that pass would let everything pass.
            told = " ".join(
                f"{key}={value}" for key, value in {"threads": 1, **way.options, **environment}.items()
            )
            bench.tell(f"{item.recipe} computes something else with {told}, so that way does not count")
            continue
        yield found


def _is_another_function(bench: Workbench, found: Mapping[str, Array], ours: Mapping[str, Array]) -> bool:
    """Whether any output is further off than it is large, or of a set more rows are others than the same."""
    again = [_again(bench, at, ours, found).share for at in range(len(bench.source.sets))]
    return min(again, default=1.0) < 0.5 or any(
        not is_exact(ours[spec.name])
        and _gap(bench, spec.name, ours, [found]) > max(_largest(ours[spec.name]), 1e-6)
        for spec in bench.source.outputs
    )


def _ordered(bench: Workbench, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The first output is the one with the answers."""
    return {spec.name: outputs[spec.name] for spec in bench.source.outputs}


def _again(bench: Workbench, at: int, ours: Mapping[str, Array], other: Mapping[str, Array]) -> Again:
    """Of the set of that number, what another way's record, perhaps of the first samples, has of ours."""
    return golden_rows.compared(bench.source.sets[at], at, _first(ours, other), other)


def _first(ours: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array[: len(other[name])] for name, array in ours.items() if name in other}


def _found_again(
    bench: Workbench, at: int, ours: Mapping[str, Array], others: list[dict[str, Array]]
) -> float:
    """What was seen in any way, less a margin: a row at a detector's threshold is found or not by the last bit."""
    least = min((_again(bench, at, ours, other).share for other in others), default=1.0)
    return max(0.0, round(least - FOUND_AGAIN_MARGIN, 6))


def _gap(
    bench: Workbench, name: str, ours: Mapping[str, Array], others: Sequence[Mapping[str, Array]]
) -> float:
    """The largest difference of what is finite; what is not has to be equal on a device, whatever the tolerance. Of rows of a
    set, between those that found each other.
    """
    at = next((at for at, one in enumerate(bench.source.sets) if name in one.axes), None)
    if at is not None:
        return max((_again(bench, at, ours, other).gaps[name] for other in others), default=0.0)
    largest = 0.0
    for other in others:
        left, right = (array.astype(np.float64) for array in (ours[name][: len(other[name])], other[name]))
        is_finite = np.isfinite(left) & np.isfinite(right)
        largest = max(largest, float(np.abs(left[is_finite] - right[is_finite]).max(initial=0.0)))
    return largest


def _share(plan: Plan) -> float:
    """Of an output's largest value, what a device's rounding may come to."""
    floor = facts.of(plan.recipe.engine).floors[plan.recipe.precision]
    return max(floor, _ACCELERATOR_FLOOR) if plan.is_accelerated else floor


def _largest(output: Array) -> float:
    values = flat(output).astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _tolerance(plan: Plan, output: Array, gap: float) -> float:
    # Three digits: the value states a magnitude, and the last bits of a maximum would change a digest.
    return float(f"{max(MARGIN * gap, _share(plan) * _largest(output), 1e-6):.3g}")


def _snr_floors(
    bench: Workbench, plan: Plan, shipped: Shipped, seen: list[dict[str, Array]]
) -> dict[str, tuple[Floor, ...]]:
    """Of each output that can have one, see the module's docstring. `seen` are records of all samples or of the first."""
    kept, floors = shipped.layout.kept, {}
    in_sets = golden_rows.names(bench.source.sets)
    for spec in bench.source.outputs:
        source = shipped.source[spec.name]
        if is_exact(source) or spec.name in in_sets:
            continue
        levels = [
            structs.replace(floor, least_db=least)
            for floor in ranges.floors(spec, kept, source)
            if (
                least := _least_snr(
                    plan, spec, kept, floor, source=source, seen=[way[spec.name] for way in seen]
                )
            )
            is not None
        ]
        if levels:
            floors[spec.name] = tuple(levels)
    return floors


def _least_snr(
    plan: Plan, spec: TensorSpec, kept: int, floor: Floor, *, source: Array, seen: list[Array]
) -> float | None:
    """None for nothing but zeros, and where the build saw something that is not finite where the source is, or the other
    way round.
    """
    found = [noise.of_floors([floor], spec, kept, array, source[: len(array)])[0] for array in seen]
    part = noise.part_of(floor, spec, kept, source)
    signal = noise.finite_energy(part)
    if min(found) <= -noise.MOST_DB or not signal:
        return None
    seen_noise = 0.0 if min(found) >= noise.MOST_DB else signal / 10 ** (min(found) / 10)
    rounding = part.size * (ROUNDING * _share(plan) * _largest(part)) ** 2
    return round(noise.decibels(signal, NOISE * seen_noise + rounding), 1)


def _agreement(bench: Workbench, ours: Mapping[str, Array], shipped: Shipped) -> float:
    theirs = shipped.source
    margin = AGREEMENT_MARGIN_SAMPLES / max(len(shipped.samples), USUAL_SAMPLES)
    least = 1 / max(theirs[ANSWERS].size, 1) if ANSWERS in theirs else FOUND_AGAIN_MARGIN
    agreed = agreed_on(bench.source.sets, bench.source.outputs[0].name, ours, theirs)
    return max(0.0, round(agreed - max(margin, least), 6))


def _ready(bench: Workbench, inputs: Samples) -> Samples:
    """The golden inputs after pre-processing, for a process that runs the engine alone."""
    rows = [bench.data.ready(inputs.sample(index)) for index in range(len(inputs))]
    return Samples({name: stacked([row[name] for row in rows]) for name in rows[0]}, sequence=inputs.sequence)
