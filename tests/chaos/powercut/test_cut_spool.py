"""SQLite orders the spool's own writes: its log is cut at every boundary, and every report that was promised is there."""

import random
import shutil

import pytest

from device_agent.spool import Entry, Spool, key_of
from edgekit.wire.messages import Boot

BOOT = Boot(7, 2, "0" * 16)
FRAME_HEADER, LOG_HEADER, PAGE = 24, 32, 1024


def entry(seq):
    return Entry(key_of(BOOT, seq), random.Random(seq).randbytes(300 + seq * 40), frozenset())


@pytest.fixture
def written(empty):
    """A spool as it lies on the disk while its agent runs, with the log's length after each promise."""
    spool = Spool(empty / "spool.db")
    promises = []
    held = []
    for seq in range(12):
        gone = [held.pop(0)] if len(held) > 3 else []
        held += spool.exchange([entry(seq)], gone).ids
        log = (empty / "spool.db-wal").stat().st_size
        promises.append((log, seq, [number for number, _ in spool.oldest(99)]))
    database, log = (empty / "spool.db").read_bytes(), (empty / "spool.db-wal").read_bytes()
    spool.close()
    return database, log, promises


def boundaries(log):
    """Every frame's begin and end with the bytes around them, and every sector's."""
    frames = range(LOG_HEADER, len(log) + 1, FRAME_HEADER + PAGE)
    edges = {edge + near for start in frames for edge in (start, start + FRAME_HEADER) for near in (-1, 0, 1)}
    return sorted(edge for edge in edges | set(range(0, len(log), 512)) if 0 <= edge <= len(log))


TAILS = {
    "absent": lambda tail: b"",
    "zeroed": lambda tail: bytes(len(tail)),
    "noise": lambda tail: random.Random(len(tail)).randbytes(len(tail)),
}


@pytest.mark.parametrize("tail", TAILS)
def test_a_log_cut_anywhere_keeps_every_report_that_was_promised(written, empty, tail):
    database, log, promises = written
    cuts = boundaries(log)
    assert len(cuts) > 100
    for cut in cuts:
        folder = empty / str(cut)
        folder.mkdir()
        (folder / "spool.db").write_bytes(database)
        (folder / "spool.db-wal").write_bytes(log[:cut] + TAILS[tail](log[cut:]))
        spool = Spool(folder / "spool.db")
        found = [number for number, _ in spool.oldest(99)]
        kept = [(seq, ids) for length, seq, ids in promises if length <= cut]
        # What is found is the state after some exchange: the last promised one, or one that followed.
        allowed = [ids for _, ids in kept[-1:]] + [ids for length, _, ids in promises if length > cut]
        assert found in (allowed or [[]]) or (not kept and found == []), (cut, found)
        assert (found == promises[-1][2]) == (cut >= promises[-1][0])
        assert spool.file == 0, "a power cut was taken for damage"
        spool.exchange([entry(99)])
        spool.close()
        shutil.rmtree(folder)
