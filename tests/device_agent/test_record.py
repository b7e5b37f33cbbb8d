"""State files that know when they are damaged."""

import errno
import os

import msgspec
import pytest

from device_agent import durable
from device_agent.record import Record


class Thing(msgspec.Struct, frozen=True):
    number: int


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path / "thing.json", Thing)
    record.save(Thing(1))
    record.save(Thing(2))
    return record


def again(record):
    return Record(record.paths[0], Thing)


def test_the_newest_value_is_found_again(record):
    assert again(record).load() == Thing(2)
    assert {path.stat().st_mode & 0o777 for path in record.paths} == {0o600}


def test_nothing_kept_is_nothing_and_no_trouble(tmp_path):
    record = Record(tmp_path / "none.json", Thing)
    assert record.load() is None
    assert record.trouble == ()


def test_any_single_byte_altered_in_one_copy_is_found_and_mended(record):
    whole = record.paths[0].read_bytes()
    for position in range(len(whole)):
        for path in record.paths:
            altered = bytearray(whole)
            altered[position] ^= 0x01
            path.write_bytes(altered)
            found = again(record)
            assert found.load() == Thing(2)
            assert found.trouble == (path.name,)
            assert path.with_name(f"{path.name}.damaged").read_bytes() == altered
            path.with_name(f"{path.name}.damaged").unlink()
            whole = record.paths[0].read_bytes()
            assert record.paths[1].read_bytes() == whole


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-5], lambda data: bytes(len(data))])
def test_a_copy_cut_short_or_zeroed_is_damaged(record, damage):
    record.paths[0].write_bytes(damage(record.paths[0].read_bytes()))
    found = again(record)
    assert found.load() == Thing(2)
    assert found.trouble == ("thing.json",)
    assert again(record).load() == Thing(2)


def test_two_damaged_copies_are_set_aside_and_told(record):
    for path in record.paths:
        path.write_bytes(b"junk")
    found = again(record)
    assert found.load() is None
    assert found.trouble == ("thing.json", "thing.json.2")
    assert again(record).load() is None
    found.save(Thing(9))
    assert again(record).load() == Thing(9)


def test_a_cut_between_the_two_renames_leaves_the_newer_and_no_trouble(record):
    older = record.paths[1].read_bytes()
    record.save(Thing(3))
    record.paths[1].write_bytes(older)
    found = again(record)
    assert found.load() == Thing(3)
    assert found.trouble == ()


def test_a_missing_copy_is_made_again(record):
    record.paths[0].unlink()
    assert again(record).load() == Thing(2)
    assert record.paths[0].is_file()


def test_looking_at_a_record_writes_nothing(record):
    record.paths[0].write_bytes(b"junk")
    before = {path.name: path.read_bytes() for path in record.paths[0].parent.iterdir()}
    found = again(record)
    assert found.peek() == Thing(2)
    assert found.trouble == ("thing.json",)
    assert {path.name: path.read_bytes() for path in record.paths[0].parent.iterdir()} == before


def test_a_damaged_copy_on_a_read_only_disk_still_gives_the_value(record):
    record.paths[0].write_bytes(b"junk")

    def refuse(_operation):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with durable.watched(refuse):
        assert again(record).load() == Thing(2)
    assert record.paths[0].read_bytes() == b"junk"
