"""Timing in heats: clear losers early out, doubt timed longer, pairs kept."""

import time

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converters.judge.select import Ratio
from converters.measure import alone, heats, latency
from converters.measure.race import Timing
from converters.rounds import tournament
from edgekit.manifest import EngineSpec, TensorSpec

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


def test_only_the_fastest_are_worth_another_way():
    once = {"fast": 1.0, "near": 1.9, "far": 2.1, "refused": 0.5}
    assert heats.worth_other_ways(once, {"fast", "near", "far"}) == {"fast", "near"}
    many = {f"m{number}": 1 + number / 100 for number in range(20)}
    assert heats.worth_other_ways(many, many) == {f"m{number}" for number in range(heats.MOST_TRIED)}
    assert heats.worth_other_ways({}, set()) == set()


@pytest.mark.parametrize(
    ("own", "leader", "taken"),
    [
        ({"one": (0.7, 0.8, 0.9)}, {"one": (1, 1, 1)}, "one"),
        ({"one": (0.7, 0.8, 1.0)}, {"one": (1, 1, 1)}, None),  # in doubt
        ({"one": (0.7, 0.8, 0.9)}, {"one": (1.1, 1.2, 1.3)}, None),  # faster than it was, and still no winner
        ({"one": (0.7, 0.8, 0.9), "two": (0.5, 0.6, 0.7)}, {"one": (0.9, 1, 2), "two": (1, 1, 1)}, "two"),
        ({}, {}, None),
    ],
)
def test_another_way_is_taken_where_it_is_faster_beyond_doubt_and_may_win(own, leader, taken):
    ratios = [{name: Ratio(*ends) for name, ends in each.items()} for each in (own, leader)]
    assert heats.better_way(*ratios) == taken


def test_who_is_far_behind_gets_a_few_rounds_clear_losers_and_what_is_refused_one_heat_and_finalists_more():
    runs = {
        "fast": sleeper(0.002),
        "slow": sleeper(0.0028),
        "far": sleeper(0.012),
        "refused": sleeper(0.0005),
        "refused and far": sleeper(0.012),
    }
    found = latency.interleaved(runs, FEEDS, {"fast", "slow", "far"}, budget_s=3.0)
    counts = {name: len(each.rounds) for name, each in found.items()}
    assert counts["far"] == counts["refused and far"] == latency.FIRST_ROUNDS
    assert counts["slow"] == counts["refused"] == latency.HEAT_ROUNDS
    assert counts["fast"] > latency.HEAT_ROUNDS
    assert latency.ratio(found["far"], found["fast"]).low > 3


def test_a_moment_in_which_the_machine_was_busy_is_not_how_long_a_short_call_takes(monkeypatch):
    now, seconds = [0.0], iter([0.02, 0.003, 0.003, 0.003])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run(feed):
        now[0] += next(seconds, 0.0005)
        return feed

    assert latency.warmed(run, FEEDS) == pytest.approx(0.0005)


def rounds(ms, count=12, spread=0.0):
    """So many rounds of a candidate, alternating around its median."""
    found = tuple(ms * (1 + spread * (-1) ** number) for number in range(count))
    return latency.Latency(ms, ms, found)


@pytest.mark.parametrize(
    ("times", "standing", "is_final"),
    [
        ({"out": rounds(1), "a": rounds(1.5), "b": rounds(2)}, "a b out", True),
        (
            {"out": rounds(1), "a": rounds(1.5), "b": rounds(1.51)},
            "a b out",
            True,
        ),  # equal for anybody's purpose
        ({"out": rounds(1), "a": rounds(1.5), "b": rounds(1.6, spread=0.1)}, "a b out", False),  # in doubt
        ({"out": rounds(1), "a": rounds(2, 4), "b": rounds(3, 4)}, "a b out", False),  # nobody is timed well
        ({"out": rounds(1), "a": rounds(1.5)}, "a b out", False),  # who came later
        ({"a": rounds(1), "b": rounds(1.5)}, "a b", True),
        ({"out": rounds(1)}, "out", False),
    ],
)
def test_a_race_is_not_run_again_where_it_told_who_is_fastest_of_those_that_are_left(
    times, standing, is_final
):
    standing = standing.split()
    left = [name for name in standing if name != "out"]
    assert tournament.is_final(Timing(times, {}), standing, left) is is_final


def test_a_race_ends_when_nobody_is_in_doubt():
    found = latency.interleaved(
        {"fast": sleeper(0.002), "slow": sleeper(0.006)}, FEEDS, {"fast", "slow"}, budget_s=6.0
    )
    assert len(found["fast"].rounds) == latency.SURE_ROUNDS


def test_a_refused_candidate_alone_is_still_measured():
    found = latency.interleaved({"only": sleeper(0.0002)}, FEEDS, set(), budget_s=0.1)
    assert found["only"].p50_ms > 0


def test_what_is_shown_agrees_with_the_ratio_that_decided_although_the_machine_slowed_down():
    """The loser was timed in the fast first rounds only; the machine then took twice as long for everybody."""
    random = np.random.default_rng(0)
    pace = np.concatenate([np.ones(12), np.full(48, 2.0)])
    leader = (0.005 * pace * random.lognormal(0, 0.02, 60))[:, None].repeat(5, 1)
    loser = (0.0054 * random.lognormal(0, 0.02, 12))[:, None].repeat(5, 1)
    found = latency.beside_leader({"leader": leader, "loser": loser})
    told = latency.ratios(found)["loser", "leader"]
    assert told.low > 1
    assert abs(told.median - 1.08) < 0.02
    assert found["loser"].p50_ms / found["leader"].p50_ms == pytest.approx(told.median)
    assert found["loser"].p95_ms >= found["loser"].p50_ms
    assert len(found["loser"].rounds) == 12


def huge_output(path):
    """40 MB of output for a few bytes of input."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [10, 1_000_000])
    nodes = [helper.make_node("Expand", ["x", "shape"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 1])], [value("y", TensorProto.FLOAT, [10, 1_000_000])], [shape]
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_memory_is_the_engines_and_not_that_of_all_outputs(tmp_path):
    huge_output(tmp_path / "m.onnx")
    job = alone.Job(
        str(tmp_path),
        EngineSpec("onnxruntime", "", "m.onnx", {}, 1),
        (TensorSpec("x", "float32", (1, 1)),),
        (TensorSpec("y", "float32", (10, 1_000_000)),),
        (),
        "",
        "",
    )
    feeds = [{"x": np.full((1, 1), index, np.float32)} for index in range(8)]
    found = alone.peak_memory(job, feeds, tmp_path, {})
    assert 10 < found.base_mb < found.peak_mb
    # Python, numpy and the engine take about 100 MB; one output is 40, a second may be on its way.
    assert found.peak_mb - found.base_mb < 180
    one = alone.peak_memory(job, feeds[:1], tmp_path, {})
    assert found.peak_mb < one.peak_mb + 60
