"""`--search`: settings and float layers beyond the fixed recipes, tried on the search half, resumable."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from converters import backends
from converters.backends.litert import int8
from converters.backends.onnxruntime import qdq
from converters.backends.openvino import quantizer
from converters.recipes.knobs import Knob
from converters.recipes.recipes import Tuning, plans
from converters.rounds import search
from converters.rounds.search import Space, Trial
from edgekit import profile

CHECKS = {
    "onnxruntime": qdq.choices,
    "openvino": lambda plan: quantizer.check_settings(plan.tuning),
    "litert": int8._check_settings,
}


@pytest.mark.parametrize(
    "name", ["x86-64-v3", "raspberry-pi-5", "intel-core-ultra-npu", "nxp-imx93-ethos-u65"]
)
def test_every_value_of_every_knob_is_one_that_its_backend_takes(name):
    turned = 0
    searched = set()
    for plan in plans(profile.load(name)):
        if plan.recipe.scheme not in ("static", "static16") and plan.recipe.engine != "litert":
            continue
        for knob in backends.get(plan.recipe.engine).knobs(plan):
            assert knob.values[0] is None or knob.only is not None
            for value in knob.values:
                if value is not None:
                    CHECKS[plan.recipe.engine](replace(plan, tuning=Tuning("x", (), {knob.name: value})))
                    turned += 1
                    searched.add(plan.recipe.name)
    assert turned > 3
    taken = {plan.recipe.name for plan in plans(profile.load(name))}
    with_settings = {
        "litert/static-int8",
        "litert/static-int16x8",
        "litert/dynamic-int8",
        "litert/weights-int8",
    }
    assert with_settings & taken <= searched
    assert not any("fp" in recipe for recipe in searched)


@pytest.fixture(scope="module")
def ruined(outlier, digits):
    """The flags of a build of a net that plain int8 ruins."""
    return [*digits.flags(str(outlier), "x86-64-v3"), "--recipe", "onnxruntime/static*"]


@pytest.fixture(scope="module")
def searched(ruined, run_build, tmp_path_factory):
    """A search of 8 trials."""
    cache, out = tmp_path_factory.mktemp("search-cache"), tmp_path_factory.mktemp("searched")
    words = [*ruined, "--out", out, "--json", out / "r.json"]
    result = run_build(*words, "--search", "8", cache=cache)
    assert result.exit_code == 0, result.output
    return SimpleNamespace(
        cache=cache, output=result.output, document=json.loads((out / "r.json").read_text())
    )


def trials(document):
    return [row for row in document["profiles"][0]["trials"] if row["number"]]


def figures(row):
    """What was found, apart from how it compares with later trials."""
    return {name: value for name, value in row.items() if name not in ("is_on_front", "candidate")}


def test_a_search_finds_what_keeps_the_contract_and_it_is_judged_like_any_other(searched):
    """What was mended already is a point to beat: only what is faster, by whatever this machine measures, goes on."""
    assert any(row.get("holds") and row["loss"]["value"] <= 0.03 for row in trials(searched.document))
    found = [row for row in searched.document["candidates"] if "+search" in row["recipe"]]
    assert len(found) <= search.FINALISTS
    plain = next(row for row in searched.document["candidates"] if row["recipe"] == "onnxruntime/static-int8")
    assert plain["accuracy"]["drop"] > 0.03
    assert all(row["accuracy"]["drop"] <= 0.03 for row in found)
    assert all(row["accuracy"]["samples"] == plain["accuracy"]["samples"] for row in found)
    known = [row["recipe"] for row in searched.document["profiles"][0]["trials"] if not row["number"]]
    assert known == ["onnxruntime/static-int8", "onnxruntime/static-int8+mixed"]
    assert "search 8 of 8" in searched.output
    assert "s left" in searched.output


def test_every_trial_is_in_the_result_with_its_place_on_the_front(searched):
    rows = searched.document["profiles"][0]["trials"]
    assert sorted(row["number"] for row in trials(searched.document)) == list(range(1, 9))
    front = [row for row in rows if row.get("is_on_front")]
    assert {row["candidate"] for row in rows if row.get("candidate")} == {
        row["recipe"] for row in searched.document["candidates"] if "+search" in row["recipe"]
    }
    assert {row["number"] for row in rows if row.get("candidate")} <= {row["number"] for row in front}
    pairs = [(row["cost"]["value"], row["loss"]["value"]) for row in rows]
    for row in front:
        own = (row["cost"]["value"], row["loss"]["value"])
        assert not any(cost < own[0] and loss < own[1] for cost, loss in pairs)


@pytest.mark.proof
def test_a_later_search_goes_on_where_the_first_one_ended(searched, ruined, run_build, tmp_path):
    words = [*ruined, "--out", tmp_path, "--json", tmp_path / "r.json", "--search", "10"]
    result = run_build(*words, cache=searched.cache)
    assert result.exit_code == 0, result.output
    assert "search: 8 of 10 trials are known from an earlier build" in result.output
    again = trials(json.loads((tmp_path / "r.json").read_text()))
    assert [figures(row) for row in again[:8]] == [figures(row) for row in trials(searched.document)]
    assert "converting" not in result.output.partition("search: 8 of 10")[0]
    assert result.output.count("converting") == 2


@pytest.mark.proof
def test_what_was_mended_and_what_was_found_is_built_from_the_lock_to_the_same_digests(
    ruined, run_build, tmp_path
):
    """On a board that is not here: its alternates are bundled too, and the search weighs megabytes."""
    words = [word if word != "x86-64-v3" else "raspberry-pi-5" for word in ruined]
    words += ["--out", tmp_path, "--json", tmp_path / "r.json"]
    result = run_build(*words, "--search", "8", "--lock", cache=None)
    assert result.exit_code == 0, result.output
    first = json.loads((tmp_path / "r.json").read_text())
    assert {row["cost"]["unit"] for row in trials(first)} == {"MB"}
    built = {row["recipe"]: row["digest"] for row in first["bundles"]}
    assert {name.partition("+")[2][:6] for name in built} == {"mixed", "search"}
    result = run_build(*words, "--locked", cache=None)
    assert result.exit_code == 0, result.output
    again = json.loads((tmp_path / "r.json").read_text())
    assert {row["recipe"]: row["digest"] for row in again["bundles"]} == built
    assert {row["recipe"] for row in again["candidates"]} == set(built)


@pytest.mark.parametrize("count", ["0", "-3", "many"])
def test_a_number_of_trials_that_is_none_is_refused(count, ruined, run_build, tmp_path):
    assert run_build(*ruined, "--out", tmp_path, "--search", count).exit_code == 2


def trial(number, loss, cost, **more):
    return Trial(number, "e/static-int8", Tuning(f"search{number}"), loss, cost, **more)


def test_the_front_has_what_nothing_beats_in_both_objectives():
    found = search.front(
        [trial(1, 0.1, 5.0), trial(2, 0.1, 4.0), trial(3, 0.2, 3.0), trial(4, 0.3, 3.0), trial(5, 0.0, 9.0),
         Trial(6, "e/static-int8", Tuning("search6"), failure="no"), trial(7, 0.1, 4.0)]
    )  # fmt: skip
    assert [item.number for item in found] == [3, 2, 5]


def test_finalists_hold_the_contract_or_lose_least_and_are_never_the_fixed_recipes():
    fixed, bad, good = trial(0, 0.5, 1.0), trial(1, 0.4, 2.0), trial(2, 0.01, 3.0, holds=True)
    assert search.finalists([fixed, bad, good]) == [good]
    assert search.finalists([fixed, bad]) == [bad]
    assert search.finalists([trial(0, 0.0, 1.0, holds=True), bad]) == []


def test_a_fixed_recipe_without_settings_is_a_point_to_beat(tmp_path):
    space = Space("e/static-int8", (Knob("a", (None, *range(20))),), ("one", "two"))
    study = search.Search([space], tmp_path / "log", 0)
    study.knows(Trial(0, "e/static-int8", Tuning(), 0.5, 1.0))
    study.knows(Trial(0, "e/fp16", Tuning(), 0.0, 2.0, holds=True))
    for _ in range(12):
        asked = study.ask()
        assert asked.recipe == "e/static-int8"
        study.tell(asked, Trial(asked.number, asked.recipe, asked.tuning, 0.1, 3.0, holds=True))
    assert [item.recipe for item in search.front(study.trials)] == ["e/static-int8", "e/fp16"]
    assert search.finalists(study.trials) == []


def test_a_space_is_searched_to_its_end_without_trying_anything_twice(tmp_path):
    space = Space(
        "e/static-int8", (Knob("a", (None, 1, 2)), Knob("b", (None, 5), only=("a", 2))), ("one", "two")
    )
    study = search.Search([space], tmp_path / "log", 0)
    seen = []
    while (asked := study.ask()) is not None:
        seen.append((tuple(sorted(asked.tuning.settings.items())), asked.tuning.float_layers))
        study.tell(asked, Trial(asked.number, asked.recipe, asked.tuning, 0.1, float(asked.number)))
    # a: none, 1, 2 and there b: none, 5; each with no or one layer in float.
    assert len(seen) == len(set(seen)) == 8


def test_a_knob_may_be_for_where_another_is_left_out(tmp_path):
    knobs = (Knob("a", (None, 1)), Knob("b", (None, 5), only=("a", None)))
    study = search.Search([Space("e/static-int8", knobs)], tmp_path / "log", 0)
    study.knows(Trial(0, "e/static-int8", Tuning(), 0.5, 1.0))
    seen = []
    while (asked := study.ask()) is not None:
        seen.append(asked.tuning.settings)
        study.tell(asked, Trial(asked.number, asked.recipe, asked.tuning, 0.1, float(asked.number)))
    assert sorted(map(str, seen)) == ["{'a': 1}", "{'b': 5}"]


def test_a_trial_that_was_running_when_the_build_was_stopped_is_tried_again(tmp_path):
    space = Space("e/static-int8", (Knob("a", (None, 1)),))
    first = search.Search([space], tmp_path / "log", 0)
    done = first.ask()
    first.tell(done, Trial(1, done.recipe, done.tuning, 0.1, 1.0))
    stopped = first.ask()
    second = search.Search([space], tmp_path / "log", 0)
    assert [item.number for item in second.trials] == [1]
    again = second.ask()
    assert (again.number, again.tuning.settings) == (stopped.number, stopped.tuning.settings)
    assert second.ask() is None


@pytest.mark.proof
def test_litert_is_searched_with_its_own_settings_weights_only_among_them(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "litert/*", "--out", tmp_path]
    result = run_build(*words, "--json", tmp_path / "r.json", "--search", "12", cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["profiles"][0]["trials"]
    assert not [row["failure"] for row in rows if row.get("failure")]
    tried = [row for row in rows if row["number"]]
    assert len(tried) == 12
    assert {row["recipe"] for row in tried} == {
        "litert/static-int8",
        "litert/dynamic-int8",
        "litert/weights-int8",
    }
    turned = {name for row in tried for name in row.get("settings", {})}
    assert turned == {"percentile", "moving_average", "per_channel"}
    assert any(row.get("float_layers") for row in tried)
    # What has no settings to turn is known all the same, and has to be beaten.
    assert "litert/fp32" in {row["recipe"] for row in rows if not row["number"]}


@pytest.mark.proof
def test_an_accelerator_that_takes_only_integers_is_searched_without_float_layers(
    digits, run_build, tmp_path
):
    words = [*digits.flags("model.onnx", "nxp-imx93-ethos-u65"), "--out", tmp_path]
    result = run_build(*words, "--json", tmp_path / "r.json", "--search", "6", cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["profiles"][0]["trials"]
    tried = [row for row in rows if row["number"] and not row.get("failure")]
    assert tried
    assert not any(row.get("float_layers") for row in tried)


# Crashes where the second trial's conversion reads it, as a converter's native code would.
CRASHING = """
import os, signal, sys
import numpy as np
from converters.data import spool

# What the building process has kept, no worker would ask for again.
spool.MOST_BYTES = 0

def samples():
    frame = sys._getframe()
    while frame is not None:
        if getattr(getattr(frame.f_locals.get("plan"), "tuning", None), "label", "") == "search2":
            os.kill(os.getpid(), signal.SIGSEGV)
        frame = frame.f_back
    return ({{"x": x[None]}} for x in np.load({file!r})["x"])
"""


@pytest.mark.proof
def test_a_trial_whose_converter_crashes_costs_itself_and_is_not_tried_again(digits, run_build, tmp_path):
    (tmp_path / "data.py").write_text(CRASHING.format(file=str(digits.folder / "calib.npz")))
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--calibration", f"{tmp_path}/data.py:samples"]
    words += ["--recipe", "onnxruntime/static*", "--jobs", "1", "--out", tmp_path]
    words += ["--json", tmp_path / "r.json"]
    outputs = []
    for count in ("3", "4"):
        result = run_build(*words, "--search", count, cache=tmp_path / "cache")
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
        found = trials(json.loads((tmp_path / "r.json").read_text()))
        failures = {row["number"]: row["failure"] for row in found if row.get("failure")}
        told = "the converter died (signal 11, SIGSEGV) while converting onnxruntime/static-int8+search2"
        assert failures == {2: told}
        assert len(found) == int(count)
    assert "search 2 of 3: onnxruntime/static-int8 " in outputs[0]
    assert told in outputs[0]
    assert "3 of 4 trials are known" in outputs[1]
    assert told not in outputs[1]
