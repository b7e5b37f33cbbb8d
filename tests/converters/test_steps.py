"""Progress: steps are counted once, and what is left is told from what was done."""

import pytest

from converters.commands.screen import describe, duration, estimate
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
