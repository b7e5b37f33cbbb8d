"""The second build of the same input: the same bundles in a moment, and figures that say they are not new."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
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


@pytest.fixture
def own_code(digits, tmp_path):
    """A project whose data come from code; the code reads a number from a file."""
    shutil.copy(digits.folder / "model.onnx", tmp_path)
    (tmp_path / "count.txt").write_text("400")
    (tmp_path / "data.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        f"data = np.load({str(digits.folder / 'eval.npz')!r})\n"
        "count = int(Path(__file__).with_name('count.txt').read_text())\n"
        "def samples():\n"
        "    return (({'x': x[None]}, y) for x, y in zip(data['x'][:count], data['labels'][:count]))\n"
    )
    (tmp_path / "edgekit.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nsource = "model.onnx"\n[inputs.x]\nshape = [1, 1, 8, 8]\n'
        '[data]\nevaluation = "data.py:samples"\n[contract]\nmax_accuracy_drop = 0.05\n[targets.x86-64-v3]\n'
    )
    return tmp_path


def reads(folder, *patterns):
    with (folder / "edgekit.toml").open("a") as file:
        file.write(f"[code]\nreads = {list(patterns)}\n")


def own_code_words(folder):
    return ["--project", folder, "--recipe", "onnxruntime/fp32"]


@pytest.mark.proof
def test_a_build_that_runs_code_of_unknown_reach_is_not_kept_and_says_how_it_would_be(
    own_code, run_build, kept_cache
):
    for name in ("one", "two"):
        assert not is_reused(build(run_build, own_code_words(own_code), own_code / name, kept_cache))
    told = run_build(*own_code_words(own_code), "--out", own_code / "three", cache=kept_cache)
    assert "[code] reads" in told.output


def test_a_build_whose_code_says_what_it_reads_is_kept_until_that_changes(own_code, run_build, kept_cache):
    reads(own_code, "*.py", "count.txt")
    words = own_code_words(own_code)
    assert not is_reused(build(run_build, words, own_code / "dist", kept_cache))
    assert is_reused(build(run_build, words, own_code / "dist", kept_cache))
    (own_code / "count.txt").write_text("401")
    assert not is_reused(build(run_build, words, own_code / "dist", kept_cache))
    with (own_code / "data.py").open("a") as file:
        file.write("# changed\n")
    assert not is_reused(build(run_build, words, own_code / "dist", kept_cache))


def test_what_a_build_writes_is_no_input_of_the_next_one(own_code, run_build, kept_cache):
    reads(own_code, ".")
    words = own_code_words(own_code)
    assert not is_reused(build(run_build, words, own_code / "dist", kept_cache))
    assert is_reused(build(run_build, words, own_code / "dist", kept_cache))


def test_a_build_during_which_an_input_changed_is_not_kept(own_code, run_build, kept_cache):
    with (own_code / "data.py").open("a") as file:
        file.write("Path(__file__).with_name('count.txt').write_text(str(count + 1))\n")
    reads(own_code, "*.py", "count.txt")
    build(run_build, own_code_words(own_code), own_code / "dist", kept_cache)
    (own_code / "count.txt").write_text("400")
    assert not is_reused(build(run_build, own_code_words(own_code), own_code / "dist", kept_cache))


def test_a_pattern_that_matches_nothing_is_refused(own_code, run_build, kept_cache):
    reads(own_code, "data/**")
    result = run_build(*own_code_words(own_code), "--out", own_code / "dist", cache=kept_cache)
    assert result.exit_code == 2
    assert "code.reads: 'data/**' matches no file" in result.stderr


@pytest.mark.proof
def test_weights_in_a_file_of_their_own_decide_too(digits, run_build, kept_cache, tmp_path):
    model = onnx.load(str(digits.folder / "model.onnx"))
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/fp32"]
    words[words.index(str(digits.folder / "model.onnx"))] = str(path)
    assert not is_reused(build(run_build, words, tmp_path / "out", kept_cache))
    assert is_reused(build(run_build, words, tmp_path / "out", kept_cache))
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.write(b"\x01")
    assert not is_reused(build(run_build, words, tmp_path / "out", kept_cache))


@pytest.mark.proof
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
