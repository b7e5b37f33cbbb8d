"""Running samples through a model, and judging what comes out against the golden data of a bundle.

Converters, `edgekit verify` and `edgekit run`, and the agent's self-test all use `run_samples`: one way of applying
pre-processing and of feeding states back, so that what was judged at build is what runs on the device.

Always true
 1. States start at zero with each sequence and are fed back inside it, in the order of the samples.
 2. Only the engine call is timed.
 3. A check passes only if every output is finite where the artifact's was, inside its tolerance, as near to the float
    source as the manifest says, the agreement is reached, and a guard catches what it caught at build; whatever cannot be
    judged (an output without a tolerance, another shape) fails.

Needs numpy: the agent imports this in its worker and self-test processes only.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET

from edgekit import golden_rows, guard, noise, rows
from edgekit.engines import LoadedBundle
from edgekit.errors import DataError
from edgekit.gaps import largest_gap
from edgekit.manifest import Manifest, SelfTest, StatePair, Step, TensorSpec
from edgekit.rowset import RowSet
from edgekit.samples import Samples, flat, is_ragged, load_arrays, load_npz, stacked
from edgekit.tensors import Array, zeros_of
from edgekit.transforms import prepare

# Entries of an output that golden data keeps of one sample, at most, and in bundles that do not say how many.
KEPT = 16_384
# Where golden data keeps the task answers, which need the whole first output. No tensor name starts so.
ANSWERS = "@answers"
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


class SelfTestResult(msgspec.Struct, frozen=True):
    """`max_error` is the largest |output - artifact output| per output tensor, `snr_db` the signal to noise against the
    float source for each floor that the manifest has; latencies are of the engine call.

    `reason` is a sentence for a person, empty when passed.
    """

    passed: bool
    agreement: float
    max_error: dict[str, float]
    latency_p50_ms: float
    latency_p95_ms: float
    reason: str = ""
    snr_db: dict[str, tuple[float, ...]] = {}


def iter_samples(
    run: Run,
    inputs: Sequence[TensorSpec],
    state: Sequence[StatePair],
    preprocess: Mapping[str, Sequence[Step]],
    samples: Samples,
) -> Iterator[tuple[dict[str, Array], float]]:
    """Outputs and engine milliseconds of each sample in turn; memory does not grow with their number.

    A state input starts a sequence as the samples give it there, or else as zeros; after that the output fed back
    takes its place. Raises: InputError for a sample that does not fit; EngineError.
    """
    specs = {spec.name: spec for spec in inputs}
    states: dict[str, Array] = {}
    for index in range(len(samples)):
        ready = prepare(inputs, preprocess, samples.sample(index))
        if samples.starts(index):
            states = {pair.input: ready.get(pair.input, zeros_of(specs[pair.input])) for pair in state}
        ready.update(states)
        began = time.perf_counter()
        outputs = run(ready)
        elapsed_ms = (time.perf_counter() - began) * 1000
        states = {pair.input: outputs[pair.output] for pair in state}
        yield outputs, elapsed_ms


def run_samples(
    run: Run,
    inputs: Sequence[TensorSpec],
    state: Sequence[StatePair],
    preprocess: Mapping[str, Sequence[Step]],
    samples: Samples,
) -> tuple[dict[str, Array], list[float]]:
    """All outputs, each (N, *output shape), and the engine's milliseconds for each sample.

    Raises: as `iter_samples`; DataError if an output's shape changes from sample to sample while the inputs' do not.
    """
    collected: dict[str, list[Array]] = {}
    latencies_ms: list[float] = []
    for outputs, elapsed_ms in iter_samples(run, inputs, state, preprocess, samples):
        latencies_ms.append(elapsed_ms)
        for name, array in outputs.items():
            collected.setdefault(name, []).append(array)
    outputs = {name: stacked(arrays) for name, arrays in collected.items()}
    ragged = [name for name, array in outputs.items() if is_ragged(array)]
    if ragged and not any(map(is_ragged, samples.inputs.values())):
        raise DataError(f"the model's output {ragged[0]!r} differs in shape between samples of one shape")
    return outputs, latencies_ms


def answers(outputs: Array) -> Array:
    """The task answers of the first output (N, *shape): argmax over its classes where there is more than one, otherwise
    whether the value is above 0.5. (N, …) of a small unsigned type, ragged like the outputs. Integers are answers
    themselves, except quantized scores: eight bits with more than one class.
    """
    if is_ragged(outputs):
        return stacked([answers(part[None])[0] for part in outputs])
    axis = class_axis(outputs.shape)
    has_classes = outputs.ndim > 1 and outputs.shape[axis] > 1
    if is_exact(outputs) and not (has_classes and outputs.dtype in (np.int8, np.uint8)):
        return outputs
    if has_classes:
        best: Array = outputs.argmax(axis=axis)
        return best.astype(np.min_scalar_type(outputs.shape[axis] - 1))
    above: Array = outputs.astype(np.float64) > 0.5
    return above.astype(np.uint8)


def is_exact(array: Array) -> bool:
    """Whether its entries are integers or truths, for which near is not equal."""
    return (array[0] if is_ragged(array) else array).dtype.kind in "iub"


def class_axis(shape: tuple[int, ...]) -> int:
    """The last, except in a map over an image, (N, C, H, W) or (N, H, W, C): there the shorter of the two. A sample may
    have a batch axis of 1 of its own, (N, 1, C, H, W).
    """
    if len(shape) == 5 and shape[1] == 1:
        found = class_axis((shape[0], *shape[2:]))
        return found if found < 0 else found + 1
    if len(shape) != 4:
        return -1
    is_map = shape[2] > 1
    return 1 if (shape[1] <= shape[3] if is_map else shape[3] == 1) else -1


def recorded_answers(outputs: Array, kept: int | None = None) -> Array:
    """The answers, or `kept` of a sample's where there are more: one for each pixel of a map. One row if ragged."""
    found = answers(outputs)
    if kept is None:
        return flat(found) if is_ragged(found) else _kept(found, None)
    return _kept(found, kept)


def agreement(ours: Array, theirs: Array) -> float:
    """The share of equal entries of two arrays of answers, 0 to 1. Raises: DataError if their shapes differ."""
    if is_ragged(ours) and is_ragged(theirs):
        ours, theirs = flat(ours), flat(theirs)
    if ours.shape != theirs.shape:
        raise DataError(f"answers of shape {ours.shape} cannot be compared with {theirs.shape}")
    return float(np.mean(ours == theirs)) if ours.size else 0.0


def record(
    outputs: Mapping[str, Array], kept: int | None = None, sets: Sequence[RowSet] = ()
) -> dict[str, Array]:
    """Golden data of outputs (N, *shape): each as it is, or `kept` of a sample's entries, and task answers likewise.
    Without a number it is as in bundles of formats 1 and 2.

    Of ragged outputs both are one row of all samples' entries; of sets of rows, which are padded, see
    `edgekit.golden_rows`: where the first output is in one, its rows are the answers.
    """
    taken = golden_rows.names(sets)
    entries = {name: _kept(array, kept) for name, array in outputs.items() if name not in taken}
    first = next(iter(outputs))
    answered = {} if first in taken else {ANSWERS: recorded_answers(outputs[first], kept)}
    return {**entries, **golden_rows.record(sets, outputs, kept or KEPT), **answered}


def kept_of(test: SelfTest) -> int | None:
    """What `record` needs to make records like a bundle's own."""
    return None if test.kept is UNSET else test.kept


def _kept(array: Array, kept: int | None) -> Array:
    """(N, K) entries spread over each sample, or the array itself where it is small."""
    if is_ragged(array):
        return np.concatenate([_kept(part[None], kept).ravel() for part in array])
    rows = array.reshape(len(array), -1)
    if rows.shape[1] <= (kept or KEPT):
        return array
    if kept is None:
        # An odd step walks through the classes of a last axis instead of meeting the same ones in each row.
        return np.ascontiguousarray(rows[:, :: -(-rows.shape[1] // KEPT) | 1])
    return np.ascontiguousarray(rows[:, noise.spread(rows.shape[1], kept)])


def golden_inputs(manifest: Manifest, folder: Path) -> Samples:
    """The self-test's inputs in an extracted bundle, raw. Raises: DataError."""
    return load_npz(
        folder / manifest.selftest.inputs,
        manifest.admitted,
        raw=tuple(manifest.preprocess),
        optional=tuple(pair.input for pair in manifest.state),
        stored_only=True,
    )


def check(manifest: Manifest, loaded: LoadedBundle, folder: Path) -> SelfTestResult:
    """Run the golden inputs of an extracted bundle and judge the outputs.

    Raises: DataError if the golden data cannot be read, BundleError if a guard's statistics cannot; EngineError, InputError
    from the run.
    """
    samples = golden_inputs(manifest, folder)
    pieces = (manifest.admitted, manifest.state, manifest.preprocess)
    # The first call pays for lazy set-up inside the engine, which is no latency of the model.
    run_samples(loaded.run, *pieces, samples.take([0]))
    run = rows.fixed(loaded.run, manifest.sets or ())
    outputs, latencies_ms = run_samples(run, *pieces, samples)
    result = judge(
        manifest,
        outputs,
        latencies_ms,
        source=load_arrays(folder / manifest.selftest.source, stored_only=True),
        artifact=load_arrays(folder / manifest.selftest.artifact, stored_only=True),
    )
    watch = guard.load(manifest, folder)
    if watch is None or not (told := guard.complaint(watch, manifest, samples)):
        return result
    return msgspec.structs.replace(
        result, passed=False, reason="; ".join(filter(None, (result.reason, told)))
    )


def judge(
    manifest: Manifest,
    outputs: Mapping[str, Array],
    latencies_ms: Sequence[float],
    *,
    source: Mapping[str, Array],
    artifact: Mapping[str, Array],
) -> SelfTestResult:
    """Outputs (N, *shape) against the records of what the float source and this artifact gave at build."""
    found = {spec.name: outputs[spec.name] for spec in manifest.outputs if spec.name in outputs}
    ours = record(found, kept_of(manifest.selftest), manifest.sets or ())
    return judge_record(manifest, ours, latencies_ms, source=source, artifact=artifact)


def judge_record(
    manifest: Manifest,
    ours: Mapping[str, Array],
    latencies_ms: Sequence[float],
    *,
    source: Mapping[str, Array],
    artifact: Mapping[str, Array],
) -> SelfTestResult:
    """As `judge`, for outputs that are already a record."""
    golden = manifest.selftest
    sets = manifest.sets or ()
    errors = {
        spec.name: _max_error(ours.get(spec.name), artifact.get(spec.name)) for spec in manifest.outputs
    }
    again = [golden_rows.compared(one, at, ours, artifact) for at, one in enumerate(sets)]
    errors |= {name: error for found in again for name, error in found.gaps.items()}
    agreed = agreed_on(sets, manifest.outputs[0].name, ours, source)
    specs = {spec.name: spec for spec in manifest.outputs}
    snr = {
        name: noise.of_floors(floors, specs[name], kept_of(golden), ours.get(name), source.get(name))
        for name, floors in (golden.snr_db or {}).items()
    }
    reasons = [
        reason for spec in manifest.outputs if (reason := _complaint(spec.name, errors, golden.tolerance))
    ]
    reasons += [
        complaint
        for name, floors in (golden.snr_db or {}).items()
        for floor, found in zip(floors, snr[name], strict=True)
        if (complaint := noise.complaint(name, floor, found))
    ]
    reasons += golden_rows.complaints(sets, again, golden.found_again or ())
    if len(latencies_ms) != golden.samples:
        reasons.append(f"{len(latencies_ms)} golden samples, the manifest says {golden.samples}")
    if not agreed >= golden.agreement:
        reasons.append(
            f"answers agree with the source on {agreed:.1%} of the golden samples, {golden.agreement:.1%} needed"
        )
    return SelfTestResult(
        passed=not reasons,
        agreement=agreed,
        max_error=errors,
        latency_p50_ms=float(np.percentile(latencies_ms, 50)),
        latency_p95_ms=float(np.percentile(latencies_ms, 95)),
        reason="; ".join(reasons),
        snr_db=snr,
    )


def agreed_on(
    sets: Sequence[RowSet], first: str, ours: Mapping[str, Array], source: Mapping[str, Array]
) -> float:
    """The share of the answers of two records that agree; of rows that find each other, where the `first` output has such."""
    for at, one in enumerate(sets):
        if first in one.axes:
            return golden_rows.compared(one, at, ours, source).share
    if ANSWERS in source and source[ANSWERS].shape == ours[ANSWERS].shape:
        return agreement(ours[ANSWERS], source[ANSWERS])
    return 0.0


def _complaint(name: str, errors: Mapping[str, float], tolerances: Mapping[str, float]) -> str:
    error, tolerance = errors[name], tolerances.get(name)
    if tolerance is None:
        return f"output {name!r} has no tolerance in the manifest"
    if math.isinf(error):
        return f"output {name!r} is not finite where it should be, or of another shape"
    if not error <= tolerance:
        return f"output {name!r} is off by {error:.3g}, at most {tolerance:.3g} is tolerated"
    return ""


def _max_error(ours: Array | None, theirs: Array | None) -> float:
    """Largest absolute difference; infinite where either is missing, shaped otherwise, or not finite where the other is."""
    if ours is None or theirs is None or not ours.size:
        return math.inf
    return largest_gap(ours, theirs)
