"""Timing in a process of its own: which candidate an engine's crash or refusal costs, and what the others get."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from converters.measure.race import Runner, run_race
from edgekit.errors import ToolFailedError
from edgekit.manifest import EngineSpec, TensorSpec

X, LOGITS = TensorSpec("x", "float32", (1, 1, 8, 8)), TensorSpec("logits", "float32", (1, 10))
FEEDS = [{"x": np.full((1, 1, 8, 8), value, np.float32)} for value in (0.0, 0.5)]
# Python loads this in every process before anything else. Where one times, ONNX Runtime crashes as native code does:
# at the first run of a model of the given name.
CRASH = """
import os, signal, sys
if "converters.measure.race" in sys.orig_argv:
    import json, onnxruntime
    race = json.load(open(os.path.join(sys.orig_argv[-1], "race.json")))
    doomed = [runner["model"] for runner in race["runners"] if runner["name"] == {name!r}]
    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, *args, **kwargs):
            self.is_doomed = str(path) in doomed
            super().__init__(path, *args, **kwargs)
        def run(self, *args, **kwargs):
            if self.is_doomed:
                os.kill(os.getpid(), signal.SIGSEGV)
            return super().run(*args, **kwargs)
    onnxruntime.InferenceSession = Session
"""


@pytest.fixture
def doom(tmp_path, monkeypatch):
    """Makes the candidate of a name crash the process that times it."""

    def arranged(name):
        folder = tmp_path / "doom"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CRASH.format(name=name))
        path = [str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))

    return arranged


def runner(name, file):
    return Runner(name, str(file), EngineSpec("onnxruntime", "", Path(file).name, {}, 1), (X,), (LOGITS,))


def raced(digits, tmp_path, names, **files):
    runners = [runner(name, files.get(name, digits.folder / "model.onnx")) for name in names]
    return run_race(runners, FEEDS, set(names), tmp_path / "race", budget_s=0.2)


def test_all_runners_get_a_latency_in_a_process_that_loads_no_converter(digits, tmp_path):
    found = raced(digits, tmp_path, ["one", "two"])
    assert not found.failures
    assert all(0 < latency.p50_ms < 50 for latency in found.latencies.values())
    assert sorted(found.latencies) == ["one", "two"]
    # This process has torch; the timing one's modules are another matter.
    code = "import sys, converters.measure.race; print([m for m in ('torch', 'onnx', 'nncf', 'scipy') if m in sys.modules])"
    assert os.popen(f'{sys.executable} -c "{code}"').read().strip() == "[]"


def way(name, file, **changes):
    return structs.replace(runner(f"{name} otherwise", file), way_of=name, **changes)


def test_other_ways_are_timed_of_those_that_may_win_by_them(digits, tmp_path):
    file = digits.folder / "model.onnx"
    runners = [runner(name, file) for name in ("one", "refused")]
    runners += [way(item.name, file) for item in runners]
    found = run_race(runners, FEEDS, {"one"}, tmp_path / "race", budget_s=0.2)
    assert sorted(found.latencies) == ["one", "one otherwise", "refused"]
    assert len(found.latencies["one otherwise"].rounds) >= len(found.latencies["refused"].rounds)


def test_another_way_that_an_engine_refuses_costs_nothing_else(digits, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    runners = [runner("one", digits.folder / "model.onnx"), way("one", tmp_path / "bad.onnx")]
    found = run_race(runners, FEEDS, {"one"}, tmp_path / "race", budget_s=0.1)
    assert sorted(found.latencies) == ["one"]
    assert list(found.failures) == ["one otherwise"]


def test_an_engine_that_crashes_costs_the_candidate_that_it_ran(digits, tmp_path, doom):
    (tmp_path / "two.onnx").write_bytes((digits.folder / "model.onnx").read_bytes())
    doom("two")
    found = raced(digits, tmp_path, ["one", "two", "three"], two=tmp_path / "two.onnx")
    assert sorted(found.latencies) == ["one", "three"]
    assert found.failures == {"two": "cannot be timed: the process died: signal 11, SIGSEGV"}


def test_an_engine_that_refuses_a_model_costs_that_candidate(digits, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    found = raced(digits, tmp_path, ["one", "two"], one=tmp_path / "bad.onnx")
    assert list(found.latencies) == ["two"]
    assert found.failures["one"].startswith("cannot be timed: ")


def test_where_every_candidate_is_out_there_is_no_latency(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    found = run_race([runner("one", tmp_path / "bad.onnx")], FEEDS, {"one"}, tmp_path / "race", budget_s=0.1)
    assert found.latencies == {}
    assert list(found.failures) == ["one"]


def test_a_process_that_cannot_start_is_nobodys_fault(digits, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolFailedError, match="exit code 7"):
        raced(digits, tmp_path, ["one"])


def test_a_build_goes_on_without_the_candidate_whose_engine_crashes_and_says_so(
    digits, run_build, tmp_path, doom
):
    doom("onnxruntime/dynamic-int8")
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/*", "--out", tmp_path]
    result = run_build(*words, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "r.json").read_text())["candidates"]}
    died = rows["onnxruntime/dynamic-int8"]
    assert (died["status"], died["reason"]) == (
        "failed",
        "cannot be timed: the process died: signal 11, SIGSEGV",
    )
    assert "onnxruntime/dynamic-int8 cannot be timed" in result.output
    assert rows["onnxruntime/fp32"]["latency_ms"]["how"] == "measured"


@pytest.mark.proof
def test_a_trial_whose_engine_crashes_costs_itself_and_is_not_tried_again(digits, run_build, tmp_path, doom):
    doom("onnxruntime/static-int8+search2")
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/static*", "--out", tmp_path]
    words += ["--json", tmp_path / "r.json"]
    for count in ("3", "4"):
        result = run_build(*words, "--search", count, cache=tmp_path / "cache")
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / "r.json").read_text())["profiles"][0]["trials"]
        trials = {row["number"]: row for row in found}
        assert len(trials) == 1 + int(count)
        assert trials[2].get("failure") == "cannot be timed: the process died: signal 11, SIGSEGV", (
            result.output
        )
        assert all(row.get("cost") for number, row in trials.items() if number != 2)
    assert "search: 3 of 4 trials are known" in result.output
    assert "search 2 of" not in result.output
