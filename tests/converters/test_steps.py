"""Progress: steps are counted once, and what is left is told from what was done."""

import pytest

from converters.commands.screen import Screen, describe, duration, estimate
from converters.work.steps import Steps


def two_targets():
    steps = Steps()
    steps.expect("pi", ["litert/fp32", "litert/static-int8"])
    steps.expect("x86", ["litert/fp32"])
    return steps


def test_every_candidate_of_every_target_counts_with_measuring_and_writing():
    assert (two_targets().done, two_targets().total) == (0, 7)


def test_a_step_counts_once_however_often_it_is_told():
    steps = two_targets()
    steps.made("litert/fp32")  # a worker's answer, for the target that asked first
    assert [step.target for step in steps.steps if step.is_done] == ["pi"]
    steps.made_for("pi", "litert/fp32")  # the same again, taken up by the target
    assert steps.done == 1
    for _ in range(3):
        steps.made("litert/fp32")
    assert steps.done == 2


def test_a_finished_target_has_nothing_left_whatever_was_skipped():
    steps = two_targets()
    steps.finish("pi", "measure")
    assert steps.done == 1
    steps.finish("pi")
    assert steps.done == 4
    steps.finish("x86")
    assert steps.share == 1
    assert steps.left_s(50.0) == 0


def test_what_is_left_follows_what_the_done_steps_took_and_is_not_guessed_too_early():
    steps = two_targets()
    assert steps.left_s(10.0) is None
    steps.finish("pi")
    assert steps.left_s(60.0) == pytest.approx(60.0 * 5 / 6)


def test_what_comes_to_be_known_on_the_way_is_expected_and_counted_then():
    steps = two_targets()
    steps.finish("x86")
    steps.expect_more("pi", "repair", 3, "litert/static-int8")
    steps.expect_more("pi", "trial", 2)
    assert (steps.done, steps.total) == (3, 12)
    steps.count("pi", "repair", "litert/static-int8")
    steps.count("pi", "trial")
    steps.count("x86", "trial")  # nobody expected one
    assert steps.done == 5
    # Fewer tries were needed, and the search ended early.
    steps.finish("pi", "repair", "litert/static-int8")
    steps.finish("pi", "trial")
    assert steps.done == 8
    steps.count("pi", "trial")
    assert steps.done == 8
    assert {step.kind for step in steps.steps if not step.is_done} == {"make", "measure", "write"}


@pytest.mark.proof
def test_a_build_counts_each_try_of_a_repair_and_each_trial_of_a_search(
    outlier, digits, run_build, tmp_path, monkeypatch
):
    seen = []

    def moved(screen, steps):
        kinds = [(step.kind, step.is_done) for step in steps.steps]
        told = {kind: (kinds.count((kind, True)), kinds.count((kind, False))) for kind, _ in kinds}
        seen.append(told)
        shown(screen, steps)

    shown = Screen._moved
    monkeypatch.setattr(Screen, "_moved", moved)
    result = run_build(
        *digits.flags(str(outlier), "x86-64-v3"), "--recipe", "onnxruntime/static-int8", "--search", "3",
        "--out", tmp_path / "dist",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tries = result.output.count("+mixed try ")
    assert tries >= 1
    assert {told["repair"][0] for told in seen if "repair" in told} >= set(range(tries + 1))
    assert {told["trial"] for told in seen if "trial" in told} == {(0, 3), (1, 2), (2, 1), (3, 0)}
    assert {kind: left for kind, (_, left) in seen[-1].items() if left} == {}


def test_whoever_watches_hears_of_each_change():
    heard = []
    steps = Steps(lambda now: heard.append((now.target, now.done)))
    steps.expect("pi", ["a"])
    steps.enter("pi")
    steps.made("a")
    assert heard == [("", 0), ("pi", 0), ("pi", 1)]


def test_the_line_names_target_and_step_and_then_what_is_left():
    steps = two_targets()
    assert describe(steps, "converting litert/fp32") == "converting litert/fp32"
    assert estimate(steps, 3.0) == ""
    steps.enter("x86")
    steps.finish("pi")
    assert describe(steps, "converting litert/fp32") == "x86: converting litert/fp32"
    assert describe(steps, "x86: writing litert/fp32") == "x86: writing litert/fp32"
    assert estimate(steps, 60.0) == "about 50 s left"


@pytest.mark.parametrize(
    ("seconds", "told"), [(1, "10 s"), (44, "40 s"), (89, "90 s"), (91, "2 min"), (600, "10 min")]
)
def test_an_estimate_is_no_more_exact_than_it_is(seconds, told):
    assert duration(seconds) == told
