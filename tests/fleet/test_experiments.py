"""Experiments: the split is fixed, the interval holds at every look, and arms that are not what was asked are called."""

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.sketch import of
from edgekit.wire.messages import DeploymentWindow, Moments
from fleet.rules import experiment
from fleet.rules.experiment import Arm, Goal, Outcome, Unit

SOLD = Goal("metric:sold", is_more_better=True)
LATE = 10_000.0


def units(arm: Arm, values: list[float], *, joined_at: float = 0.0, windows: int = 9) -> list[Unit]:
    return [
        Unit(f"{arm}{n}", arm, joined_at, windows, 100, 1, 50.0, 50.0 * value)
        if windows
        else Unit(f"{arm}-{n}", arm, joined_at)
        for n, value in enumerate(values)
    ]


def normal(count: int, mean: float, seed: int) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, 0.1, count))


@pytest.mark.parametrize(
    ("text", "metric", "more"),
    [
        ("metric:sold", "metric:sold", True),
        ("min metric:wait", "metric:wait", False),
        ("error_rate", "error_rate", False),
        ("latency_mean", "latency_mean", False),
    ],
)
def test_goals(text: str, metric: str, more: bool) -> None:
    assert experiment.parse_goal(text) == Goal(metric, more)


@pytest.mark.parametrize("text", ["", "sold", "latency_p95", "metric:", "max", "metric:a > 3"])
def test_what_is_no_goal_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="goal"):
        experiment.parse_goal(text)


@pytest.mark.parametrize(("text", "share"), [("50/50", 0.5), ("90/10", 0.9), (" 30 / 70 ", 0.3)])
def test_splits(text: str, share: float) -> None:
    assert experiment.parse_split(text) == share


@pytest.mark.parametrize("text", ["", "50", "50/40", "0/100", "100/0", "a/b"])
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="split"):
        experiment.parse_split(text)


def test_the_split_is_about_what_was_asked_never_changes_and_is_another_for_each_experiment() -> None:
    names = [f"d{n}" for n in range(4000)]
    first = [experiment.arm_of("e1", name, 0.3) for name in names]
    assert first == [experiment.arm_of("e1", name, 0.3) for name in names]
    assert first.count("A") / len(names) == pytest.approx(0.3, abs=0.03)
    other = [experiment.arm_of("e2", name, 0.3) for name in names]
    both = sum(a == b == "A" for a, b in zip(first, other, strict=True))
    assert both / len(names) == pytest.approx(0.09, abs=0.02)


def test_a_window_says_how_often_it_saw_the_goal() -> None:
    window = DeploymentWindow(
        "d", "a" * 64, 10, 2, infer_ms=of([1.0] * 10), metrics={"metric:sold": Moments(4, 3.0)}
    )
    assert experiment.observed(SOLD, window) == (4, 3)
    assert experiment.observed(Goal("error_rate", is_more_better=False), window) == (10, 2)
    count, logs = experiment.observed(Goal("latency_mean", is_more_better=False), window)
    assert count == 10
    assert logs / count == pytest.approx(0, abs=0.011)
    assert experiment.observed(Goal("metric:other", is_more_better=True), window) == (0, 0)


def test_a_clear_difference_names_the_better_release_in_words() -> None:
    found = experiment.judge(
        SOLD, units("A", normal(60, 1.0, 1)) + units("B", normal(60, 1.2, 2)), 0.5, 120, LATE
    )
    assert found.outcome is Outcome.BETTER_B
    assert found.words.startswith(
        "B is better, with 95 % certainty at any number of looks: metric:sold is 1.2"
    )
    assert found.low is not None
    assert found.low > 0


def test_less_may_be_better() -> None:
    goal = Goal("metric:wait", is_more_better=False)
    found = experiment.judge(
        goal, units("A", normal(60, 1.0, 1)) + units("B", normal(60, 1.2, 2)), 0.5, 120, LATE
    )
    assert found.outcome is Outcome.BETTER_A


def test_no_difference_is_not_decided_and_few_devices_wait() -> None:
    same = units("A", normal(60, 1.0, 1)) + units("B", normal(60, 1.0, 2))
    assert experiment.judge(SOLD, same, 0.5, 120, LATE).outcome is Outcome.OPEN
    few = units("A", normal(9, 1.0, 1)) + units("B", normal(12, 5.0, 2))
    found = experiment.judge(SOLD, few, 0.5, 120, LATE)
    assert found.outcome is Outcome.WAITING
    assert "9 and 12 devices" in found.words


def test_one_device_decides_nothing() -> None:
    arms = units("A", normal(40, 1.0, 1)) + units("B", [*normal(39, 1.0, 2), 1e15])
    assert experiment.judge(SOLD, arms, 0.5, 80, LATE).outcome is Outcome.OPEN


def test_an_arm_that_loses_devices_is_called_before_anything_is_said_of_the_goal() -> None:
    arms = (
        units("A", normal(300, 1.0, 1)) + units("B", normal(200, 1.5, 2)) + units("B", [0.0] * 90, windows=0)
    )
    found = experiment.judge(SOLD, arms, 0.5, 600, LATE)
    assert found.outcome is Outcome.MISMATCH
    assert "300 and 200 devices report" in found.words


def test_devices_that_had_no_time_to_fetch_yet_are_no_mismatch() -> None:
    """A runs what the devices had; B has to be fetched first."""
    arms = units("A", normal(300, 1.0, 1), joined_at=LATE - 60) + units(
        "B", [0.0] * 300, joined_at=LATE - 60, windows=0
    )
    assert experiment.judge(SOLD, arms, 0.5, 600, LATE).outcome is Outcome.WAITING


def test_the_ratio_is_seldom_called_wrong_at_any_of_many_looks() -> None:
    chance = np.random.default_rng(5)
    called = 0
    for _ in range(300):
        a = np.cumsum(chance.random(1000) < 0.5)
        looks = range(20, 1000, 20)
        called += any(experiment.ratio_odds(int(a[n]), n + 1 - int(a[n]), 0.5) >= 100 for n in looks)
    assert called <= 6


@pytest.mark.parametrize("arriving", [True, False])
def test_the_interval_covers_the_truth_at_all_looks_together(arriving: bool) -> None:
    """Devices that differ, each seen more and more often; either all from the start, or arriving."""
    chance = np.random.default_rng(7)
    missed, runs, n, looks = 0, 200, 120, 40
    for _ in range(runs):
        own = chance.normal(1.0, 0.2, (2, n)) + np.array([[0.0], [0.1]])
        seen = (
            np.cumsum(chance.normal(0, 0.6, (looks, 2, n)), axis=0) / np.arange(1, looks + 1)[:, None, None]
        )
        for look in range(2, looks):
            there = max(10, n * (look + 1) // looks) if arriving else n
            left, right = experiment.tamed(*(own + seen[look])[:, :there])
            half = experiment.half_width(left, right, 2 * n)
            if abs(right.mean() - left.mean() - 0.1) > half:
                missed += 1
                break
    assert missed / runs <= 0.05
