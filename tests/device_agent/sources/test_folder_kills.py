"""A folder source that is killed before each of its steps: no file is lost, none is answered twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_folder.py")
FILES = {"a.json": "1", "b.json": "9", "c.json": "3"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder for every step that a process was killed before, and then gone on with; 0 is nobody's."""
    root = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, SCRIPT, root, json.dumps(FILES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    whole, *ended, last = json.loads(done.stdout)
    assert (whole, last) == (0, 0)
    assert set(ended) == {-9}
    return root, len(ended)


def check(root):
    """What must be true at the end; how many lines there are, and how often the model was asked."""
    inbox = root / "in"
    assert sorted(path.name for path in inbox.iterdir()) == ["done", "failed"]
    assert sorted(path.name for path in (inbox / "done").iterdir()) == ["a.json", "c.json"]
    assert sorted(path.name for path in (inbox / "failed").iterdir()) == ["b.json", "b.json.reason.json"]
    lines = [json.loads(line) for line in (root / "out.jsonl").read_text().splitlines()]
    ids = {}
    for line in lines:
        ids.setdefault(line["input"]["file"], set()).add(line["id"])
    # Lines may repeat; then they have one id.
    assert {name: len(found) for name, found in ids.items()} == dict.fromkeys(FILES, 1)
    return len(lines), len((root / "asked").read_text().splitlines())


def test_without_a_kill_each_file_is_asked_once_and_has_one_line(killed):
    root, steps = killed
    assert check(root / "0") == (3, 3)
    assert steps >= 40


def test_killed_before_any_step_nothing_is_lost_or_answered_twice(killed):
    root, steps = killed
    found = [check(root / str(step)) for step in range(1, steps + 1)]
    # What was asked and not yet kept is asked again: one file at most. What was written and not yet noted is written again.
    assert {asked for _, asked in found} == {3, 4}
    assert {lines for lines, _ in found} == {3, 6}


@pytest.mark.parametrize("damage", ["a line lost", "another id", "a file left", "a file gone"])
def test_the_check_finds_what_it_is_for(killed, tmp_path, damage):
    import shutil

    shutil.copytree(killed[0] / "0", tmp_path / "copy")
    root = tmp_path / "copy"
    check(root)
    out = root / "out.jsonl"
    lines = out.read_text().splitlines(keepends=True)
    if damage == "a line lost":
        out.write_text("".join(lines[1:]))
    elif damage == "another id":
        out.write_text("".join(lines) + json.dumps(json.loads(lines[0]) | {"id": "another"}) + "\n")
    elif damage == "a file left":
        (root / "in/d.json").write_text("1")
    else:
        (root / "in/done/a.json").unlink()
    with pytest.raises(AssertionError):
        check(root)
