"""The index against a reference: what it is where nothing moved, what bunches are worth, and when nothing is said."""

import math

import numpy as np
import pytest

from edgekit import drift
from edgekit.manifest import Histogram, Reference

BINS = 10


def reference(worth=4000.0, count=4000):
    return Histogram([float(edge) for edge in range(BINS + 1)], [count // BINS] * BINS, worth)


def independent(rng, blocks, size, shares=None):
    return rng.multinomial(size, shares or [1 / BINS] * BINS, blocks).tolist()


def test_the_index_is_as_it_is_defined():
    assert drift.index([0.5, 0.5], [0.5, 0.5]) == 0
    assert drift.index([0.8, 0.2], [0.5, 0.5]) == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4))


def test_without_drift_the_index_is_nothing_on_average_once_chance_is_taken_off():
    rng = np.random.default_rng(1)
    found = [drift.measured(reference(), independent(rng, 32, 30)) for _ in range(300)]
    raw = [drift.index(drift._smoothed([sum(c) / 960 for c in zip(*b, strict=True)], 960), [0.1] * 10)
           for b in (independent(rng, 32, 30) for _ in range(300))]  # fmt: skip
    assert np.mean(raw) > 0.008, "which the plain index is not"
    assert np.mean([one.noise for one in found]) == pytest.approx(9 * (1 / 960 + 1 / 4000), rel=0.25)
    # Half of it is clipped at 0.
    assert np.mean([one.index for one in found]) < 0.003


def test_a_reference_that_is_worth_little_is_taken_into_account():
    rng = np.random.default_rng(1)
    blocks = independent(rng, 32, 100)
    rich, poor = drift.measured(reference(), blocks), drift.measured(reference(worth=40.0), blocks)
    assert rich.is_known
    assert not poor.is_known
    assert poor.noise - rich.noise == pytest.approx(9 * (1 / 40 - 1 / 4000))


def test_values_that_come_in_bunches_are_worth_what_the_bunches_differ():
    rng = np.random.default_rng(2)
    shares = [1 / BINS] * BINS
    alone = [drift.worth(independent(rng, 32, 100), shares) for _ in range(100)]
    # Ten alike at a time: a tenth of it.
    bunched = [drift.worth((rng.multinomial(10, shares, 32) * 10).tolist(), shares) for _ in range(100)]
    assert np.mean(alone) == pytest.approx(3200, rel=0.35)
    assert np.mean(bunched) == pytest.approx(320, rel=0.35)
    assert max(alone) <= 3200


def test_blocks_like_the_one_before_are_worth_less():
    rng = np.random.default_rng(3)
    shares = [1 / BINS] * BINS
    # Each drawn once and seen in four blocks, one after the other.
    blocks = np.repeat(rng.multinomial(100, shares, 8), 4, axis=0).tolist()
    assert drift.worth(blocks, shares) < 0.5 * drift.worth(blocks, shares, "none")


def test_without_counting_bunches_for_what_they_are_worth_there_would_be_false_alarms(monkeypatch):
    """What judges is itself judged: every value counted as one, a third of well devices is above the limit."""
    rng = np.random.default_rng(4)
    made = [(rng.multinomial(1, [1 / BINS] * BINS, 32) * 100).tolist() for _ in range(200)]

    def alarms():
        found = [drift.measured(reference(), blocks) for blocks in made]
        return sum(one.is_known and one.index > drift.LIMIT for one in found) / 200

    assert alarms() <= 0.01
    monkeypatch.setattr(drift, "worth", lambda blocks, *_, **__: float(sum(map(sum, blocks))))
    assert alarms() > 0.3


def test_too_little_says_nothing_unless_it_is_far_beyond_chance():
    rng = np.random.default_rng(5)
    assert not drift.measured(reference(), independent(rng, 16, 10)).is_known
    far = drift.measured(reference(), independent(rng, 32, 14, [0.91] + [0.01] * 9))
    assert far.worth < 50 * BINS
    assert far.is_known
    assert far.index > 1


@pytest.mark.parametrize(
    ("known", "blocks"),
    [
        (reference(), [[0] * BINS] * 30),
        (Histogram([-0.5, 0.5], [0]), [[5]] * 30),
        (Histogram([0.0, 1.0], [100]), [[5]] * 30),
        (Histogram([0.0, 1.0, 2.0], [0, 0]), [[5, 5]] * 30),
        (reference(), [[5] * BINS]),
    ],
)
def test_where_nothing_can_be_compared_nothing_is(known, blocks):
    assert drift.measured(known, blocks) is None


def test_what_is_watched_of_a_strangers_bundle_is_bounded():
    small, wide = Histogram([0.0, 1.0], [1]), Histogram([float(n) for n in range(41)], [1] * 40)
    torn = Histogram([0.0], [1, 2])
    many = {f"x{n}": small for n in range(100)}
    kept = drift.bounded(Reference({"wide": wide, "torn": torn, **many}, {"y": small}))
    assert list(kept.inputs) == [f"x{n}" for n in range(drift.MOST)]
    assert kept.outputs == {}
