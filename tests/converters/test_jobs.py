"""`--jobs`: candidates made side by side in processes of their own, of which any may die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converters.keep import room
from converters.keep.artifacts import Cache

# Crashes where a calibrated recipe of a worker reads it, as a converter's native code would.
CRASHING = """
import os, signal
import numpy as np
from converters.data import spool

# What the building process has kept, no worker would ask for again.
spool.MOST_BYTES = 0

def samples():
    if os.getpid() != {parent}:
        {what}
    return ({{"x": x[None]}} for x in np.load({file!r})["x"])
"""


def build(run_build, words, out, **more):
    result = run_build(*words, "--out", out, "--json", out / "r.json", **more)
    return result, json.loads((out / "r.json").read_text()) if (out / "r.json").exists() else None


def crashing(digits, folder, what):
    file = folder / "data.py"
    text = CRASHING.format(parent=os.getpid(), file=str(digits.folder / "calib.npz"), what=what)
    file.write_text(text)
    return ["--calibration", f"{file}:samples"]


def waiting(digits, folder):
    """Calibration data over which a worker waits for ever, after it wrote its process id to `pid`."""
    words = crashing(
        digits, folder, f"open({str(folder / 'pid')!r}, 'w').write(str(os.getpid())); signal.pause()"
    )
    text = (folder / "data.py").read_text()
    is_worker = "__import__('sys').argv[0].endswith('worker.py')"
    (folder / "data.py").write_text(text.replace(f"os.getpid() != {os.getpid()}", is_worker))
    return [*digits.flags("model.onnx", "x86-64-v3"), *words, "--recipe", "onnxruntime/*", "--no-cache"]


def digests(document):
    return [(row["profile"], row["recipe"], row["digest"]) for row in document["bundles"]]


@pytest.mark.proof
def test_two_workers_make_what_this_process_makes(digits, run_build, tmp_path):
    words = [*digits.flags("net.py:make", "raspberry-pi-5"), "--recipe", "o*", "--no-cache"]
    found = {}
    for jobs in ("0", "2"):
        result, found[jobs] = build(run_build, [*words, "--jobs", jobs], tmp_path / jobs, cache=None)
        assert result.exit_code == 0, result.output
        # The user's code is told of once, however many processes run it.
        assert result.output.count("runs your code") == 1
    assert not any(row["status"] == "failed" for row in found["2"]["candidates"])
    assert digests(found["0"]) == digests(found["2"])
    figures = {
        jobs: [
            (row["recipe"], row["accuracy"], row["parity"], row["size_bytes"])
            for row in document["candidates"]
        ]
        for jobs, document in found.items()
    }
    assert figures["0"] == figures["2"]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11, SIGSEGV", marks=pytest.mark.proof),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9, SIGKILL, perhaps for want of memory"),
        pytest.param("os._exit(3)", "exit code 3", marks=pytest.mark.proof),
    ],
)
def test_a_converter_that_dies_costs_its_candidate_only(what, reason, digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/*", "--jobs", "2"]
    words += crashing(digits, tmp_path, what)
    # What another test has converted would not be converted again.
    result, document = build(run_build, words, tmp_path, cache=tmp_path / "cache")
    assert result.exit_code == 0, result.output
    rows = {row["recipe"]: row for row in document["candidates"]}
    for recipe in ("onnxruntime/static-int8", "onnxruntime/percentile-int8"):
        assert rows[recipe]["status"] == "failed"
        assert rows[recipe]["reason"] == f"the converter died ({reason}) while converting {recipe}"
    assert rows["onnxruntime/fp32"]["accuracy"] is not None
    assert rows["onnxruntime/dynamic-int8"]["accuracy"] is not None


@pytest.mark.proof
def test_a_factory_that_gives_another_model_each_time_is_built_in_this_process(digits, run_build, tmp_path):
    (tmp_path / "random_net.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(4, 3)\n")
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef samples():\n"
        "    return (({'x': x[None]}) for x in np.random.default_rng(0).normal(size=(200, 4)).astype('float32'))\n"
    )
    words = [
        f"{tmp_path}/random_net.py:make", "--name", "random", "--version", "1", "--shape", "x=1,4",
        "--evaluation", f"{tmp_path}/data.py:samples", "--target", "x86-64-v3", "--recipe", "onnxruntime/fp32",
        "--jobs", "1",
    ]  # fmt: skip
    result, document = build(run_build, words, tmp_path)
    assert result.exit_code == 0, result.output
    assert "gives another model each time; set a seed in it" in result.output
    assert [row["recipe"] for row in document["bundles"]] == ["onnxruntime/fp32"]


def started(words, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", *map(str, words), "--out", str(folder / "out")],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stderr=subprocess.DEVNULL,
    )


def test_ctrl_c_ends_the_workers_and_leaves_nothing(digits, tmp_path):
    (tmp_path / "tmp").mkdir()
    process = started(waiting(digits, tmp_path), tmp_path)
    worker = waited_for(tmp_path / "pid")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert not Path(f"/proc/{worker}").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_workers_die_with_a_build_that_is_killed(digits, tmp_path):
    (tmp_path / "tmp").mkdir()
    process = started(waiting(digits, tmp_path), tmp_path)
    worker = waited_for(tmp_path / "pid")
    process.kill()
    process.wait()
    ended = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < ended:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def waited_for(file):
    ended = time.monotonic() + 120
    while time.monotonic() < ended:
        if file.exists() and file.read_text():
            return file.read_text()
        time.sleep(0.1)
    raise AssertionError("no worker came to its calibration")


def test_calibration_data_that_code_makes_is_made_once_for_all_processes(digits, run_build, tmp_path):
    text = f"""
import numpy as np

def samples():
    with open({str(tmp_path / "passes")!r}, "a") as file:
        file.write("+")
    return ({{"x": x[None]}} for x in np.load({str(digits.folder / "calib.npz")!r})["x"])
"""
    (tmp_path / "data.py").write_text(text)
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/*-int8", "--jobs", "1"]
    words += ["--calibration", f"{tmp_path / 'data.py'}:samples", "--accept-uncertain"]
    result, document = build(run_build, words, tmp_path, cache=tmp_path / "cache")
    made = [row["recipe"] for row in document["candidates"] if row["status"] != "failed"]
    assert "onnxruntime/static-int8" in made, result.output
    assert (tmp_path / "passes").read_text() == "+"


@pytest.mark.proof
def test_profiles_that_ask_the_same_share_one_conversion(digits, run_build, tmp_path):
    """Three boards whose int8 is the same."""
    words = digits.flags("model.onnx", "raspberry-pi-4", "raspberry-pi-5", "generic-arm64")
    for jobs in ("0", "2"):
        result, document = build(
            run_build, [*words, "--recipe", "onnxruntime/*", "--jobs", jobs], tmp_path / jobs, cache=None
        )
        assert result.exit_code == 0, result.output
        recipes = {row["recipe"] for row in document["candidates"] if row["status"] != "failed"}
        assert len({row["profile"] for row in document["candidates"]}) == 3
        for recipe in recipes:
            assert result.output.count(f"converting {recipe}\n") == 1


WRITER = """
import sys, time
from pathlib import Path
from converters.keep.artifacts import Cache

def make(folder):
    while not Path(sys.argv[3]).exists():
        time.sleep(0.01)
    for name in "abc":
        (folder / name).write_bytes(b"x" * 1_000_000)
    return {"by": "either"}

Path(sys.argv[2]).mkdir()
Cache(Path(sys.argv[1])).fetch({"one": "key"}, Path(sys.argv[2]), make)
"""


def test_two_processes_that_store_the_same_entry_leave_it_whole(tmp_path):
    root, go = tmp_path / "cache", tmp_path / "go"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(root), str(tmp_path / str(index)), str(go)])
        for index in range(2)
    ]
    while not all((tmp_path / str(index)).is_dir() for index in range(2)):
        time.sleep(0.02)
    go.touch()
    assert [writer.wait() for writer in writers] == [0, 0]
    (tmp_path / "read").mkdir()
    found = Cache(root).fetch({"one": "key"}, tmp_path / "read", lambda _: pytest.fail("not stored"))
    assert found == {"by": "either"}
    assert {path.name: path.stat().st_size for path in (tmp_path / "read").iterdir()} == dict.fromkeys(
        "abc", 1_000_000
    )
    assert [path.name for path in root.iterdir() if path.name != ".lock"] == [
        item.path.name for item in room.entries(root)
    ]
