"""The self-test's data in a bundle: raw golden inputs, and what source and artifact made of them.

Always true
 1. It weighs at most `compact.budget` of its model's bytes.
 2. Source, artifact and device get the same inputs: what the stored bytes decode to.
 3. Each bucket that the judged half has is among the samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from converters.data import compact, telling
from converters.data.compact import Coarseness, Layout
from converters.data.datasets import OF_A_BUCKET, Datasets
from converters.data.telling import Group
from converters.recipes.recipes import Plan
from converters.source.source import Source
from converters.work.findings import Evaluated
from edgekit.encoding import MOST_ENTRIES
from edgekit.rowset import RowSet
from edgekit.samples import SEQUENCE, Samples, dump_arrays, is_ragged, stacked
from edgekit.selftest import ANSWERS, answers, is_exact, iter_samples, record
from edgekit.tensors import Array

INPUTS = "selftest/inputs.npz"
SOURCE = "selftest/source.npz"
ARTIFACT = "selftest/artifact.npz"
# Of stateful models: samples at most, sequences that they should come from, and steps that make a sequence one.
MOST_STEPS = 128
SEQUENCES = 4
FEW_STEPS = 8
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Shipped:
    """What a bundle of one model gets. `inputs` is stored, `samples` what it decodes to; `source` is the record of the
    float source's outputs, stored in `source_file`.
    """

    layout: Layout
    samples: Samples
    inputs: bytes
    source: dict[str, Array]
    source_file: bytes


@dataclass(frozen=True)
class _Entries:
    """Of one output: a sample's entries, at most, and the bytes of one where they are integers or truths."""

    entries: int
    is_exact: bool
    width: int


@dataclass
class Golden:
    """`reference` is what the source gave on the judged half."""

    source: Source
    data: Datasets
    reference: Evaluated
    _inputs: dict[Coarseness, dict[str, Array]] = field(default_factory=dict)
    _outputs: dict[Coarseness, dict[int, dict[str, Array]]] = field(default_factory=dict)

    def size_bytes(self, model_bytes: int, *, is_whole: bool) -> int:
        """Of the three members, within the length of their headers."""
        chosen = self.layout(model_bytes, is_whole=is_whole)
        inputs = sum(self._input_bytes(chosen.how)[: chosen.count])
        return inputs + chosen.count * self._record_bytes(chosen.kept, is_whole) + self._overhead

    def layout(self, model_bytes: int, *, is_whole: bool) -> Layout:
        """`is_whole` for an artifact whose outputs are kept in all their bits: 16 would not hold its tolerance."""
        return compact.layout(
            compact.budget(model_bytes) - self._overhead,
            self._input_bytes,
            lambda kept: self._record_bytes(kept, is_whole),
            self._least,
        )

    def shipped(self, model_bytes: int, *, is_whole: bool) -> Shipped:
        """Raises: EngineError from the source's run."""
        chosen = self.layout(model_bytes, is_whole=is_whole)
        indices = self._indices(chosen.count)
        arrays = compact.taken(self._stored(chosen.how), indices)
        samples = Samples(compact.decoded(arrays), sequence=self._sequence(indices))
        made = self._run(chosen.how, indices, samples)
        kept = record(
            {name: stacked([row[name] for row in made]) for name in made[0]}, chosen.kept, self.source.sets
        )
        file = _archive(kept, bits=16)
        if samples.sequence is not None:
            arrays |= compact.stored(SEQUENCE, samples.sequence, Coarseness())
        return Shipped(chosen, samples, dump_arrays(arrays), compact.decoded(file), dump_arrays(file))

    @cached_property
    def pool(self) -> Samples:
        """The samples that may be shipped, raw, those that tell most first; sequences cut, one after the other."""
        samples = self.data.judged
        known = {**{f"in:{name}": array for name, array in samples.inputs.items()}, **self.reference.digest}
        features = telling.features(known)
        first = next(iter(self.reference.digest.values()))
        if samples.sequence is None:
            groups = [Group(telling.classes(first))]
            if self.source.buckets is not None:
                groups.insert(0, Group(self.data.judged_buckets, OF_A_BUCKET))
            return samples.take(telling.order(features, groups, compact.MOST))
        starts = [index for index in range(len(samples)) if samples.starts(index)]
        ends = (*starts[1:], len(samples))
        means = np.stack([features[start:end].mean(axis=0) for start, end in zip(starts, ends, strict=True)])
        ordered = telling.order(means, (), MOST_STEPS).tolist()
        longest = MOST_STEPS // min(SEQUENCES, len(ordered))
        parts = [np.arange(starts[index], min(ends[index], starts[index] + longest)) for index in ordered]
        indices = np.concatenate(parts)[:MOST_STEPS]
        # Runs that come to stand side by side may have had the same id.
        ids = np.concatenate([np.full(len(part), at) for at, part in enumerate(parts)])[:MOST_STEPS]
        return Samples(samples.take(indices).inputs, sequence=ids.astype(np.int64))

    @cached_property
    def _least(self) -> int:
        """One of each bucket."""
        return 1 if self.source.buckets is None else len(set(self.data.judged_buckets.tolist()))

    @cached_property
    def _overhead(self) -> int:
        arrays = len(self.pool.inputs) + 1 + 2 * (len(self.reference.golden) + 1)
        # Each may have a scale and shapes beside it.
        return 3 * arrays * compact.MEMBER_BYTES

    def _indices(self, count: int) -> list[int]:
        """Of `count` samples of the pool: the first, or of a stateful model about as many steps of each sequence."""
        ids = self.pool.sequence
        if ids is None:
            return list(range(count))
        sequences = max(1, min(len(np.unique(ids)), SEQUENCES, count // FEW_STEPS))
        steps = max(1, count // sequences)
        chosen = [np.flatnonzero(ids == own)[:steps].tolist() for own in range(int(ids[-1]) + 1)]
        return [index for part in chosen for index in part][:count]

    def _sequence(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        return None if self.pool.sequence is None else self.pool.sequence[np.asarray(indices)]

    def _stored(self, how: Coarseness) -> dict[str, Array]:
        """The pool's inputs. Their scales are of all of it, so that a sample is the same whichever others are taken."""
        if how not in self._inputs:
            self._inputs[how] = {
                key: value
                for name, array in self.pool.inputs.items()
                for key, value in compact.stored(name, array, how).items()
            }
        return self._inputs[how]

    def _input_bytes(self, how: Coarseness) -> list[int]:
        """Of each sample of the pool, as far as a device may hold them in memory where they unfold."""
        arrays = self._stored(how)
        sizes = [sum(arrays[name][at].nbytes for name in self.pool.inputs) for at in range(len(self.pool))]
        # Shapes of ragged samples and of thinned ones, and the ids of sequences.
        beside = sum(
            8 * part.ndim * (is_ragged(array) + (how.every > 1))
            for array in self.pool.inputs.values()
            for part in array[:1]
        )
        entries = max(part.size for array in self.pool.inputs.values() for part in array)
        holds = max(1, MOST_ENTRIES // max(entries, 1))
        return [size + beside + 8 for size in sizes[: holds if how.every > 1 else None]]

    def _record_bytes(self, kept: int, is_whole: bool) -> int:
        """Of one sample in both records."""
        answers_of, *outputs = self._recorded
        total = min(kept, answers_of.entries) * answers_of.width
        for each in outputs:
            width = 2 * each.width if each.is_exact else 2 + (4 if is_whole else 2)
            total += min(kept, each.entries) * width
        return total

    @cached_property
    def _recorded(self) -> tuple[_Entries, ...]:
        """Of the answers, and of every output."""
        outputs = list(self.reference.golden.values())
        return tuple(map(_entries, (answers(outputs[0]), *outputs)))

    def _run(self, how: Coarseness, indices: Sequence[int], samples: Samples) -> list[dict[str, Array]]:
        """The source's outputs, each sample run once for all bundles of a build; sequences as often as they are cut."""
        known = self._outputs.setdefault(how, {})
        missing = [at for at, index in enumerate(indices) if index not in known]
        if self.source.state and missing:
            missing = list(range(len(indices)))
        if missing:
            pieces = (self.source.admitted, self.source.state, self.data.project.preprocess)
            runs = iter_samples(self.source.reference.run, *pieces, samples.take(missing))
            for at, (outputs, _) in zip(missing, runs, strict=True):
                known[indices[at]] = {spec.name: outputs[spec.name] for spec in self.source.outputs}
        return [known[index] for index in indices]


def is_whole(plan: Plan) -> bool:
    """Whether its outputs are recorded in all their bits: 16 would not hold the tolerance of single precision."""
    return plan.recipe.precision == "fp32"


def artifact_file(
    outputs: Outputs, layout: Layout, sets: Sequence[RowSet], *, is_whole: bool
) -> dict[str, Array]:
    """The artifact's record as it is stored; the answers that count are the source's."""
    kept = record(outputs, layout.kept, sets)
    kept.pop(ANSWERS, None)
    return _archive(kept, bits=compact.WHOLE if is_whole else 16)


def _archive(kept: Outputs, *, bits: int) -> dict[str, Array]:
    return {
        key: value
        for name, array in kept.items()
        for key, value in compact.recorded(name, array, bits).items()
    }


def _entries(array: Array) -> _Entries:
    exact = is_exact(array)
    return _Entries(max(part.size for part in array), exact, _width(array) if exact else 0)


def _width(array: Array) -> int:
    """Bytes of an integer as it is stored; twice as wide as seen, since other samples may hold larger ones."""
    narrow = compact.recorded("", array, compact.WHOLE)[""]
    least, most = ((found[0] if is_ragged(found) else found).dtype.itemsize for found in (narrow, array))
    return int(min(2 * least, most))
