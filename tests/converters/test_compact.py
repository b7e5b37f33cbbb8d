"""Self-test data within its budget: what is made coarser, and which samples are kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from converters.bundle import ranges
from converters.data import compact, telling
from converters.data.compact import Coarseness
from converters.data.telling import Group
from converters.work.findings import Evaluated
from converters.work.golden import Golden, artifact_file
from edgekit.manifest import StatePair, TensorSpec
from edgekit.samples import Samples, dump_arrays, load_npz, stacked
from edgekit.selftest import KEPT, record

EIGHT = Coarseness(8)


def through(array: np.ndarray, how: Coarseness) -> np.ndarray:
    return compact.decoded(compact.stored("x", array, how))["x"]


@pytest.fixture
def chance() -> np.random.Generator:
    return np.random.default_rng(0)


def test_integers_come_back_as_they_were_in_their_smallest_type(chance) -> None:
    ids = chance.integers(0, 30_000, (4, 128))
    assert compact.stored("x", ids, EIGHT)["x"].dtype == np.uint16
    back = through(ids, EIGHT)
    assert back.dtype == np.int64
    assert np.array_equal(back, ids)


def test_pictures_in_bytes_stay_as_they_are(chance) -> None:
    pictures = chance.integers(0, 256, (3, 40, 50, 3)).astype(np.uint8)
    assert np.array_equal(through(pictures, EIGHT), pictures)


def test_real_numbers_in_bytes_are_within_half_a_step_and_zero_stays_zero(chance) -> None:
    values = chance.normal(size=(3, 3, 40, 50)).astype(np.float32)
    values[:, :, :, :10] = 0
    back = through(values, EIGHT)
    assert back.dtype == np.float32
    assert np.abs(back - values).max() <= (values.max() - values.min()) / 255 * 0.51
    assert np.all(back[:, :, :, :10] == 0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_real_numbers_in_sixteen_bits_keep_their_digits_at_any_magnitude(scale: float, chance) -> None:
    values = (chance.normal(size=(3, 200)) * scale).astype(np.float32)
    assert np.allclose(through(values, Coarseness(16)), values, rtol=5e-4, atol=1e-7 * scale)


@pytest.mark.parametrize("how", [Coarseness(), Coarseness(16), EIGHT])
def test_masks_and_infinities_survive(how: Coarseness) -> None:
    mask = np.where(np.arange(300).reshape(3, 100) % 3, 0, -np.inf).astype(np.float32)
    assert np.array_equal(through(mask, how), mask)
    ones = (np.arange(300).reshape(3, 100) % 2).astype(np.float32)
    assert np.array_equal(through(ones, how), ones)


def test_every_other_entry_stands_for_its_neighbour_but_never_for_another_channel(chance) -> None:
    values = chance.integers(0, 9, (2, 3, 64, 33)).astype(np.uint8)
    back = through(values, Coarseness(8, 2))
    assert np.array_equal(back[:, :, ::2, ::2], values[:, :, ::2, ::2])
    assert np.array_equal(back, back[:, :, ::2, ::2].repeat(2, 2).repeat(2, 3)[:, :, :, :33])


def test_samples_of_several_shapes_are_made_coarser_each_for_itself(chance) -> None:
    parts = [chance.normal(size=(3, size)).astype(np.float32) for size in (40, 51, 64)]
    back = through(stacked(parts), Coarseness(8, 3))
    assert [part.shape for part in back] == [part.shape for part in parts]


def test_a_part_of_stored_samples_reads_as_that_part_of_all(chance) -> None:
    stored = compact.stored("x", chance.normal(size=(5, 3, 40)).astype(np.float32), Coarseness(8, 2))
    some = compact.decoded(compact.taken(stored, [3, 1]))["x"]
    assert np.array_equal(some, compact.decoded(stored)["x"][[3, 1]])


def _layout(room: int, entries: int, outputs: int, least: int = 1) -> compact.Layout:
    """Of samples of so many floats, with an output of so many."""

    def inputs(how: Coarseness) -> list[int]:
        return [entries * min(how.bits, 32) // 8 // how.every**2] * 64

    return compact.layout(room, inputs, lambda kept: 6 * min(kept, outputs), least)


def test_what_is_small_loses_nothing() -> None:
    assert _layout(256_000, 784, 10) == compact.Layout(64, KEPT, Coarseness())


@pytest.mark.parametrize("entries", [10, 5_000, 43_844, 150_528, 307_200, 1_228_800, 25_000_000])
@pytest.mark.parametrize("outputs", [10, 15_136, 700_000])
@pytest.mark.parametrize("room", [250_000, 495_000, 15_000_000])
def test_whatever_the_sizes_it_fits_and_has_samples(entries: int, outputs: int, room: int) -> None:
    found = _layout(room, entries, outputs)
    each = entries * min(found.how.bits, 32) // 8 // found.how.every**2
    assert found.count * (each + 6 * min(found.kept, outputs)) <= room
    assert found.count >= (4 if entries < 2_000_000 else 1)


def test_what_cannot_fit_has_the_fewest_samples_there_must_be() -> None:
    assert _layout(1_000, 25_000_000, 10, least=3).count == 3


def test_the_first_samples_are_of_every_bucket_and_class_and_far_apart(chance) -> None:
    features = chance.normal(size=(300, 4)).astype(np.float32)
    features[123] = 50
    buckets, classes = np.arange(300) // 140, chance.integers(0, 10, 300)
    order = telling.order(features, [Group(buckets, 8), Group(classes)], 64)
    assert len(set(order.tolist())) == 64
    assert set(buckets[order[:3]].tolist()) == {0, 1, 2}
    assert np.bincount(buckets[order]).min() >= 8
    assert set(classes[order].tolist()) == set(range(10))
    assert order[0] == 123
    assert order[:10].tolist() == telling.order(features, [Group(buckets, 8), Group(classes)], 10).tolist()


def test_samples_that_are_alike_are_not_taken_twice(chance) -> None:
    kinds = chance.normal(size=(8, 5)).astype(np.float32) * 10
    features = np.repeat(kinds, 30, axis=0) + 0.01 * chance.normal(size=(240, 5)).astype(np.float32)
    chosen = telling.order(features, (), 8)
    assert sorted((chosen // 30).tolist()) == list(range(8))


def test_features_do_without_what_is_not_finite_and_without_one_shape(chance) -> None:
    parts = stacked([chance.normal(size=size) for size in (4, 9, 2)])
    found = telling.features({"a": np.array([[np.nan, 1], [np.inf, 2], [0, 3]]), "b": parts})
    assert found.shape == (3, 11)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kept", [300, KEPT])
def test_rows_of_another_magnitude_are_found_with_what_is_next_to_zero_beside_the_smaller(
    kept: int, chance
) -> None:
    spec = TensorSpec("out", "float32", (1, 84, 100))
    source = chance.random((4, 1, 84, 100))
    source[:, :, :4] *= 320
    source[:, :, 50] = 1e-9
    found = ranges.floors(spec, kept, record({"out": source}, kept)["out"])
    assert [floor.rows for floor in found] == [((0, 4),), ((4, 84),)]
    assert {floor.axis for floor in found} == {1}


@pytest.mark.parametrize("shape", [(1, 10), (1, 3, 40), (1, None, 40)])
def test_an_output_of_one_magnitude_or_of_single_rows_is_one(shape, chance) -> None:
    spec = TensorSpec("out", "float32", shape)
    source = chance.random((4, *(dim or 5 for dim in shape)))
    assert [floor.rows for floor in ranges.floors(spec, KEPT, source)] == [()]


class _Sum:
    """Adds up what it has seen of a sequence."""

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        total = inputs["state"] + inputs["x"].sum()
        return {"y": inputs["x"] + total, "next": total}


@pytest.fixture
def stateful(chance) -> Golden:
    """Twenty sequences of 3 to 60 steps; two that could come to stand side by side have the same id."""
    lengths = chance.integers(3, 60, 20)
    sequence = np.repeat(np.arange(20) % 2, lengths).astype(np.int64)
    x = chance.normal(size=(len(sequence), 1, 200)).astype(np.float32)
    inputs = (TensorSpec("x", "float32", (1, 200)), TensorSpec("state", "float32", (1, 1)))
    outputs = (TensorSpec("y", "float32", (1, 200)), TensorSpec("next", "float32", (1, 1)))
    source = SimpleNamespace(
        admitted=inputs, inputs=inputs, outputs=outputs, state=(StatePair("state", "next"),), buckets=None,
        sets=(), reference=_Sum(),
    )  # fmt: skip
    data = SimpleNamespace(
        judged=Samples({"x": x}, sequence=sequence), project=SimpleNamespace(preprocess={})
    )
    seen = Evaluated({"value": x}, None, {"y": x[:64], "next": x[:64, :, :1]})
    return Golden(source, data, seen)


def test_sequences_are_cut_after_their_first_steps_and_run_from_a_zero_state(stateful: Golden) -> None:
    shipped = stateful.shipped(1_000, is_whole=True)
    assert 64 < len(shipped.samples) <= 128
    lengths = np.bincount(shipped.samples.sequence)
    assert len(lengths) >= 4
    assert lengths.max() <= 32
    start = int(np.flatnonzero(shipped.samples.sequence == 2)[0])
    x = shipped.samples.inputs["x"]
    assert np.allclose(shipped.source["y"][start], x[start] + x[start].sum(), rtol=2e-3, atol=2e-2)
    again = load_npz(shipped.inputs, stateful.source.inputs, optional=["state"], stored_only=True)
    assert np.array_equal(again.inputs["x"], x)
    assert np.array_equal(again.sequence, shipped.samples.sequence)


def test_what_is_told_of_its_size_is_what_it_weighs(stateful: Golden) -> None:
    told = stateful.size_bytes(1_000, is_whole=True)
    shipped = stateful.shipped(1_000, is_whole=True)
    outputs = {"y": shipped.source["y"], "next": shipped.source["next"]}
    artifact = dump_arrays(artifact_file(outputs, shipped.layout, (), is_whole=True))
    weighs = len(shipped.inputs) + len(shipped.source_file) + len(artifact)
    assert weighs <= told <= compact.budget(1_000)
    assert told - weighs < 12_000
