"""Outputs whose length follows from the data: found by running the source, and padded from there on.

Always true
 1. A source that shows no sign of such outputs is not run for it.
 2. What the build sees of the source and of every candidate is padded to the same bound.
 3. The bound is what the user says, or twice the most rows seen, as the next power of two.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
from msgspec import structs

from converters.data.datasets import Datasets, spread
from converters.source.project import Project
from converters.source.source import Source, closed, filled
from edgekit.engines import Model
from edgekit.errors import EdgeKitError, SourceError
from edgekit.manifest import TensorSpec
from edgekit.rows import FixedModel
from edgekit.rowset import RowSet
from edgekit.selftest import iter_samples
from edgekit.tensors import Array

# Samples that tell how many rows there may be, and rows that tell how far the same finding may lie apart, of outputs that
# take so much memory.
SAMPLES, ROWS, BYTES = 512, 4096, 64_000_000
# A row is the same where each of its values lies within this share of what that value varies by (a standard deviation).
NEAR = 0.2
LEAST_BOUND = 4
# Samples that a program is tried on.
FEW = 8


def settled(
    project: Project, source: Source, data: Datasets, known: tuple[RowSet, ...] | None = None
) -> Source:
    """The source with its sets of rows; `known` are those that another process found.

    Raises: SourceError where lengths follow from the data in a way that no bundle holds; DataError from the samples.
    """
    given = {name: wish.rows for name, wish in project.file.outputs.items() if wish.rows is not None}
    if source.buckets is not None:
        if given or (source.may_vary and _differs(source.by_size[-1])):
            raise SourceError(
                "outputs whose length follows from the data do not go with buckets; give each input one shape"
            )
        return source
    if known is None and not (given or _shows_some(source, data)):
        return source
    sets = found(source, data, given) if known is None else known
    return replace(
        source,
        sets=sets,
        reference=FixedModel(source.reference, sets) if sets else source.reference,
        outputs=tuple(_bounded(spec, sets) for spec in source.outputs),
    )


def found(source: Source, data: Datasets, given: Mapping[str, int]) -> tuple[RowSet, ...]:
    """What a run over evaluation samples shows. Raises: SourceError."""
    samples = data.evaluation
    if samples.sequence is None:
        samples = samples.take(spread(np.arange(len(samples)), SAMPLES))
    pieces = (source.admitted, source.state, data.project.preprocess)
    shapes: dict[str, list[tuple[int, ...]]] = {spec.name: [] for spec in source.outputs}
    kept: dict[str, list[Array]] = {spec.name: [] for spec in source.outputs}
    held = 0
    for outputs, _ in iter_samples(source.reference.run, *pieces, samples):
        is_kept = held < BYTES
        for name, array in outputs.items():
            shapes[name].append(array.shape)
            if is_kept:
                kept[name].append(np.array(array))
                held += array.nbytes
    axes = {name: axis for name in shapes if (axis := _axis(name, shapes[name], name in given)) is not None}
    fed = sorted(pair.output for pair in source.state if pair.output in axes)
    if fed:
        raise SourceError(
            f"output {fed[0]!r} is a state, and its length follows from the data; states keep their shape"
        )
    groups: dict[tuple[int, ...], dict[str, int]] = {}
    for name, axis in axes.items():
        lengths = tuple(shape[axis] for shape in shapes[name])
        groups.setdefault(lengths, {})[name] = axis
    return tuple(
        _set(axes, max(lengths), given, {name: kept[name] for name in axes})
        for lengths, axes in groups.items()
    )


def _axis(name: str, shapes: list[tuple[int, ...]], is_given: bool) -> int | None:
    """Along which the output's length changes from sample to sample; None if none does. Raises: SourceError."""
    if len({len(shape) for shape in shapes}) > 1:
        raise SourceError(
            f"output {name!r} has more axes for some samples than for others; no bundle holds that"
        )
    changing = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if len(changing) > 1:
        raise SourceError(
            f"output {name!r} changes along axes {', '.join(map(str, changing))} from sample to sample; one may, as the"
            " number of findings does"
        )
    if changing:
        return changing[0]
    if not (is_given or 0 in shapes[0]) or not shapes[0]:
        return None
    # The same in all samples: the axis of nothing, or the first that is no batch of one.
    return next((axis for axis, size in enumerate(shapes[0]) if size != 1), len(shapes[0]) - 1)


def _set(
    axes: Mapping[str, int], most: int, given: Mapping[str, int], kept: Mapping[str, list[Array]]
) -> RowSet:
    told = [given[name] for name in axes if name in given]
    kinds = {arrays[0].dtype.kind for arrays in kept.values()}
    if kinds <= {"b", "u"}:
        raise SourceError(
            f"output {next(iter(axes))!r} has as many entries as the data says and holds flags or unsigned numbers, of which"
            " none can mean nothing; cast it to a signed type"
        )
    bound = max(told) if told else max(LEAST_BOUND, 2 ** math.ceil(math.log2(max(2 * most, 1))))
    reach = [one for name, axis in axes.items() for one in _reach(kept[name], axis)]
    return RowSet(dict(axes), bound, tuple(reach))


def _reach(samples: list[Array], axis: int) -> Iterable[float]:
    """Of each entry of an output's rows; three digits, so that the last bits of a spread change no bundle."""
    rows = [np.moveaxis(sample, axis, 0) for sample in samples]
    width = math.prod(rows[0].shape[1:])
    if rows[0].dtype.kind != "f":
        return [0.0] * width
    joined = np.concatenate(
        [row.reshape(len(row), width) for row in rows if len(row)] or [np.zeros((0, width))]
    )
    values = joined[:ROWS].astype(np.float64)
    found = []
    for column in range(width):
        real = values[:, column][np.isfinite(values[:, column])]
        if not real.size or np.all(real == np.rint(real)):
            # Classes and indices that stand in a float.
            found.append(0.0)
            continue
        found.append(float(f"{max(NEAR * real.std(), 1e-3 * np.abs(real).max()):.3g}"))
    return found


def _bounded(spec: TensorSpec, sets: tuple[RowSet, ...]) -> TensorSpec:
    for one in sets:
        axis = one.axes.get(spec.name)
        if axis is not None:
            return structs.replace(spec, shape=(*spec.shape[:axis], one.bound, *spec.shape[axis + 1 :]))
    return spec


def _shows_some(source: Source, data: Datasets) -> bool:
    """Whether something says that lengths may follow from the data: an operator, nothing at all on zeros, or other shapes on
    other inputs. A file of ONNX has no way but its operators; a program, which has, is tried on a few samples too.
    """
    if source.may_vary or any(0 in spec.shape for spec in source.outputs):
        return True
    return _differs(source) or (source.module is not None and _differs_among(source, data))


def _differs_among(source: Source, data: Datasets) -> bool:
    samples = data.evaluation
    if samples.sequence is None:
        samples = samples.take(spread(np.arange(len(samples)), FEW))
    runs = iter_samples(source.reference.run, source.admitted, source.state, data.project.preprocess, samples)
    return any(
        outputs[spec.name].shape != closed(spec)
        for outputs, _ in islice(runs, FEW)
        for spec in source.outputs
    )


def _differs(source: Source) -> bool:
    """Whether an output has another shape on zeros, which `source.outputs` are of, than on other inputs."""
    try:
        outputs = _once(source.reference, source)
    except EdgeKitError:
        return False
    except Exception:  # noqa: BLE001  # a user's program may take no such inputs; its samples will do
        return False
    return any(outputs[spec.name].shape != closed(spec) for spec in source.outputs)


def _once(model: Model, source: Source) -> Mapping[str, Array]:
    return model.run({spec.name: filled(spec) for spec in source.inputs})
