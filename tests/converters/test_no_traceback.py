"""What the system refuses, and a request to stop, is a sentence and an exit code; nothing half-written is left."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.cli import trouble

# Calibration over which a worker waits for ever, after it wrote its process id.
WAITING = """
import os, signal, sys
import numpy as np
from converters.data import spool

# What the building process has kept, no worker would ask for again.
spool.MOST_BYTES = 0

def samples():
    if sys.argv[0].endswith("worker.py"):
        open({pid!r}, "w").write(str(os.getpid()))
        signal.pause()
    return ({{"x": x[None]}} for x in np.load({file!r})["x"])
"""


def edgekit(words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **more},
    )  # fmt: skip


def ended(words, **more):
    process = edgekit(words, **more)
    _, stderr = process.communicate(timeout=300)
    assert "Traceback" not in stderr, stderr
    assert "Exception ignored" not in stderr, stderr
    return process.returncode, stderr


@contextmanager
def disk(place, size):
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture
def words(digits, tmp_path):
    """A build of one recipe."""
    return [
        "build", *digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/fp32", "--jobs", "0",
        "--out", tmp_path / "out", "--cache", tmp_path / "cache",
    ]  # fmt: skip


def last(stderr):
    lines = [line for line in stderr.splitlines() if line.startswith("edgekit: ")]
    assert len(lines) == 1, stderr
    return lines[0]


@pytest.mark.proof
def test_a_full_disk_under_the_output_folder_is_named(words, tmp_path):
    with disk(tmp_path / "small", "64k") as small:
        words[words.index("--out") + 1] = small / "out"
        code, stderr = ended(words)
        assert code == 4
        assert "No space left on device" in last(stderr)
        assert str(small / "out") in last(stderr)
        assert "--out" in last(stderr)
        assert not list(small.rglob("*.part"))


def test_a_full_disk_under_the_temporary_folder_is_named_and_no_candidates_fault(words, tmp_path):
    with disk(tmp_path / "small", "24k") as small:
        code, stderr = ended(words, TMPDIR=str(small))
        assert code == 4
        assert "No space left" in last(stderr) or "is full" in last(stderr)
        assert "TMPDIR" in last(stderr)
        assert not list(small.rglob("edgekit-build-*"))


def test_a_full_disk_under_the_cache_costs_the_build_a_warning_only(words, tmp_path):
    with disk(tmp_path / "small", "40k") as small:
        words[words.index("--cache") + 1] = small / "cache"
        code, stderr = ended(words)
        assert code == 0, stderr
        assert stderr.count("cannot be used (No space left on device)") >= 1
        assert list((tmp_path / "out").glob("*.edgekit"))


def test_a_limit_on_file_sizes_is_a_sentence_too(words, tmp_path):
    command = f"ulimit -f 8; exec {sys.executable} -m edgekit {' '.join(map(str, words))} --no-cache"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (3, 4)
    assert "File too large" in done.stderr


def test_a_temporary_folder_that_is_not_there_is_refused(words, tmp_path):
    code, stderr = ended(words, TMPDIR=str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no such folder" in last(stderr)
    assert str(tmp_path / "nowhere") in last(stderr)


def test_an_output_folder_that_is_a_file_is_refused(words, tmp_path):
    (tmp_path / "out").write_text("in the way")
    code, stderr = ended(words)
    assert code == 2
    assert str(tmp_path / "out") in last(stderr)


def test_a_file_that_cannot_be_written_is_named(words, tmp_path):
    (tmp_path / "file").write_text("")
    code, stderr = ended([*words, "--json", tmp_path / "file" / "r.json"])
    assert code == 2
    assert "r.json" in last(stderr) or "file" in last(stderr)
    # What was finished is not lost.
    assert list((tmp_path / "out").glob("*.edgekit"))


def test_sigterm_ends_workers_and_leaves_nothing(digits, tmp_path):
    temporary, pid = tmp_path / "tmp", tmp_path / "pid"
    temporary.mkdir()
    data = tmp_path / "data.py"
    data.write_text(WAITING.format(pid=str(pid), file=str(digits.folder / "calib.npz")))
    process = edgekit(
        ["build", *digits.flags("model.onnx", "x86-64-v3"), "--calibration", f"{data}:samples", "--recipe",
         "onnxruntime/*", "--no-cache", "--jobs", "2", "--out", tmp_path / "out"],
        TMPDIR=str(temporary),
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert last(stderr) == "edgekit: terminated"
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{pid.read_text()}").exists()
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_bug_of_ours_is_one_line_and_debug_shows_where():
    script = (
        "import sys, click, edgekit.cli as c\n"
        "@c.cli.command('fail')\ndef fail():\n    raise ValueError('odd\\nlong')\n"
        "c.LazyGroup.get_command = lambda *_: fail\n"
        "c.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "fail"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError: odd" in last(done.stderr)
    assert "Traceback" not in done.stderr
    shown = subprocess.run(
        [sys.executable, "-c", script, "--debug", "fail"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in shown.stderr


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m edgekit profiles list --json | true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "No space left on device; free some space"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied; choose a folder"),
        (OSError("odd"), "odd"),
        (FileNotFoundError(2, "No such file or directory", "a"), "a: No such file or directory"),
    ],
)
def test_every_refusal_of_the_system_says_which_file_what_and_what_to_do(error, says):
    assert trouble.sentence(error).startswith(says)
