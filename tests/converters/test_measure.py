"""Timing in heats: clear losers early out, doubt timed longer, pairs kept."""

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from converters.judge.select import Ratio
from converters.measure import heats, latency

FEEDS = [{"x": np.zeros(1, np.float32)}]
# Lowest end, median over lowest, highest end over median.
RATIOS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(st.floats(0.2, 5), st.floats(1, 2), st.floats(1, 2)).map(
        lambda parts: Ratio(parts[0], parts[0] * parts[1], parts[0] * parts[1] * parts[2])
    ),
)


def sleeper(seconds):
    def run(feed):
        time.sleep(seconds)
        return feed

    return run


@given(RATIOS)
def test_the_leader_goes_on_and_clear_losers_do_not(ratios):
    racing = {**ratios, "leader": Ratio(1, 1, 1)}
    going_on = heats.contenders(racing)
    assert "leader" in going_on
    assert all(racing[name].low > 1.1 for name in set(racing) - going_on)


@given(RATIOS)
def test_only_ties_whose_medians_differ_need_another_heat(ratios):
    for name in heats.undecided({**ratios, "leader": Ratio(1, 1, 1)}):
        assert name != "leader"
        assert ratios[name].low <= 1 <= ratios[name].high
        assert abs(ratios[name].median - 1) > 0.02


def test_clear_losers_and_what_is_refused_get_one_heat_and_finalists_more():
    runs = {"fast": sleeper(0.0005), "slow": sleeper(0.004), "refused": sleeper(0.0005)}
    found = latency.interleaved(runs, FEEDS, {"fast", "slow"}, budget_s=1.0)
    assert len(found["slow"].rounds) == len(found["refused"].rounds) == latency.HEAT_ROUNDS
    assert len(found["fast"].rounds) > latency.HEAT_ROUNDS
    assert latency.ratio(found["slow"], found["fast"]).low > 2


def test_a_refused_candidate_alone_is_still_measured():
    found = latency.interleaved({"only": sleeper(0.0002)}, FEEDS, set(), budget_s=0.1)
    assert found["only"].p50_ms > 0
