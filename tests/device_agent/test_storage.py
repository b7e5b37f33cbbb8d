"""The storage thread: order, errors as conditions, recovery, and an event loop that never waits for a disk."""

import asyncio
import errno
import functools
import os
import sqlite3
import threading

import pytest

from device_agent import durable
from device_agent import storage as storages
from device_agent.conditions import Conditions
from device_agent.storage import Storage, state_of


def running(test):
    """Run a test's coroutine in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(test(*arguments, **named))

    return run


def failed(number):
    return OSError(number, os.strerror(number))


class Fault:
    """Fails operations while `number` is set."""

    def __init__(self):
        self.number = 0

    def __call__(self, _operation):
        if self.number:
            raise failed(self.number)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storages, "FIRST_PROBE_S", 0.001)
    monkeypatch.setattr(storages, "LONGEST_PROBE_S", 0.01)


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


@running
async def test_work_is_done_in_order_in_one_thread(tmp_path):
    storage = Storage(tmp_path)
    seen = []
    await asyncio.gather(
        *(storage.do(lambda n=n: seen.append((n, threading.get_ident()))) for n in range(50))
    )
    assert [n for n, _ in seen] == list(range(50))
    assert len({ident for _, ident in seen}) == 1
    assert seen[0][1] != threading.get_ident()
    await storage.close()


@running
async def test_close_finishes_what_was_given(tmp_path):
    storage = Storage(tmp_path)
    task = asyncio.create_task(storage.do(lambda: durable.write(tmp_path / "f", b"1")))
    await asyncio.sleep(0)
    await storage.close()
    await task
    assert (tmp_path / "f").read_bytes() == b"1"


@running
async def test_cancelled_work_that_has_not_begun_is_left_out(tmp_path):
    storage = Storage(tmp_path)
    gate, begun, seen = threading.Event(), threading.Event(), []

    def hold():
        begun.set()
        gate.wait()
        seen.append("held")

    first = asyncio.create_task(storage.do(hold))
    second = asyncio.create_task(storage.do(lambda: seen.append("second")))
    await until(begun.is_set)
    first.cancel()
    second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await storage.do(lambda: seen.append("third"))
    assert seen == ["held", "third"]
    await storage.close()


@running
async def test_any_other_error_reaches_who_asked_and_is_no_condition(tmp_path):
    storage = Storage(tmp_path)
    with pytest.raises(ZeroDivisionError):
        await storage.do(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        await storage.do((tmp_path / "none").read_bytes)
    assert storage.condition == ""
    await storage.close()


@pytest.mark.parametrize(
    ("number", "state"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EFBIG, "full"), (errno.EROFS, "read-only"),
     (errno.EACCES, "read-only"), (errno.EIO, "damaged"), (117, "damaged"), (errno.EEXIST, "")],
)  # fmt: skip
def test_an_error_means_a_condition(number, state):
    assert state_of(failed(number)) == state


def test_errors_of_sqlite_mean_conditions():
    for code, state in ((sqlite3.SQLITE_FULL, "full"), (sqlite3.SQLITE_READONLY | 1 << 8, "read-only")):
        error = sqlite3.OperationalError()
        error.sqlite_errorcode = code
        assert state_of(error) == state
    assert state_of(sqlite3.DatabaseError()) == "damaged"


@running
async def test_a_failing_disk_is_a_condition_until_it_can_be_written_again(tmp_path, quick):
    storage = Storage(tmp_path)
    seen = []
    storage.changed = lambda: seen.append(storage.condition)
    fault = Fault()
    with durable.watched(fault):
        fault.number = errno.ENOSPC
        with pytest.raises(OSError, match="No space"):
            await storage.do(lambda: durable.write(tmp_path / "f", b"1"))
        assert storage.condition == "full"
        fault.number = errno.EROFS
        await until(lambda: storage.condition == "read-only")
        fault.number = 0
        await until(lambda: storage.condition == "")
    assert seen == ["full", "read-only", ""]
    assert list(tmp_path.iterdir()) == []
    await storage.close()


@running
async def test_the_event_loop_serves_while_an_fsync_takes_its_time(tmp_path):
    """The sync ends only after a client was answered; were the loop to wait for it, the two would wait for ever."""
    answered, syncing = threading.Event(), threading.Event()
    waited = []

    def slow(operation):
        if operation.kind == "sync":
            syncing.set()
            waited.append(answered.wait(30))

    async def answer(_reader, writer):
        writer.write(b"here")
        writer.close()

    storage = Storage(tmp_path)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    with durable.watched(slow):
        writing = asyncio.create_task(storage.do(lambda: durable.write(tmp_path / "f", b"1")))
        await until(syncing.is_set)
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b"here"
            writer.close()
        assert not writing.done()
        answered.set()
        await writing
    assert waited == [True]
    server.close()
    await storage.close()


def test_a_condition_keeps_the_time_it_began_and_ends_when_cleared():
    changes = []
    conditions = Conditions(lambda: changes.append(1))
    conditions.set("storage-full", "12 bytes")
    (first,) = conditions.present()
    conditions.set("storage-full", "12 bytes")
    conditions.set("storage-full", "3 bytes")
    (again,) = conditions.present()
    assert (again.since, again.detail) == (first.since, "3 bytes")
    conditions.set("storage-full", "for one", "digits")
    assert len(conditions.present()) == 2
    conditions.choose(("storage-full", "storage-read-only"), "storage-read-only", "ro")
    assert {c.code for c in conditions.present() if not c.deployment} == {"storage-read-only"}
    conditions.choose(("storage-full", "storage-read-only"), "", "")
    conditions.clear("never set")
    assert [c.deployment for c in conditions.present()] == ["digits"]
    assert len(changes) == 6


def test_a_notice_ends_by_itself(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    conditions = Conditions()
    conditions.notice("spool-set-aside", "gone", lasts_s=10)
    now[0] += 9
    assert len(conditions.present()) == 1
    now[0] += 2
    assert conditions.present() == ()


def test_conditions_fit_a_message():
    conditions = Conditions()
    for number in range(200):
        conditions.set(f"c-{number}", "x" * 5000)
    assert len(conditions.present()) == 64
    assert max(len(condition.detail) for condition in conditions.present()) <= 500
