"""Repairing by mixed precision: the rules, and a network whose int8 collapses in one place."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.judge.select import Ratio
from converters.measure.latency import Latency
from converters.measure.race import Timing
from converters.quantize.sensitivity import LayerError
from converters.rounds import float_layers, mixed_precision
from converters.rounds.float_layers import Try
from converters.work.steps import Steps
from edgekit.manifest import Contract


def played(layers, holds, max_tries=float_layers.MAX_TRIES):
    """All tries of a repair in which `holds(count)` says what the contract would."""
    tries = []
    while (count := float_layers.next_count(tries, layers, max_tries)) is not None:
        tries.append(Try(count, holds(count)))
    return tries


def test_it_starts_with_the_single_worst_layer_doubles_and_then_halves_the_gap():
    assert [item.floats for item in played(100, lambda count: count >= 6)] == [1, 2, 4, 8, 6, 5]
    assert [item.floats for item in played(100, lambda _: True)] == [1]
    assert [item.floats for item in played(100, lambda _: False)] == [1, 2, 4, 8, 16, 32]


@given(st.integers(0, 300), st.integers(1, 400), st.integers(1, 12))
def test_no_number_is_tried_twice_and_all_layers_are_never_left_float(layers, needed, max_tries):
    tries = played(layers, lambda count: count >= needed, max_tries)
    counts = [item.floats for item in tries]
    assert len(set(counts)) == len(counts) <= max_tries
    assert all(1 <= count < layers for count in counts)


@given(st.integers(2, 300), st.integers(1, 299))
def test_with_enough_tries_the_smallest_set_that_holds_is_found(layers, needed):
    tries = played(layers, lambda count: count >= needed, max_tries=50)
    found = min((item.floats for item in tries if item.holds), default=None)
    assert found == (needed if needed < layers else None)


@given(st.integers(0, 100), st.lists(st.booleans(), min_size=20, max_size=20))
def test_noise_in_the_verdicts_does_not_keep_it_going(layers, verdicts):
    answers = iter(verdicts)
    tries = played(layers, lambda _: next(answers), max_tries=15)
    counts = [item.floats for item in tries]
    assert len(set(counts)) == len(counts)


def test_what_is_not_clearly_faster_than_what_holds_is_not_worth_a_repair():
    assert float_layers.is_worth(Ratio(0.3, 0.4, 0.5))
    assert not float_layers.is_worth(Ratio(0.9, 0.98, 1.1))
    assert not float_layers.is_worth(Ratio(1.5, 2.0, 2.5))
    assert float_layers.is_worth(None)


def test_the_worst_layers_are_left_float_and_named():
    layers = [LayerError(f"conv{index}", "Conv", 3.0 + index) for index in range(5)]
    assert float_layers.floats(layers, 2) == ("conv0", "conv1")
    assert float_layers.named(layers) == "conv0 (Conv, 3.0 dB), conv1 (Conv, 4.0 dB), conv2 (Conv, 5.0 dB)"


@pytest.mark.parametrize("is_known", [False, True])
def test_all_that_may_be_mended_are_raced_once_against_what_holds(is_known, monkeypatch):
    def item(recipe, *, holds, is_broken=False):
        search = SimpleNamespace(is_kept=holds, is_broken=is_broken)
        plan = SimpleNamespace(recipe=SimpleNamespace(engine="e", precision="int8"))
        return SimpleNamespace(
            recipe=recipe,
            search=search,
            plan=plan,
            stands=True,
            notes=(),
            artifact=SimpleNamespace(size_bytes=1),
        )

    races = []

    def race(bench, items, host, rivals, *, budget_s):
        races.append(sorted(one.recipe for one in items))
        return Timing({one.recipe: ms(one.recipe) for one in items}, {})

    def ms(recipe):
        took = {"fast": 1.0, "slow": 2.0, "slower": 3.0}[recipe]
        return Latency(took, took, (took,) * 12)

    tried = [
        item("slower", holds=False, is_broken=True),
        item("fast", holds=True),
        item("slow", holds=False),
    ]
    monkeypatch.setattr(mixed_precision, "timed", race)
    monkeypatch.setattr(
        mixed_precision, "replace", lambda one, **new: SimpleNamespace(**{**vars(one), **new})
    )
    told = []
    bench = SimpleNamespace(steps=Steps(), tell=told.append)
    profile = SimpleNamespace(name="p", precisions=("fp32", "int8"))
    host = SimpleNamespace(matches=lambda _: True)
    known = Timing({one.recipe: ms(one.recipe) for one in tried}, {}) if is_known else None
    found = mixed_precision.repaired(bench, profile, Contract(), tried, host, times=known)
    assert races == ([] if is_known else [["fast", "slow", "slower"]])
    notes = {one.recipe: " ".join(one.notes) for one in found}
    assert "takes 2.00 x the time of fast" in notes["slow"]
    assert "takes 3.00 x the time of fast" in notes["slower"]
    assert not notes["fast"]
    # What is only doubtful may still be picked, and is not told to miss anything.
    assert any(line.startswith("slower misses the contract and is not mended") for line in told)
    assert any(line.startswith("slow may miss the contract on shifted data and is not") for line in told)
