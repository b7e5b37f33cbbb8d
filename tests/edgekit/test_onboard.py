"""What boards measured, and which bundle that makes the pick."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import onboard, pairs
from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure, Where
from edgekit.manifest import Contract
from edgekit.wire import commands as wire
from edgekit.wire.commands import Measured, Timed

OWN, FAST, SAME = ("a" * 64, "b" * 64, "c" * 64)
RECIPES = {OWN: "onnxruntime/fp32", FAST: "onnxruntime/static-int8", SAME: "onnxruntime/dynamic-int8"}
NO_LIMIT = Contract()


def timed(digest: str, ms: float, *, seed: int = 0, reason: str = "", memory: float = 50.0) -> Timed:
    """A machine that is slow now and then: the same rounds are slow for all."""
    slow = random.Random(1)
    noise = random.Random(f"{digest}{seed}")
    rounds = tuple(ms * slow.choice((1.0, 1.0, 3.0)) * noise.uniform(0.97, 1.03) for _ in range(40))
    test = wire.Tested(digest, passed=not reason, reason=reason)
    if reason:
        return Timed(test, "", "", 0)
    middle = pairs.median(rounds)
    return Timed(
        test, "onnxruntime", "1.32.0", 4, p50_ms=middle.median, p50_low_ms=middle.low, p50_high_ms=middle.high,
        p95_ms=3 * ms, rounds_ms=rounds, memory_mb=memory,
    )  # fmt: skip


def board(*bundles: Timed) -> Measured:
    return Measured(bundles, cpu="Cortex-A76", isa=("neon", "dotprod"))


def test_the_one_that_is_faster_beyond_doubt_is_picked() -> None:
    boards = {"lab-1": board(timed(OWN, 4.0), timed(FAST, 2.0), timed(SAME, 4.0))}
    choice = onboard.choose(boards, list(RECIPES), OWN, NO_LIMIT)
    assert choice.picked == FAST
    ratio = next(one.ratio for one in choice.standings if one.sha256 == FAST)
    assert ratio is not None
    assert 0.48 < ratio.low <= ratio.median <= ratio.high < 0.52


def test_without_a_difference_the_pick_stays() -> None:
    boards = {"lab-1": board(timed(OWN, 4.0), timed(SAME, 4.0))}
    assert onboard.choose(boards, [OWN, SAME], OWN, NO_LIMIT).picked == OWN


def test_what_fails_on_one_board_is_not_picked_on_another_s_word() -> None:
    good = board(timed(OWN, 4.0), timed(FAST, 2.0))
    bad = board(timed(OWN, 4.0), timed(FAST, 2.0, reason="output 'y' is off by 3"))
    choice = onboard.choose({"lab-1": good, "lab-2": bad}, [OWN, FAST], OWN, NO_LIMIT)
    assert choice.picked == OWN
    assert "on lab-2: output 'y' is off by 3" in choice.standings[1].objection


def test_a_board_that_says_otherwise_counts() -> None:
    """Twice as fast on one and twice as slow on the other is no win."""
    boards = {
        "lab-1": board(timed(OWN, 4.0), timed(FAST, 2.0)),
        "lab-2": board(timed(OWN, 4.0, seed=2), timed(FAST, 8.0, seed=2)),
    }
    assert onboard.choose(boards, [OWN, FAST], OWN, NO_LIMIT).picked == OWN


@pytest.mark.parametrize("contract", [Contract(latency_p95_ms=8.0), Contract(memory_mb=55.0)])
def test_who_misses_the_contract_on_a_board_gives_way(contract: Contract) -> None:
    boards = {"lab-1": board(timed(OWN, 4.0, memory=60.0), timed(SAME, 2.5))}
    choice = onboard.choose(boards, [OWN, SAME], OWN, contract)
    assert choice.picked == SAME
    assert "the contract says" in choice.reason
    faster = {"lab-1": board(timed(OWN, 2.5), timed(FAST, 1.0, memory=80.0))}
    assert onboard.choose(faster, [OWN, FAST], OWN, Contract(memory_mb=55.0)).picked == OWN


def test_where_nothing_may_be_picked_that_is_said() -> None:
    broken = {"lab-1": board(timed(OWN, 1, reason="wrong"), timed(FAST, 1, reason="wrong too"))}
    choice = onboard.choose(broken, [OWN, FAST], OWN, NO_LIMIT)
    assert (choice.picked, "wrong" in choice.reason) == ("", True)


def test_evidence_says_which_boards_measured_and_keeps_the_rest() -> None:
    guess = Figure(1.0, "estimated", Where("roofline"), "ms", 9.0)
    accuracy = Figure(0.9, "measured", Where("x86"))
    built = BuildEvidence(
        "digits", "1", "raspberry-pi-5", RECIPES[FAST], "top1", accuracy, accuracy, guess, guess,
        {"latency_p95_ms": "unverified", "size_mb": "met"},
        tuple(CandidateEvidence(recipe, "picked" if digest == OWN else "alternate", "guessed", latency_p50_ms=guess)
              for digest, recipe in {**RECIPES, "d": "litert/fp32"}.items()),
        contract=Contract(latency_p95_ms=8.0),
    )  # fmt: skip
    boards = {
        "lab-1": board(timed(OWN, 2.0), timed(FAST, 1.0)),
        "lab-2": board(timed(OWN, 2.2), timed(FAST, 1.1)),
    }
    choice = onboard.choose(boards, [OWN, FAST], OWN, built.contract)
    told = onboard.recorded(built, boards, {OWN: RECIPES[OWN], FAST: RECIPES[FAST]}, FAST, choice)
    assert (told.latency_p50_ms.how, told.latency_p50_ms.on.device) == ("measured", "lab-1, lab-2")
    assert (told.latency_p50_ms.on.engine, told.latency_p50_ms.on.threads) == ("onnxruntime", 4)
    assert told.budgets == {"latency_p95_ms": "met", "size_mb": "met"}
    assert told.accuracy == accuracy
    by_recipe = {one.recipe: one for one in told.candidates}
    assert by_recipe[RECIPES[FAST]].status == "picked"
    assert by_recipe[RECIPES[OWN]].status == "alternate"
    assert by_recipe["litert/fp32"].latency_p50_ms == guess


@given(st.lists(st.floats(0.01, 1e3), min_size=3, max_size=30), st.floats(0.1, 10))
def test_a_ratio_is_exact_where_rounds_scale_together(rounds: list[float], factor: float) -> None:
    found = pairs.ratio([factor * one for one in rounds], rounds)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


def test_no_rounds_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="no round"):
        pairs.ratio([], [1.0])
    with pytest.raises(ValueError, match="no boards"):
        pairs.pooled([])
