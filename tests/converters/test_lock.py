"""`edgekit.lock`: the choice once made is built again, and what changed since is named."""

import json

import pytest

from converters.keep.lock import LockedTarget, changes
from edgekit import evidence

NOTE = "comes from edgekit.lock"


@pytest.fixture(scope="module")
def words(digits):
    return [*digits.flags("model.onnx", "x86-64-v3", "raspberry-pi-5"), "--recipe", "onnxruntime/*"]


@pytest.fixture(scope="module")
def locked(words, run_build, tmp_path_factory):
    out = tmp_path_factory.mktemp("locked")
    result = run_build(*words, "--out", out, "--json", out / "r.json", "--lock")
    assert result.exit_code == 0, result.output
    return out


def digests(out):
    rows = json.loads((out / "r.json").read_text())["bundles"]
    return {(row["profile"], row["recipe"]): row["digest"] for row in rows}


def with_lock(locked, tmp_path):
    (tmp_path / "edgekit.lock").write_bytes((locked / "edgekit.lock").read_bytes())
    return tmp_path


@pytest.mark.parametrize("flags", [pytest.param([], marks=pytest.mark.proof), ["--locked"]])
def test_the_locked_recipes_alone_are_made_and_give_the_same_digests(
    flags, locked, words, run_build, tmp_path
):
    out = with_lock(locked, tmp_path)
    result = run_build(*words, "--out", out, "--json", out / "r.json", *flags)
    assert result.exit_code == 0, result.output
    assert digests(out) == digests(locked)
    document = json.loads((out / "r.json").read_text())
    assert {(row["profile"], row["recipe"]) for row in document["candidates"]} == set(digests(out))
    told = evidence.decode((out / "digits-1.0.0-x86-64-v3.evidence.json").read_bytes()).predicate
    assert any(NOTE in note for note in told.notes)


def test_the_lock_holds_no_path_and_writing_it_again_changes_nothing_but_a_choice(locked):
    text = (locked / "edgekit.lock").read_text()
    assert str(locked) not in text
    targets = json.loads(text)["targets"]
    assert list(targets) == sorted(targets)
    assert {row["digest"] for target in targets.values() for row in target["bundles"]} == set(
        digests(locked).values()
    )


def test_locked_refuses_another_contract_and_says_what_changed(locked, words, run_build, tmp_path):
    result = run_build(
        *words, "--max-accuracy-drop", "0.04", "--out", with_lock(locked, tmp_path), "--locked"
    )
    assert result.exit_code == 2
    assert "the contract changed" in str(result.exception)


@pytest.mark.proof
def test_without_locked_a_stale_lock_is_told_and_everything_is_tried(locked, words, run_build, tmp_path):
    out = with_lock(locked, tmp_path)
    result = run_build(*words, "--max-accuracy-drop", "0.04", "--out", out, "--json", out / "r.json")
    assert result.exit_code == 0, result.output
    assert "the contract changed; everything is tried" in result.stderr
    assert len(json.loads((out / "r.json").read_text())["candidates"]) > len(digests(out))


def test_locked_without_a_lock_says_how_to_write_one(words, run_build, tmp_path):
    result = run_build(*words, "--out", tmp_path, "--locked")
    assert result.exit_code == 2
    assert "edgekit build --lock" in str(result.exception)


@pytest.mark.proof
def test_other_bytes_than_the_lock_says_are_a_contract_missed(locked, words, run_build, tmp_path):
    out = with_lock(locked, tmp_path)
    content = json.loads((out / "edgekit.lock").read_text())
    content["targets"]["x86-64-v3"]["bundles"][0]["digest"] = "sha256:" + "0" * 64
    (out / "edgekit.lock").write_text(json.dumps(content))
    assert run_build(*words, "--out", out, "--locked").exit_code == 3


def test_a_damaged_lock_is_refused(words, run_build, tmp_path):
    (tmp_path / "edgekit.lock").write_text("{")
    result = run_build(*words, "--out", tmp_path)
    assert result.exit_code == 2
    assert "write it anew with --lock" in str(result.exception)


def test_a_tool_of_another_version_is_named_with_both():
    locked = LockedTarget(inputs={"model": "a"}, tools={"onnx": "1", "nncf": "3"}, bundles=())
    assert changes(locked, {"model": "a"}, {"onnx": "2", "nncf": "3"}) == ["onnx (1, now 2)"]
    assert changes(locked, {"model": "b"}, locked.tools) == ["the model"]
