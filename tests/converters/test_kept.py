"""The second build of the same input: the same bundles in a moment, and figures that say they are not new."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit import evidence
from edgekit.cli import cli
from edgekit.errors import UsageError

AGAIN = "nothing changed since the build of"


@pytest.fixture(scope="module")
def words(digits):
    return [*digits.flags("model.onnx", "x86-64-v3", "raspberry-pi-5"), "--recipe", "onnxruntime/*fp32"]


@pytest.fixture(scope="module")
def kept_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def first(words, run_build, kept_cache, tmp_path_factory):
    return build(run_build, words, tmp_path_factory.mktemp("first"), kept_cache)


def build(run_build, words, out, cache):
    result = run_build(*words, "--out", out, "--json", out / "r.json", cache=cache)
    assert result.exit_code == 0, result.output
    return json.loads((out / "r.json").read_text())


def digests(document):
    return [(row["profile"], row["recipe"], row["digest"]) for row in document["bundles"]]


def is_reused(document):
    return all(any(AGAIN in note for note in row["notes"]) for row in document["bundles"])


def test_the_second_build_has_the_same_bundles_and_says_when_they_were_measured(
    first, words, run_build, kept_cache, tmp_path
):
    second = build(run_build, words, tmp_path, kept_cache)
    assert digests(second) == digests(first)
    assert not is_reused(first)
    assert is_reused(second)
    for row in second["bundles"]:
        path = Path(row["path"])
        assert path.is_relative_to(tmp_path)
        told = evidence.decode(evidence.beside(path).read_bytes(), sha256=row["digest"][7:]).predicate
        assert any(AGAIN in note for note in told.notes)
    assert AGAIN in (tmp_path / "report.html").read_text()


def test_it_loads_no_engine(first, words, kept_cache, tmp_path):
    command = [str(word) for word in ("build", *words, "--out", tmp_path, "--cache", kept_cache)]
    script = f"""
import sys
sys.argv = ["edgekit", *{command!r}]
from edgekit.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print([name for name in ("torch", "onnx", "onnxruntime", "openvino", "nncf") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "change", [["--max-accuracy-drop", "0.04"], ["--memory-mb", "5000"], ["--measure"], ["--strict"]]
)
def test_a_changed_request_is_built_anew(change, first, words, run_build, kept_cache, tmp_path):
    assert not is_reused(build(run_build, [*words, *change], tmp_path, kept_cache))


def test_changed_data_is_judged_anew(first, digits, words, run_build, kept_cache, tmp_path):
    other = tmp_path / "eval.npz"
    with np.load(digits.folder / "eval.npz") as data:
        np.savez(other, x=data["x"][:-1], labels=data["labels"][:-1])
    assert not is_reused(build(run_build, [*words, "--evaluation", other], tmp_path / "out", kept_cache))


def test_a_build_that_runs_the_users_code_is_never_kept(digits, run_build, kept_cache, tmp_path):
    (tmp_path / "data.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        f"data = np.load({str(digits.folder / 'eval.npz')!r})\n"
        "def samples():\n    return (({'x': x[None]}, y) for x, y in zip(data['x'], data['labels']))\n"
    )
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/fp32"]
    words += ["--evaluation", f"{tmp_path / 'data.py'}:samples"]
    for name in ("one", "two"):
        assert not is_reused(build(run_build, words, tmp_path / name, kept_cache))


@pytest.mark.slow
def test_two_folders_two_processes_and_another_hash_seed_give_the_same_bytes(digits, tmp_path):
    """All engines, nothing kept and nothing cached."""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / f"folder-{seed}"
        folder.mkdir()
        for name in ("model.onnx", "calib.npz", "eval.npz"):
            shutil.copy(digits.folder / name, folder)
        command = [
            sys.executable, "-m", "edgekit", "build", "model.onnx", "--name", "digits", "--version", "1",
            "--shape", "x=1,1,8,8", "--calibration", "calib.npz", "--evaluation", "eval.npz",
            "--max-accuracy-drop", "0.03", "--target", "raspberry-pi-5", "--json", "r.json", "--no-cache",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(digests(json.loads((folder / "r.json").read_text())))
    assert len(found[0]) > 1
    assert found[0] == found[1]


def test_the_cache_tells_what_it_holds_and_clears_only_its_own(first, kept_cache, tmp_path):
    mine = tmp_path / "cache"
    shutil.copytree(kept_cache, mine)
    (mine / "notes.txt").write_text("keep me")
    told = CliRunner().invoke(cli, ["cache", "status", "--cache", str(mine), "--json"])
    found = json.loads(told.output)
    assert found["artifacts"] > 0
    assert found["builds"] > 0
    assert found["build_bytes"] > 0
    assert CliRunner().invoke(cli, ["cache", "clear", "--cache", str(mine)]).exit_code == 0
    assert (
        json.loads(CliRunner().invoke(cli, ["cache", "status", "--cache", str(mine), "--json"]).output)[
            "builds"
        ]
        == 0
    )
    assert (mine / "notes.txt").read_text() == "keep me"


def test_the_report_can_be_drawn_again_from_evidence_or_the_result(first, tmp_path):
    files = [evidence.beside(Path(row["path"])) for row in first["bundles"] if not row["alternate"]]
    page = tmp_path / "again.html"
    done = CliRunner().invoke(cli, ["report", *map(str, files), "--out", str(page)])
    assert done.exit_code == 0, done.output
    for row in first["bundles"]:
        assert row["recipe"] in page.read_text()
        assert f'id="{row["profile"]}"' in page.read_text()
    result = Path(first["bundles"][0]["path"]).parent / "r.json"
    assert CliRunner().invoke(cli, ["report", str(result), "--out", str(page)]).exit_code == 0
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match="neither evidence nor"):
        CliRunner().invoke(cli, ["report", str(tmp_path / "other.json")], catch_exceptions=False)
