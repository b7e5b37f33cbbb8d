"""Who is named drifted: not by what passes, not by chance, and in time."""

import math
import random

import pytest

from edgekit.wire.messages import Moments
from fleet.rules import drift
from fleet.rules.drift import LIMIT, MAX_BLOCKS, MIN_BLOCKS, Track
from fleet.rules.evidence import Sums


def blocks(
    rng: random.Random, count: int, level: float, *, alike: float = 0.5, night: float = 0.0
) -> list[float]:
    """An index that wanders around its level, an hour after the other; with `night` it also swings by day."""
    wander, phase = rng.gauss(0, 0.4), rng.random()
    found = []
    for hour in range(count):
        wander = alike * wander + math.sqrt(1 - alike * alike) * rng.gauss(0, 0.4)
        swing = night * math.sin(2 * math.pi * (hour / 24 + phase))
        found.append(level * math.exp(wander + swing))
    return found


def test_too_little_finds_nothing_however_far_it_is_off() -> None:
    assert drift.chance([5.0] * (MIN_BLOCKS - 1)) is None
    found = drift.chance([5.0] * MIN_BLOCKS)
    assert found is not None
    assert found < 1e-6


@pytest.mark.parametrize("night", [0.0, 0.7])
def test_a_device_at_the_limit_is_hardly_ever_far_beyond_it(night: float) -> None:
    rng = random.Random(5)
    found = [drift.chance(blocks(rng, 48, LIMIT, night=night)) for _ in range(3000)]
    for level, at_most in ((0.05, 1.5), (0.01, 2.5)):
        assert sum(p is not None and p <= level for p in found) / len(found) <= at_most * level


def named_in(after: int, rng: random.Random) -> float:
    """The share that is found at a chance of 1/4 % of devices that were well for two days, so many hours after they drifted."""
    made = [[0.0] * MAX_BLOCKS + blocks(rng, after, 0.6) for _ in range(100)]
    return sum((drift.chance(one[-MAX_BLOCKS:]) or 0.0) <= 0.0025 for one in made) / 100


@pytest.mark.parametrize(("damage", "is_red"), [("", False), ("newest", True)])
def test_a_good_day_before_does_not_hide_what_has_drifted_for_a_day(
    monkeypatch: pytest.MonkeyPatch, damage: str, is_red: bool
) -> None:
    if damage:
        monkeypatch.setattr(drift, "_NEWEST_PART", 1e-12)
    assert (named_in(26, random.Random(3)) < 0.5) is is_red


def test_few_of_those_named_are_named_falsely_and_most_that_drifted_are_named() -> None:
    rng = random.Random(7)
    false_shares, found_shares = [], []
    for _ in range(20):
        chances = {}
        for number in range(1000):
            kind = "drifted" if number < 50 else "at the limit" if number < 250 else "well"
            level = {"drifted": 0.5, "at the limit": LIMIT, "well": 0.05}[kind]
            chances[kind, number] = drift.chance(blocks(rng, 36, level)) or 0.0
        named = drift.discoveries(chances)
        false_shares.append(sum(kind != "drifted" for kind, _ in named) / max(1, len(named)))
        found_shares.append(sum(kind == "drifted" for kind, _ in named) / 50)
    assert sum(false_shares) / 20 <= drift.FALSE_SHARE
    assert sum(found_shares) / 20 >= 0.85


def test_without_the_correction_for_being_alike_it_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """What judges is itself judged: each block counted as one of its own names too many."""
    monkeypatch.setattr(drift, "_worth", lambda *_: 1.0)
    rng = random.Random(5)
    found = [drift.chance(blocks(rng, 48, LIMIT)) for _ in range(3000)]
    assert sum(p is not None and p <= 0.01 for p in found) / len(found) > 0.025


def test_the_procedure_is_benjamini_and_hochbergs() -> None:
    # The example of their paper (table 1): four are rejected at 0.05, three by Bonferroni.
    paper = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
    ]  # fmt: skip
    assert drift.discoveries(dict(enumerate(paper))) == {0, 1, 2, 3}
    assert drift.discoveries({}) == set()
    assert drift.discoveries({"a": 0.2}) == set()
    # A step-up: one that is not small enough by itself is named if one behind it is.
    assert drift.discoveries({"a": 0.04, "b": 0.045}) == {"a", "b"}


def older(mean: float, windows: int = 60) -> Sums:
    return Sums(windows=windows, metrics={"drift_psi": Moments(windows, mean * windows)})


def test_a_block_counts_once_and_only_the_newest_are_kept() -> None:
    track = Track().grown(older(0.1))
    assert track.blocks == (0.1,)
    assert track.grown(older(0.1)) is track
    for number in range(60):
        track = track.grown(older(0.2 + number / 1000))
    assert len(track.blocks) == MAX_BLOCKS
    assert track.blocks[-1] == pytest.approx(0.259)
    assert Track().grown(Sums(windows=60)) == Track(), "a device that says nothing of drift"
    assert track.level == pytest.approx(0.2355, rel=0.01)
