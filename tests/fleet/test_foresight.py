"""What `start` promises of a stage, and the one budget that it follows from."""

import math

import pytest

from fleet.rules import budget, foresight, gates, stages
from fleet.rules.budget import Spent
from fleet.rules.foresight import Cut, Usual, foresee, hopeless

RELATIVE = (gates.parse("error_rate <= control + 0.5%"), gates.parse("latency_p95 <= 1.1 * control"))
KNOWN = Usual(window_s=60, requests=8.0)
FIRST, LAST, CLOSING = Cut("24", 24, 376), Cut("all devices", 390, 10), Cut("held", 400, 0, is_closing=True)


def harms(cut: Cut, soak_s: float = 1800.0) -> dict[str, float | None]:
    return {
        sight.gate.metric: sight.harm for sight in foresee(RELATIVE, (cut, LAST, CLOSING), KNOWN, soak_s)[0]
    }


def test_more_devices_and_a_longer_soak_see_smaller_harms() -> None:
    few, many, longer = harms(FIRST), harms(Cut("100", 100, 300)), harms(FIRST, 7200.0)
    for metric in ("error_rate", "latency_p95", "lost", "install_failures"):
        assert many[metric] is not None
        assert few[metric] is not None
        assert many[metric] < few[metric]
    assert longer["latency_p95"] < few["latency_p95"]


def test_what_24_devices_see_is_what_the_benchmark_finds() -> None:
    """One point of errors is found in 24 devices, five percent of latency is not."""
    seen = harms(FIRST)
    assert seen["error_rate"] == pytest.approx(0.0065, abs=0.0025)
    assert 0.08 < seen["latency_p95"] < 0.2
    assert 0.15 < seen["lost"] < 0.35


def test_the_closing_stage_needs_no_control() -> None:
    seen = foresee(RELATIVE, (FIRST, LAST, CLOSING), KNOWN, 1800.0)
    assert hopeless((FIRST, LAST, CLOSING), seen, KNOWN) is None
    assert "satisfied beside the holdback" in seen[2][0].words


@pytest.mark.parametrize(
    ("text", "cut", "soak_s", "why"),
    [
        ("latency_p95 <= 1.01 * control", FIRST, 1800.0, "a wider limit"),
        ("latency_p95 <= 1.1 * control", Cut("1", 1, 99), 1800.0, "it needs 5 devices on the new"),
        ("latency_p95 <= 1.1 * control", FIRST, 240.0, "too short"),
        ("error_rate < 1%", Cut("1", 1, 3), 120.0, "use more devices"),
        ("install_failures < 5% min 40 devices", FIRST, 1800.0, "it needs 40 devices, this stage has 24"),
    ],
)
def test_a_gate_that_could_hardly_conclude_is_refused_with_a_way_out(
    text: str, cut: Cut, soak_s: float, why: str
) -> None:
    seen = foresee((gates.parse(text),), (cut,), KNOWN, soak_s)
    told = hopeless((cut,), seen, KNOWN)
    assert told is not None
    assert text in told
    assert why in told


def test_where_nothing_is_known_of_the_traffic_only_the_impossible_is_refused() -> None:
    unknown = Usual(window_s=60, requests=None)
    tight = (gates.parse("latency_p95 <= 1.03 * control"),)
    assert hopeless((FIRST,), foresee(tight, (FIRST,), unknown, 1800.0), unknown) is None
    alone = Cut("1", 1, 99)
    assert hopeless((alone,), foresee(tight, (alone,), unknown, 1800.0), unknown) is not None
    assert hopeless((FIRST,), foresee(tight, (FIRST,), KNOWN, 1800.0), KNOWN) is not None
    idle = Usual(window_s=60, requests=0.0)
    assert hopeless((FIRST,), foresee(tight, (FIRST,), idle, 1800.0), idle) is not None


def test_a_stage_moves_as_many_devices_as_promised() -> None:
    keys = {p: [stages.key("r1", f"{p}{n}") for n in range(count)] for p, count in (("a", 30), ("b", 7))}
    for share in (0.01, 0.2, 0.5, 1.0):
        stage = stages.Stage(share, "")
        limits = stages.thresholds(stage, keys)
        taken = sum(key <= limits[p] for p, own in keys.items() for key in own)
        assert taken == stages.moved_by(stage, {p: len(own) for p, own in keys.items()})


def test_the_budget_is_one_mean_of_all_gates_and_stages() -> None:
    for count in range(1, 8):
        weights = budget.stage_weights(count)
        assert math.isclose(sum(weights), 1.0)
        assert sorted(weights, reverse=True) == list(weights)
    weights = budget.gate_weights([*RELATIVE, gates.parse("lost <= 5%"), gates.parse("latency_p99 <= 9ms")])
    assert math.isclose(sum(weights.values()), 1.0)
    assert weights["latency_p95 <= 1.1 * control"] == weights["latency_p99 <= 9ms"]
    assert "latency_p95 <= 1.2 * before" not in budget.gate_weights(
        [gates.parse("latency_p95 <= 1.2 * before")]
    )


def test_no_evidence_is_one_whatever_came_before_and_closed_stages_stay_in_the_sum() -> None:
    assert math.isclose(budget.total(Spent(), 1.0, 0, 4), 1.0)
    assert math.isclose(budget.total(Spent(closed=(1.0, 1.0)), 1.0, 2, 4), 1.0)
    suspicious = budget.total(Spent(closed=(30.0,)), 1.0, 1, 4)
    assert suspicious > 10
    assert budget.total(Spent(closed=(30.0,)), 30.0, 1, 4) > budget.STOP


def test_overruling_evidence_leaves_half_of_the_stage() -> None:
    once = budget.total(Spent(resumed=1), 1000.0, 0, 2)
    assert once == pytest.approx(budget.total(Spent(), 1000.0, 0, 2) / 2, rel=0.01)
    assert math.isclose(budget.total(Spent(resumed=3), 1.0, 0, 2), 1.0)


def test_words_say_how_much_and_how_soon() -> None:
    sight = foresee(RELATIVE, (FIRST, LAST, CLOSING), KNOWN, 1800.0)[0][1]
    assert sight.words.startswith("latency_p95 <= 1.1 * control: sees +")
    assert "within 30m" in sight.words
    assert foresight.POWER == 0.9
