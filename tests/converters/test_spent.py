"""Where a build's time goes, told from its lines of progress."""

import pytest

from converters.work.spent import HERE, IDLE, Account, Spent, Stopwatch, step_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("told", "step"),
    [
        ("converting litert/static-int8", ("conversion", "litert/static-int8")),
        ("searching with openvino/f32", ("evaluation", "openvino/f32")),
        ("raspberry-pi-5: writing litert/fp32", ("writing", "litert/fp32")),
        ("measuring latency", ("timing", "")),
        ("measuring memory", ("memory", "")),
        ("judging openvino/f32", ("judging", "openvino/f32")),
        ("judging on the search half what candidates of fewer bits lose", ("judging", "")),
        ("loading the converter of litert", ("worker start", "")),
        ("evaluating a little openvino/f32", ("evaluation", "openvino/f32")),
        ("runs your code: train.py (the model)", None),
        (IDLE, (IDLE, "")),
    ],
)
def test_a_line_of_progress_is_a_step_or_a_remark(told: str, step: tuple[str, str] | None) -> None:
    assert step_of(told) == step


def test_seconds_are_of_the_step_until_the_next_whatever_is_remarked_meanwhile() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    watch.does("one", "converting litert/fp32")
    watch.does(HERE, "measuring latency")
    clock.now = 2.0
    watch.does("one", "litert/fp32 misses the contract")
    clock.now = 3.0
    watch.does("one", IDLE)
    clock.now = 7.0
    assert watch.account() == Account(7.0, (Spent(7.0, "timing"), Spent(3.0, "conversion", "litert/fp32")))


def test_a_worker_that_has_loaded_a_converter_and_waits_for_an_order_does_nothing() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    watch.does("one", "loading the converter of litert")
    clock.now = 9.0
    # Heard only now: it was ready at 4, and got its order at 7.
    watch.does("one", IDLE, 4.0)
    watch.does("one", "starting", 7.0)
    clock.now = 10.0
    assert watch.account().steps == (Spent(7.0, "worker start"),)


def test_the_words_name_the_candidate_that_takes_a_fifth_of_a_step() -> None:
    steps = (
        Spent(9.0, "conversion", "litert/fp32"),
        Spent(1.0, "timing"),
        Spent(0.5, "conversion", "x/fp32"),
    )
    assert Account(10.2, steps).words() == "10 s: conversion 9.5 s (litert/fp32 9.0 s), timing 1.0 s"
    assert Account(0.5, ()).words() == "0.5 s"
