"""Durable writes: the order of what reaches the disk, seen from the system calls."""

import os
from pathlib import Path

import pytest

from device_agent import durable
from device_agent.folder import StateFolder
from edgekit.errors import UsageError


@pytest.fixture
def calls(monkeypatch):
    """What is synced, renamed and linked, in order."""
    seen = []

    def record(name, describe):
        original = getattr(os, name)

        def wrapper(*arguments, **named):
            seen.append((name, describe(arguments)))
            return original(*arguments, **named)

        monkeypatch.setattr(os, name, wrapper)

    record("fsync", lambda a: Path(f"/proc/self/fd/{a[0]}").readlink().name)
    record("replace", lambda a: f"{Path(a[0]).name}>{Path(a[1]).name}")
    record("symlink", lambda a: f"{a[0]}<{Path(a[1]).name}")
    return seen


def test_a_file_is_synced_then_named_then_its_folder_synced(tmp_path, calls):
    durable.write(tmp_path / "state.json", b"1")
    assert calls == [
        ("fsync", ".state.json.new"),
        ("replace", ".state.json.new>state.json"),
        ("fsync", tmp_path.name),
    ]
    assert (tmp_path / "state.json").read_bytes() == b"1"
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_an_adopted_file_is_synced_before_it_gets_its_name(tmp_path, calls):
    (tmp_path / "x.part").write_bytes(b"data")
    durable.adopt(tmp_path / "x.part", tmp_path / "x")
    assert calls == [("fsync", "x.part"), ("replace", "x.part>x"), ("fsync", tmp_path.name)]


def test_a_link_is_replaced_in_one_step(tmp_path, calls):
    durable.point(tmp_path / "current", "A")
    durable.point(tmp_path / "current", "B")
    assert (tmp_path / "current").readlink().name == "B"
    assert calls[-3:] == [
        ("symlink", "B<.current.new"),
        ("replace", ".current.new>current"),
        ("fsync", tmp_path.name),
    ]


def test_new_folders_are_synced_into_their_parents(tmp_path, calls):
    durable.make_folder(tmp_path / "a" / "b")
    assert calls == [("fsync", tmp_path.name), ("fsync", "a")]
    durable.make_folder(tmp_path / "a" / "b")
    assert len(calls) == 2


def test_removing_what_is_not_there_is_fine(tmp_path):
    durable.remove(tmp_path / "nothing")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    durable.point(tmp_path / "link", "tree")
    durable.remove(tmp_path / "link")
    assert (tmp_path / "tree").is_dir()
    durable.remove(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    durable.write(tmp_path / "f", b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_state_folder_has_one_agent(tmp_path):
    folder = StateFolder(tmp_path / "s")
    assert not folder.is_locked()
    held = folder.lock()
    assert folder.is_locked()
    with pytest.raises(UsageError, match="another agent"):
        folder.lock()
    os.close(held)
    assert not folder.is_locked()
