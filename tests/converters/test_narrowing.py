"""Who is judged in full, who a little only, and that nobody is picked who was not judged in full."""

import itertools
import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from converters import workers
from converters.data.halves import FEW, FEWEST, OF_EACH, few
from converters.judge.accuracy import Accuracy, Judgement
from converters.judge.select import Contender, Ratio, select
from converters.measure.latency import Latency
from converters.measure.race import Timing
from converters.recipes import recipes
from converters.recipes.recipe import Recipe
from converters.recipes.recipes import Loading
from converters.rounds import narrowing, scoring
from converters.rounds.candidates import Candidate
from converters.work import worker
from converters.work.findings import Findings
from converters.work.orders import whole
from converters.work.pool import Ahead, Loaded, Opening, WorkerPool
from converters.work.spent import Stopwatch
from edgekit import profile
from edgekit.errors import ToolFailedError
from edgekit.manifest import Contract
from edgekit.samples import Samples


def waiting(*recipes):
    return [SimpleNamespace(recipe=recipe) for recipe in recipes]


def times(**medians):
    """Without noise, but for `noisy`, which takes half or twice as long from round to round."""
    found = {name: Latency(ms, ms, (ms,) * 12) for name, ms in medians.items()}
    if "noisy" in found:
        rounds = tuple(medians["noisy"] * factor for factor in (0.5, 2.0) * 6)
        found["noisy"] = Latency(medians["noisy"], medians["noisy"], rounds)
    return found


@pytest.mark.parametrize(
    ("holding", "turn"),
    [
        # Beside the fastest only who may be as fast.
        ([], ["a", "noisy"]),
        # Behind one that seems to hold beyond doubt: left out, all of them.
        (["a"], ["noisy"]),
        (["c"], ["a", "noisy"]),
        # Of one that was not timed nothing is known.
        (["unknown"], ["a", "noisy"]),
    ],
)
def test_the_fastest_come_first_until_the_rest_is_slower_beyond_doubt(holding, turn):
    known = times(a=1.0, b=1.2, c=3.0, noisy=1.3)
    left = waiting(*(name for name in ("c", "noisy", "b", "a") if name not in holding))
    assert narrowing.next_turn(left, known, holding, 2) == turn


def test_who_could_not_be_timed_is_judged_in_full():
    assert narrowing.next_turn(waiting("slow", "untimed"), times(slow=9.0, fast=1.0), ["fast"], 2) == [
        "untimed"
    ]


@pytest.mark.parametrize("holds", [(True,), (False, True), (False, False)])
def test_who_holds_nothing_on_all_samples_in_a_faster_way_is_judged_in_its_usual_one(holds, monkeypatch):
    """One thread, or another layout: there a few samples alone had shown nothing."""
    answers, judged = iter(holds), []

    def made(_bench, given, _host):
        judged.append(given.threads)
        return Candidate(given)

    monkeypatch.setattr(narrowing, "made", made)
    monkeypatch.setattr(narrowing, "made_together", lambda *_: None)
    monkeypatch.setattr(narrowing, "_seems_to_hold", lambda *_: next(answers))
    own = next(each for each in recipes.plans(profile.load("x86-64-v3")) if each.name == "onnxruntime/fp32")
    item = Candidate(own.loaded(Loading(1)), artifact=SimpleNamespace(), is_glimpsed=True)
    standard = SimpleNamespace(look_ahead=lambda: None)
    bench = SimpleNamespace(tell=lambda _: None, standard=standard, beside=nullcontext)
    (found,), timing = narrowing.narrowed(
        bench, Contract(), [item], None, timing=Timing(times(**{own.name: 1.0}), {}),
        usual={own.name: (own, times(usual=2.0)["usual"])}, jobs=2,
    )  # fmt: skip
    assert judged == [1, own.threads][: len(holds)]
    assert (found.plan.threads, timing.latencies[own.name].p50_ms) == ((1, 1.0) if holds[0] else (2, 2.0))


def contender(recipe, latency, verdict, seen=0):
    return Contender(
        recipe, 0, "int8", 0, 1000, verdict, "why", few=seen, latency_p50_ms=latency, latency_p95_ms=latency
    )


@given(
    st.lists(
        st.tuples(st.floats(0.1, 9), st.sampled_from(["met", "missed", "undecided"])), min_size=1, max_size=6
    ),
    st.lists(st.sampled_from(["met", "missed", "undecided"]), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.booleans(),
)
def test_whoever_is_picked_is_glimpsed_or_what_judging_all_in_full_would_pick(known, seen, is_few, accept):
    names = [f"e/{index}" for index in range(len(known))]
    whole = [contender(name, *told) for name, told in zip(names, known, strict=True)]
    ratios = {
        (a.recipe, b.recipe): Ratio(*[a.latency_p50_ms / b.latency_p50_ms] * 3)
        for a, b in itertools.permutations(whole, 2)
    }
    glimpsed = [
        # What a few samples say may be anything.
        contender(item.recipe, item.latency_p50_ms, told, 5) if little else item
        for item, told, little in zip(whole, seen, is_few, strict=False)
    ]

    def picked(contenders):
        return select(contenders, Contract(), ratios, is_int8_faster=True, accept_uncertain=accept).picked

    found = picked(glimpsed)
    assume(found is not None and not next(item for item in glimpsed if item.recipe == found).few)
    assert found == picked(whole)


def test_what_was_judged_a_little_says_of_how_many_samples_its_figures_are():
    fast, slow = contender("e/fast", 1.0, "met"), contender("e/slow", 2.0, "undecided", 130)
    ratios = {("e/slow", "e/fast"): Ratio(1.9, 2.0, 2.1), ("e/fast", "e/slow"): Ratio(0.4, 0.5, 0.6)}
    found = select([fast, slow], Contract(), ratios, is_int8_faster=True, accept_uncertain=False)
    assert found.picked == "e/fast"
    assert found.decisions["e/slow"].reason == (
        "takes 2.00 x the time of e/fast (1.90 to 2.10), so it was judged on 130 samples only"
    )


@pytest.mark.parametrize(
    ("low", "trouble", "verdict"),
    [(0.03, "", "missed"), (0.01, "", "undecided"), (0.01, "it is nan", "missed")],
)
def test_few_samples_refuse_only_what_they_show(low, trouble, verdict):
    figures = Accuracy(1.0, 0.95, 0.05, 0.3, 130, low=low, trouble=trouble)
    assert scoring._shown(Judgement("missed", "why"), figures, 0.02).verdict == verdict
    assert scoring._shown(Judgement("undecided", "why"), figures, 0.02).verdict == "undecided"


def test_one_that_few_samples_show_to_miss_is_refused_by_these():
    fast, slow = contender("e/fast", 1.0, "met"), contender("e/slow", 2.0, "missed", 130)
    found = select([fast, slow], Contract(), {}, is_int8_faster=True, accept_uncertain=False)
    assert found.decisions["e/slow"].status == "refused"
    assert found.decisions["e/slow"].reason == "accuracy: why; seen on 130 samples"


@given(st.integers(64, 3000))
def test_the_few_are_a_quarter_of_all_and_golden_ones_first(count):
    golden = np.unique(np.linspace(0, count - 1, 64).astype(np.int64))
    found = few(Samples({"x": np.zeros((count, 1))}), golden)
    assert len(found) == min(FEW, count // OF_EACH) >= FEWEST
    assert set(found.tolist()) <= set(range(count))
    first, second = map(set, (found.tolist(), golden.tolist()))
    assert first <= second or second <= first
    assert (np.diff(found) > 0).all()
    # From its beginning to its end.
    assert found[0] == 0
    assert found[-1] == count - 1


def test_of_a_small_half_as_many_are_seen_as_show_anything():
    assert len(few(Samples({"x": np.zeros((20, 1))}), np.arange(20))) == FEWEST
    assert few(Samples({"x": np.zeros((9, 1))}), np.arange(9)).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("count", "macs", "is_narrow"),
    [(300, 1, True), (65, 10**9, True), (65, 10**6, False), (30, 10**12, False)],
)
def test_few_samples_of_a_slow_model_are_long_to_judge_too(count, macs, is_narrow):
    bench = SimpleNamespace(data=SimpleNamespace(judged=range(count)), work=SimpleNamespace(macs=macs))
    assert narrowing.is_long(bench) is is_narrow


@given(st.lists(st.integers(1, 90), min_size=2, max_size=30), st.integers(32, 200))
def test_the_few_of_sequences_are_whole_ones(lengths, golden):
    ids = np.repeat(np.arange(len(lengths)), lengths)
    assume(golden <= len(ids))
    samples = Samples({"x": np.zeros((len(ids), 1))}, sequence=ids)
    found = few(samples, np.arange(golden))
    assert found.tolist() == list(range(len(found)))
    assert len(found) >= min(max(FEWEST, min(FEW, len(ids) // OF_EACH)), len(ids))
    assert len(found) == len(ids) or samples.starts(len(found))


def built(digits, run_build, tmp_path, *more):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/*p*", "--jobs", "0", *more]
    result = run_build(*words, "--out", tmp_path, "--json", tmp_path / "r.json", cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    (bundle,) = document["bundles"]
    rows = {row["recipe"]: row for row in document["profiles"][0]["candidates"]}
    return result.output, bundle, rows


def test_if_what_was_judged_a_little_would_be_picked_all_are_judged_in_full(
    digits, run_build, tmp_path, monkeypatch
):
    monkeypatch.setattr("converters.rounds.narrowing.MANY", 1)
    monkeypatch.setattr(narrowing, "next_turn", lambda *_: [])
    told, _, rows = built(digits, run_build, tmp_path)
    # Two that are about as fast: the second timing may pick the other one.
    assert " may be the pick after all, so all are judged in full" in told
    assert not any("samples" in row for row in rows.values())


def test_one_that_is_clearly_slower_is_judged_a_little_and_told_so(digits, run_build, tmp_path, monkeypatch):
    monkeypatch.setattr("converters.rounds.narrowing.MANY", 1)
    slow = "onnxruntime/percentile-int8"
    is_beaten = narrowing._is_beaten
    # The race decides this on real models; here it is said, of one that loses nothing if it is taken for the slower.
    monkeypatch.setattr(
        narrowing,
        "_is_beaten",
        lambda recipe, known, holding: bool(holding) if recipe == slow else is_beaten(recipe, {}, holding),
    )
    monkeypatch.setattr("converters.build._is_unseen", lambda _: False)
    _, _, rows = built(digits, run_build, tmp_path)
    assert 0 < rows[slow]["samples"] < rows["onnxruntime/fp32"].get("samples", 10**9)
    assert rows[slow]["accuracy_drop"]["high"] > rows[slow]["accuracy_drop"]["value"]
    assert "samples" not in rows["onnxruntime/fp32"]
    assert "memory_mb" not in rows[slow]


def test_a_worker_that_cannot_load_a_converter_ahead_opens_the_project_all_the_same():
    opening = object.__new__(Opening)
    messages = iter([Ahead("no-such-engine"), opening])
    said = []
    assert worker._opening(SimpleNamespace(recv=lambda: next(messages), send=said.append)) is opening
    assert [type(each) for each in said] == [Loaded]


def test_a_worker_that_dies_while_it_loads_ahead_costs_its_order_only(tmp_path):
    told: list[str] = []
    pool = WorkerPool(1, tmp_path, told.append)
    try:
        pool.start_ahead("litert")
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        plan = SimpleNamespace(name="litert/fp32", recipe=SimpleNamespace(engine="litert"))
        order = SimpleNamespace(plan=plan, is_float=True, is_trial=False, limit_s=9.0)
        ((_, answer),) = pool.run([order], lambda _: "", Findings())
        assert isinstance(answer, ToolFailedError)
        assert "the worker died (signal 9, SIGKILL" in str(answer)
        assert "while loading the converter of litert" in str(answer)
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("scheme", "precision", "is_searched"),
    [("static", "int8", True), ("kept", "int8", True), ("float", "fp32", False), ("as-is", "int8", False)],
)
def test_the_search_half_has_no_say_on_what_is_to_be_the_same_function(scheme, precision, is_searched):
    recipe = Recipe("e/any", "e", precision, scheme)
    assert whole(SimpleNamespace(recipe=recipe), 1).is_searched is is_searched


@pytest.mark.parametrize(
    ("patterns", "jobs", "ahead"),
    [
        ((), 2, ["litert", "openvino"]),
        ((), 3, ["litert", "openvino", ""]),
        # NNCF is for int8 alone.
        (("openvino/f32", "onnxruntime/*"), 2, ["", ""]),
        (("openvino/*",), 2, ["openvino", ""]),
        ((), 1, ["litert"]),
        ((), 0, []),
    ],
)
def test_workers_start_and_load_slow_converters_that_will_be_needed_while_the_source_is_read(
    patterns, jobs, ahead, monkeypatch, tmp_path
):
    loaded = []
    monkeypatch.setattr(WorkerPool, "start_ahead", lambda _, engine: loaded.append(engine))
    source = SimpleNamespace(model=SimpleNamespace(source="model.onnx"))
    bench = SimpleNamespace(folder=tmp_path, spent=Stopwatch(), project=source)
    options = SimpleNamespace(jobs=jobs, time_budget_s=9.0, recipes=patterns)
    workers.pool(bench, options, lambda _: None, [profile.load("x86-64-v4-vnni")])
    assert loaded == ahead
