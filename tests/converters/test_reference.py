"""What a bundle carries for devices to be held against: bins, what they are worth, channels, and no more than fits."""

import numpy as np
import pytest

from converters.bundle.reference import BINS, histogram, of_input
from converters.work.watched import VALUES, Watched, looked_at, sampled

EACH = np.arange(200)


def samples(rng, count=200, *, alike=0.0, shape=(50,)):
    """Values of variance 1, of which a share is of the sample."""
    level = rng.normal(size=(count, *([1] * len(shape))))
    return list(np.sqrt(alike) * level + np.sqrt(1 - alike) * rng.normal(size=(count, *shape)))


def test_bins_hold_about_as_much_each():
    found = histogram(samples(np.random.default_rng(1)), EACH)
    assert len(found.counts) == BINS
    assert sum(found.counts) == 200 * 50
    assert max(found.counts) < 1.01 * min(found.counts)


@pytest.mark.parametrize(("alike", "least", "most"), [(0.0, 8000, 10_000), (0.5, 400, 2600), (1.0, 150, 260)])
def test_values_of_one_sample_are_worth_what_samples_differ(alike, least, most):
    found = histogram(samples(np.random.default_rng(2), alike=alike), EACH)
    assert least <= found.worth <= most


def test_samples_of_one_sequence_are_taken_together():
    rng = np.random.default_rng(3)
    one = samples(rng, 20, alike=1.0)
    apart = histogram([one[at // 10] for at in range(200)], EACH)
    together = histogram([one[at // 10] for at in range(200)], EACH // 10)
    assert together.worth < 0.25 * apart.worth


def test_channels_with_ranges_of_their_own_are_watched_each():
    rng = np.random.default_rng(4)
    made = samples(rng, shape=(1, 3, 8, 8))
    axis, alike = of_input("x", made, EACH, 40)
    assert (axis, list(alike)) == (None, ["x"])
    scaled = [sample * np.array([1.0, 1.0, 30.0]).reshape(1, 3, 1, 1) for sample in made]
    axis, apart = of_input("x", scaled, EACH, 40)
    assert (axis, list(apart)) == (1, ["x/0", "x/1", "x/2"])
    assert apart["x/2"].edges[-1] > 10 * apart["x/0"].edges[-1]
    axis, last = of_input("x", [np.moveaxis(sample, 1, -1) for sample in scaled], EACH, 40)
    assert (axis, len(last)) == (3, 3)
    assert of_input("x", scaled, EACH, 2)[0] is None, "where there is no room"


def test_columns_of_a_row_of_features_are_channels():
    rng = np.random.default_rng(5)
    axis, found = of_input(
        "x", [row * np.array([[1.0, 100.0]]) for row in samples(rng, shape=(1, 2))], EACH, 40
    )
    assert (axis, list(found)) == (1, ["x/0", "x/1"])


def test_only_some_values_of_some_samples_are_kept():
    assert len(looked_at(5000)) == 256
    large = np.zeros((64, 64, 3), np.float32)
    large[..., 0] = 1.0
    found = sampled(large)
    assert found.size == VALUES
    assert 0.25 < found.mean() < 0.42, "of all channels, not of every third value"
    watched = Watched()
    watched.add(np.array([[3.0, 0.0]], np.float32))
    watched.add(np.array([[1]], np.int64))
    assert [len(watched.values), len(watched.top), len(watched.peak)] == [2, 1, 1]
