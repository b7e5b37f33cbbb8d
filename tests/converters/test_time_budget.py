"""A limit of time: what exceeds it costs its candidate, says so, and is not taken for a whole build."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from converters.backends.litert import backend as litert
from converters.commands.durations import seconds
from converters.measure.latency import Latency
from converters.measure.race import Timing
from converters.rounds import mixed_precision
from edgekit.errors import UsageError

SLOW_DATA = """
import time
import numpy as np
from converters.data import spool

# What the building process has kept, no worker would ask for again.
spool.MOST_BYTES = 0

def samples():
    {wait}
    return ({{"x": x[None]}} for x in np.load({file!r})["x"])
"""
# Python loads this in every process before anything else: float models take for ever to convert, in workers.
SLOW_FLOAT = """
import sys
if "converters.work.worker" in sys.orig_argv:
    import time
    from converters.backends.onnxruntime import backend
    make = backend.BACKEND.convert
    def convert(prepared, plan, folder):
        if plan.recipe.precision == "fp32":
            time.sleep(600)
        return make(prepared, plan, folder)
    type(backend.BACKEND).convert = lambda self, *words: convert(*words)
"""


def slow_words(digits, folder, *, everywhere):
    """Calibration data that a worker (or every pass after the first two) waits over."""
    file = folder / "data.py"
    wait = "time.sleep(600)" if everywhere else f"import os; os.getpid() == {os.getpid()} or time.sleep(600)"
    file.write_text(SLOW_DATA.format(wait=wait, file=str(digits.folder / "calib.npz")))
    words = [
        *digits.flags("model.onnx", "x86-64-v3"),
        "--recipe",
        "onnxruntime/*",
        "--json",
        folder / "r.json",
    ]
    return [*words, "--calibration", f"{file}:samples", "--out", folder / "out"]


def rows(folder):
    return {row["recipe"]: row for row in json.loads((folder / "r.json").read_text())["candidates"]}


def test_a_conversion_that_takes_too_long_costs_its_candidate_and_says_so(digits, run_build, tmp_path):
    words = [*slow_words(digits, tmp_path, everywhere=False), "--jobs", "2", "--time-budget", "3s"]
    result = run_build(*words, cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    for recipe in ("onnxruntime/static-int8", "onnxruntime/percentile-int8"):
        assert found[recipe]["status"] == "failed"
        assert found[recipe]["reason"] == f"converting {recipe} took longer than 3 s (--time-budget)"
        assert f"converting {recipe} took longer" in result.output
    assert found["onnxruntime/fp32"]["accuracy"] is not None
    assert "ended at the limit of 3 s (--time-budget): onnxruntime/" in result.output


@pytest.mark.proof
def test_int8_is_not_tried_where_the_float_model_that_it_starts_from_took_too_long(
    digits, run_build, tmp_path, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text(SLOW_FLOAT)
    path = [str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    words = [
        *digits.flags("model.onnx", "x86-64-v3"),
        "--recipe",
        "onnxruntime/*",
        "--recipe",
        "openvino/f32",
    ]
    words += ["--out", tmp_path / "out", "--json", tmp_path / "r.json", "--jobs", "1", "--time-budget", "4s"]
    began = time.monotonic()
    result = run_build(*words, cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    assert found["onnxruntime/fp32"]["reason"].startswith("converting onnxruntime/fp32 took longer than 4 s")
    assert found["onnxruntime/static-int8"]["reason"].startswith(
        "not tried, since converting onnxruntime/fp32"
    )
    assert found["openvino/f32"]["status"] == "picked"
    assert time.monotonic() - began < 300


def test_without_workers_the_process_ends_itself_as_well_as_it_can():
    """In a process of its own: the test runner may have an alarm set."""
    script = """
import time
from converters.work.limit import TooLongError, ends_after
try:
    with ends_after(0.05, "converting a"):
        time.sleep(5)
except TooLongError as error:
    print(error)
with ends_after(0.2, "converting b"):
    pass
time.sleep(0.3)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["converting a took longer than 0 s (--time-budget)", "still here"]


@pytest.mark.proof
def test_float_candidates_are_made_before_int8_ones(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "o*", "--jobs", "1", "--out", tmp_path]
    result = run_build(*words, cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if " converting " in line]
    is_int8 = ["int8" in line for line in lines]
    assert is_int8 == sorted(is_int8)
    assert len(set(is_int8)) == 2


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_durations_are_read_as_people_write_them(text, value):
    assert seconds(text, "--time-budget") == value


@pytest.mark.parametrize("text", ["", "soon", "0", "-5m"])
def test_a_time_budget_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--time-budget"):
        seconds(text, "--time-budget")


@dataclass
class Item:
    recipe: str
    artifact: object = None

    @property
    def plan(self):
        return SimpleNamespace(recipe=SimpleNamespace(engine=self.recipe.partition("/")[0]))


@pytest.mark.parametrize(("slow", "is_hopeless"), [(4.0, True), (1.5, False)])
def test_an_engine_several_times_slower_than_what_holds_is_not_mended(slow, is_hopeless, monkeypatch):
    """An LSTM that OpenVINO runs at a quarter of ONNX Runtime's speed, for a board that is not here."""
    times = {"openvino/static-int8": slow, "openvino/f32": slow, "onnxruntime/fp32": 1.0}
    latencies = {name: Latency(ms, ms, (ms,) * 12) for name, ms in times.items()}
    monkeypatch.setattr(mixed_precision, "_raced", lambda *_: Timing(latencies, {}))
    shop = SimpleNamespace(profile=SimpleNamespace(accelerator=None))
    item, *rivals = map(Item, times)
    told = mixed_precision._hopeless(shop, item, rivals)
    assert bool(told) == is_hopeless
    if is_hopeless:
        assert "4.0 x the time of onnxruntime/fp32" in told
    # Nothing is known of the engine's own float, or of another engine.
    assert mixed_precision._hopeless(shop, item, rivals[1:]) == ""
    assert mixed_precision._hopeless(shop, item, rivals[:1]) == ""


def test_a_litert_conversion_that_fails_twice_of_the_same_after_long_is_not_tried_a_third_time():
    same = ["with its patterns recognised: RuntimeError: x", "as it is: RuntimeError: x"]
    assert litert._is_settled(same, litert.PATIENCE_S + 1)
    assert not litert._is_settled(same, 1)
    assert not litert._is_settled([same[0], "as it is: ValueError: y"], litert.PATIENCE_S + 1)
    assert not litert._is_settled(same[:1], litert.PATIENCE_S + 1)
