"""Durable writes: the order of what reaches the disk, as the watcher sees it, and what a failure leaves behind."""

import errno
import os

import pytest

from device_agent import durable
from device_agent.folder import StateFolder
from edgekit.errors import UsageError


@pytest.fixture
def calls():
    """Every operation in order: (kind, name, new name or target or length)."""
    seen = []

    def told(operation):
        detail = operation.detail
        if operation.kind == "rename":
            detail = detail.name
        seen.append((operation.kind, operation.path.name, detail))

    with durable.watched(told):
        yield seen


def failing(kind, number):
    """A watcher that fails operations of `kind` with this errno."""

    def fail(operation):
        if operation.kind == kind:
            raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_synced_then_named_then_its_folder_synced(tmp_path, calls):
    durable.write(tmp_path / "state.json", b"1")
    assert calls == [
        ("create", ".state.json.new", b""),
        ("write", ".state.json.new", b"1"),
        ("sync", ".state.json.new", b""),
        ("rename", ".state.json.new", "state.json"),
        ("sync-folder", tmp_path.name, b""),
    ]
    assert (tmp_path / "state.json").read_bytes() == b"1"
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_several_files_need_one_sync_of_their_folder(tmp_path, calls):
    durable.write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [call[0] for call in calls if call[0].startswith(("sync", "rename"))] == [
        "sync", "sync", "rename", "rename", "sync-folder",
    ]  # fmt: skip


def test_a_file_takes_another_name_only_after_its_data_was_synced(tmp_path, calls):
    with durable.writing(tmp_path / "0.part", sync=False) as sink:
        sink.write(b"da")
        sink.adopt(tmp_path / "2.part")
        sink.write(b"ta")
        sink.adopt(tmp_path / "4.part")
        assert sink.position == 4
    durable.rename(tmp_path / "4.part", tmp_path / "x")
    assert [call[:2] for call in calls] == [
        ("create", "0.part"), ("write", "0.part"), ("sync", "0.part"), ("rename", "0.part"),
        ("sync-folder", tmp_path.name), ("write", "2.part"), ("sync", "2.part"), ("rename", "2.part"),
        ("sync-folder", tmp_path.name), ("rename", "4.part"), ("sync-folder", tmp_path.name),
    ]  # fmt: skip
    assert (tmp_path / "x").read_bytes() == b"data"


def test_a_file_is_continued_where_the_caller_says(tmp_path, calls):
    (tmp_path / "x.part").write_bytes(b"good and bad")
    with durable.writing(tmp_path / "x.part", at=4) as sink:
        sink.write(b" again")
    assert (tmp_path / "x.part").read_bytes() == b"good again"
    assert calls == [
        ("cut", "x.part", 4),
        ("write", "x.part", b" again"),
        ("sync", "x.part", b""),
    ]


def test_a_link_is_replaced_in_one_step(tmp_path, calls):
    durable.point(tmp_path / "current", "A")
    durable.point(tmp_path / "current", "B")
    assert (tmp_path / "current").readlink().name == "B"
    assert calls[-3:] == [
        ("symlink", ".current.new", "B"),
        ("rename", ".current.new", "current"),
        ("sync-folder", tmp_path.name, b""),
    ]


def test_new_folders_are_synced_into_their_parents(tmp_path, calls):
    durable.make_folder(tmp_path / "a" / "b")
    syncs = [call for call in calls if call[0] == "sync-folder"]
    assert [name for _, name, _ in syncs] == [tmp_path.name, "a"]
    durable.make_folder(tmp_path / "a" / "b")
    assert len(calls) == 4


def test_removing_what_is_not_there_is_fine(tmp_path):
    durable.remove(tmp_path / "nothing")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").touch()
    (tmp_path / "tree" / "link").symlink_to("below")
    durable.point(tmp_path / "link", "tree")
    durable.remove(tmp_path / "link")
    assert (tmp_path / "tree").is_dir()
    durable.remove(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, kind):
    durable.write(tmp_path / "f", b"old")
    with durable.watched(failing(kind, errno.ENOSPC)), pytest.raises(OSError, match="No space"):
        durable.write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_state_folder_has_one_agent(tmp_path):
    folder = StateFolder(tmp_path / "s")
    assert not folder.is_locked()
    held = folder.lock()
    assert folder.is_locked()
    with pytest.raises(UsageError, match="another agent"):
        folder.lock()
    os.close(held)
    assert not folder.is_locked()
