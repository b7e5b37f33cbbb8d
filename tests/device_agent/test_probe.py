"""An engine is called good only after it has run a model; a broken one is named, and harms no other."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.engines import _trial
from edgekit.errors import EngineError

ROOT = Path(__file__).parents[2]

HOLLOW = """
__version__ = "9.9"
class GraphOptimizationLevel:
    ORT_ENABLE_ALL = ORT_ENABLE_EXTENDED = ORT_ENABLE_BASIC = ORT_DISABLE_ALL = 0
class SessionOptions: pass
class InferenceSession:
    def __init__(self, *words, **more): {made}
    def run(self, names, feed): return [feed["x"]]
"""
# What stands in the place of onnxruntime, and what the doctor says of it.
BROKEN = {
    "raises": (
        "raise ImportError('libgomp.so.1: cannot open shared object file')",
        "installed here but does not import: ImportError('libgomp.so.1: cannot open",
    ),
    "does-not-fit": ("import numpy\nnumpy._ARRAY_API_of_1", "does not import: AttributeError("),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended with signal 11, SIGSEGV"),
    "ends": ("import os\nos._exit(0)", "said nothing"),
    "hollow": (HOLLOW.format(made="raise SystemError('no wrapper')"), "cannot load relu.onnx: no wrapper"),
    "wrong": (HOLLOW.format(made="pass"), "onnxruntime computes wrong"),
}


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-m", "edgekit", "agent", "doctor", "--state", str(folder / "state"), *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize("kind", BROKEN)
def test_the_doctor_names_a_broken_engine_and_the_others_stay_good(kind: str, tmp_path: Path) -> None:
    content, says = BROKEN[kind]
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    done = doctor(tmp_path, "--json")
    assert done.returncode == 1, done.stderr
    checks = [check for check in json.loads(done.stdout) if check["name"] == "engines"]
    (good,) = (check for check in checks if check["state"] == "good")
    (bad,) = (check for check in checks if check["state"] == "bad")
    assert "onnxruntime" not in good["found"]
    assert "openvino " in good["found"]
    assert says in bad["found"]
    assert "pip install 'edgekit-toolkit[onnxruntime]'" in bad["advice"]


def test_the_doctor_is_content_where_every_engine_works(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "BAD" not in done.stdout


@pytest.mark.parametrize("engine", _trial.MODELS)
def test_every_engine_runs_its_trial(engine: str) -> None:
    assert _trial.attempt(engine)[0].isdigit()


def test_a_trial_that_fails_in_an_unheard_of_way_is_an_engine_error(monkeypatch) -> None:
    class Model:
        def run(self, inputs):
            raise SystemError("returned a result with an exception set") from ImportError("numpy.core")

    class Engine:
        name = "litert"

        def load(self, *_):
            return Model()

    monkeypatch.setattr(_trial, "get", lambda _: Engine())
    with pytest.raises(
        EngineError, match=r"litert fails on a model of one operator: ImportError\('numpy.core'\)"
    ):
        _trial.attempt("litert")


def test_the_agents_platform_lists_only_what_works(tmp_path: Path, monkeypatch) -> None:
    from device_agent import probe

    (tmp_path / "openvino.py").write_text("raise OSError('no such library')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    platform = asyncio.run(probe.find(None))
    assert set(platform.engines) == {"onnxruntime", "litert"}
    assert "OSError('no such library')" in platform.broken["openvino"]
