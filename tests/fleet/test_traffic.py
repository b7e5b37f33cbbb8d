"""What a device's own traffic explains of its latency: taken off where it is not the release's doing, and only there."""

import numpy as np
import pytest

from fleet.rules import traffic
from fleet.rules.evalues import Floats
from fleet.rules.scores import Scores


def scored(level: Floats) -> Scores:
    one = np.ones(len(level))
    return Scores(level, one, one * 1e-6, one * 0)


def arms(
    seed: int, *, follows: float = 1.0, slower: float = 0.1, more: float = 0.0
) -> tuple[Scores, Scores, tuple[Floats, Floats]]:
    """24 canaries and 200 control devices whose latency follows their traffic by so much; `more` traffic for canaries."""
    chance = np.random.default_rng(seed)
    x, y = chance.normal(more, 0.1, 24), chance.normal(0, 0.1, 200)
    moved = slower + follows * (x - more) + chance.normal(0, 0.05, 24)
    stayed = follows * y + chance.normal(0, 0.05, 200)
    return scored(moved), scored(stayed), (x, y)


def contrast(moved: Scores, stayed: Scores) -> tuple[float, float]:
    """Difference of means, and its standard error."""
    a, b = moved.score, stayed.score
    return float(a.mean() - b.mean()), float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))


def test_the_same_harm_is_seen_more_sharply_without_the_load() -> None:
    moved, stayed, x = arms(1)
    harm, se = contrast(*traffic.taken_off(moved, stayed, x))
    _, before = contrast(moved, stayed)
    assert harm == pytest.approx(0.1, abs=0.025)
    assert se < 0.7 * before


def test_where_traffic_says_nothing_of_latency_little_changes() -> None:
    moved, stayed, x = arms(2, follows=0.0)
    plain, found = contrast(moved, stayed), contrast(*traffic.taken_off(moved, stayed, x))
    assert found == pytest.approx(plain, rel=0.1)


def test_a_release_is_not_excused_by_the_requests_that_it_causes() -> None:
    moved, stayed, x = arms(3, more=0.2)
    assert traffic.taken_off(moved, stayed, x) == (moved, stayed)


def test_a_slowness_that_comes_with_less_traffic_is_not_explained_by_it() -> None:
    """Callers that wait for answers: slower is fewer requests, in both arms."""
    moved, stayed, x = arms(4, follows=-1.0)
    found = traffic.taken_off(moved, stayed, x)
    assert contrast(*found) == contrast(moved, stayed)


def test_few_devices_show_no_slope() -> None:
    moved, stayed, (x, y) = arms(5)
    few = moved.take(np.arange(24) < 5), stayed.take(np.arange(200) < 6)
    assert traffic.taken_off(*few, (x[:5], y[:6])) == few


def test_a_harmless_release_is_not_called_harmful_more_often() -> None:
    beyond = 0
    for seed in range(400):
        moved, stayed, x = arms(100 + seed, slower=0.0)
        harm, se = contrast(*traffic.taken_off(moved, stayed, x))
        beyond += harm > 2.33 * se
    assert beyond <= 12, "at one percent"
