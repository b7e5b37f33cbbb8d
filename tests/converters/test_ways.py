"""Other ways to load a model: taken where they are faster, judged as they compute, kept in the lock."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from converters.backends.artifact import Artifact
from converters.keep.lock import LockedBundle, LockedTarget, plans
from converters.measure.latency import Latency
from converters.measure.race import Timing
from converters.recipes import recipes
from converters.recipes.recipes import Loading
from converters.rounds import ways
from converters.rounds.candidates import Candidate
from edgekit import profile
from edgekit.manifest import Contract

HOST = SimpleNamespace(threads=lambda plan: plan.threads)


def plan():
    return next(each for each in recipes.plans(profile.load("x86-64-v3")) if each.name == "onnxruntime/fp32")


def steady(ms):
    return Latency(ms, ms, (ms,) * 24)


@pytest.fixture
def item(tmp_path):
    return Candidate(plan(), artifact=Artifact(tmp_path, "model.onnx", {}))


@pytest.fixture
def evaluated(monkeypatch):
    """What an evaluation in another way comes to: `failure` may be set."""
    found = SimpleNamespace(failure="", ways=[], glimpses=[])

    def made(_bench, given, _host, *, is_glimpsed):
        found.ways.append(Loading(given.threads, dict(given.layout)))
        found.glimpses.append(is_glimpsed)
        return Candidate(given, failure=found.failure)

    monkeypatch.setattr(ways, "made", made)
    monkeypatch.setattr(ways, "made_together", lambda *_, **__: None)
    monkeypatch.setattr(ways, "with_outputs", lambda _bench, _contract, candidate: candidate)
    return found


def taken(item, **ms):
    usual = item.recipe
    other = {"one": Loading(1), "shared": Loading(1, {"weights": "shared"})}
    times = {usual: steady(ms["usual"])} | {name: steady(ms[name]) for name in other if name in ms}
    told = []
    bench = SimpleNamespace(tell=told.append)
    timing = ways.settled([item], Timing(times, {"x on 1 thread": "no"}, {usual: other}))
    assert not timing.failures
    (found,), timing = ways.in_their_best_way(bench, Contract(), [item], HOST, timing)
    return found, timing.latencies[usual].p50_ms, told


def test_a_candidate_ships_with_the_threads_it_is_faster_with_and_is_judged_with_them(item, evaluated):
    assert item.plan.tries_loadings
    found, ms, _ = taken(item, usual=2.0, one=1.0)
    assert (found.plan.threads, found.plan.tries_loadings, ms) == (1, False, 1.0)
    assert evaluated.ways == [Loading(1)]
    assert "on 1 thread, which takes 0.50 x the time of 2 threads" in found.notes[-1]


def test_it_ships_with_the_layout_in_memory_that_it_is_faster_with_too(item, evaluated):
    found, ms, _ = taken(item, usual=3.0, one=2.0, shared=1.0)
    assert (found.plan.options["weights"], found.plan.layout, ms) == ("shared", {"weights": "shared"}, 1.0)
    assert evaluated.ways == [Loading(1, {"weights": "shared"})]
    assert "on 1 thread, weights shared, which takes 0.33 x the time of 2 threads" in found.notes[-1]


@pytest.mark.parametrize("ms", [{"usual": 1.0, "one": 1.0}, {"usual": 1.0, "one": 2.0}, {"usual": 1.0}])
def test_a_candidate_keeps_its_threads_where_fewer_are_no_faster(item, evaluated, ms):
    assert taken(item, **ms)[:2] == (item, 1.0)
    assert not evaluated.ways


def test_threads_that_compute_wrong_are_not_taken_however_fast(item, evaluated):
    evaluated.failure = "output y is off"
    found, ms, told = taken(item, usual=2.0, one=1.0)
    assert (found, ms) == (item, 2.0)
    assert told == [f"{item.recipe} is not loaded on 1 thread: output y is off"]


def test_who_was_judged_a_little_is_judged_a_little_in_its_way_before_it_is_in_full(item, evaluated):
    found, ms, _ = taken(replace(item, is_glimpsed=True), usual=2.0, one=1.0)
    assert (found.plan.threads, found.is_glimpsed, ms) == (1, True, 1.0)
    assert evaluated.glimpses == [True]
    # What it is judged in full with has the note too.
    assert found.plan.notes[-1] == found.notes[-1]


def test_the_lock_has_the_way_that_is_not_the_profiles_and_it_is_not_raced_again():
    given = plan()
    for threads, wanted in ((1, 1), (0, given.threads)):
        locked = LockedTarget(
            {}, {}, (LockedBundle(given.name, "d", threads=threads, layout={"weights": "shared"}),)
        )
        (found,) = plans(locked, [given])
        assert (found.threads, found.tries_loadings, found.judged_options["weights"]) == (
            wanted,
            False,
            "shared",
        )


def test_every_layout_is_tried_on_every_number_of_threads():
    assert recipes.other_loadings(1) == ()
    found = [way.told for way in recipes.other_loadings(2, [{"weights": "shared"}])]
    assert found == ["1 thread", "2 threads, weights shared", "1 thread, weights shared"]


def test_an_accelerator_has_no_threads_to_choose():
    found = {
        name: {each.tries_loadings for each in recipes.plans(profile.load(name))}
        for name in ("raspberry-pi-5", "nxp-imx93-ethos-u65")
    }
    assert found == {"raspberry-pi-5": {True}, "nxp-imx93-ethos-u65": {False}}
