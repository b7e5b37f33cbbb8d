"""The spool and the reporter: nothing leaves without its exact acknowledgement."""

import asyncio
import errno
import functools
import itertools
import random
import sqlite3
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import reporter as reporters
from device_agent.collector import Collector, death, merge, prometheus
from device_agent.database import PAGE_BYTES
from device_agent.reporter import Numbers, Reporter, Vitals
from device_agent.spool import Entry, Spool, key_of
from edgekit import sketch
from edgekit.manifest import Histogram
from edgekit.wire import messages
from edgekit.wire.messages import Ack, Boot, DeploymentWindow, Report

BOOT = Boot(7, 1, "0" * 16)
NEXT = Boot(7, 2, "1" * 16)
DIGEST = "a" * 64


def entry(seq, payload=b"x", boot=BOOT, digests=()):
    return Entry(key_of(boot, seq), payload, frozenset(digests))


def noise(size):
    """Bytes that do not deflate."""
    return random.Random(size).randbytes(size)


def keys(spool):
    return [(found.key.incarnation, found.key.seq) for _, found in spool.oldest(99)]


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool.db")
    yield opened
    opened.close()


def test_what_was_taken_is_there_until_its_id_is_given(spool):
    held = spool.exchange([entry(1, b"one", digests=[DIGEST]), entry(2), entry(1, boot=NEXT)])
    assert [found for _, found in spool.oldest(1)] == [entry(1, b"one", digests=[DIGEST])]
    assert keys(spool) == [(1, 1), (1, 2), (2, 1)]
    after = spool.exchange([entry(2, boot=NEXT)], held.ids[:2])
    assert keys(spool) == [(2, 1), (2, 2)]
    assert after.reports == 2
    assert spool.exchange((), [*held.ids[:2], 999]).reports == 2


def test_the_oldest_go_first_beyond_the_bound_and_are_counted(tmp_path):
    spool = Spool(tmp_path / "s.db", max_reports=3)
    for boot, seq in ((BOOT, 1), (BOOT, 2), (NEXT, 1), (NEXT, 2), (NEXT, 3)):
        held = spool.exchange([entry(seq, boot=boot)])
    assert keys(spool) == [(2, 1), (2, 2), (2, 3)]
    assert (held.reports, held.lost) == (3, 2)


def test_bytes_are_bounded_too(tmp_path):
    spool = Spool(tmp_path / "s.db", max_bytes=1000)
    for seq in range(10):
        held = spool.exchange([entry(seq, noise(250))])
    assert held.reports == 3


def test_it_is_all_there_after_a_restart(tmp_path):
    spool = Spool(tmp_path / "s.db", max_reports=2)
    for seq in range(3):
        spool.exchange([entry(seq, b"%d" % seq)])
    spool.close()
    again = Spool(tmp_path / "s.db", max_reports=2)
    assert [found.payload for _, found in again.oldest(9)] == [b"1", b"2"]
    held = again.exchange()
    assert (held.lost, held.reports, held.file) == (1, 2, 0)
    mode = (
        again._database.connection.execute("PRAGMA journal_mode").fetchone()[0],
        again._database.connection.execute("PRAGMA synchronous").fetchone()[0],
    )
    assert mode == (b"wal", 2)
    assert (tmp_path / "s.db").stat().st_mode & 0o777 == 0o600


def filled(path, reports=60):
    """A spool of many pages, closed, so that all of it is in the one file."""
    spool = Spool(path)
    spool.exchange([entry(seq, noise(700)) for seq in range(reports)])
    spool.close()
    return path.read_bytes()


def use(path):
    """Everything the agent does with a spool; how many reports it gave, and how many files were set aside."""
    spool = Spool(path)
    found = spool.oldest(64)
    spool.exchange([entry(1000)], [number for number, _ in found[:5]])
    last = spool.oldest(99)
    assert entry(1000) in [report for _, report in last]
    spool.exchange((), [number for number, _ in last])
    file = spool.file
    spool.close()
    return len(found), file


DAMAGE = {
    "zeroed": lambda page: bytes(len(page)),
    "noise": lambda page: noise(len(page)),
    "one bit": lambda page: page[:300] + bytes([page[300] ^ 4]) + page[301:],
    "its head": lambda page: noise(16) + page[16:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_spool_damaged_in_any_page_goes_on(tmp_path, damage):
    whole = filled(tmp_path / "s.db")
    files = []
    for start in range(0, len(whole), PAGE_BYTES):
        path = tmp_path / f"{start}.db"
        page = whole[start : start + PAGE_BYTES]
        path.write_bytes(whole[:start] + DAMAGE[damage](page) + whole[start + PAGE_BYTES :])
        reports, file = use(path)
        assert reports <= 60
        assert reports == 60 or file or damage != "noise"
        files.append(file)
        assert (tmp_path / f"{start}.db.damaged").exists() == bool(file)
    # The first page is the one without which SQLite opens nothing.
    assert files[0] or damage == "one bit"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_spool_cut_short_goes_on(tmp_path, share):
    whole = filled(tmp_path / "s.db")
    (tmp_path / "s.db").write_bytes(whole[: int(len(whole) * share)])
    use(tmp_path / "s.db")


def test_damage_met_while_running_is_set_aside_too(tmp_path):
    path = tmp_path / "s.db"
    filled(path)
    spool = Spool(path)
    assert len(spool.oldest(3)) == 3
    path.write_bytes(path.read_bytes()[: 3 * PAGE_BYTES] + noise(len(path.read_bytes())))
    spool._database.connection.execute("PRAGMA shrink_memory")
    spool.oldest(64)
    held = spool.exchange([entry(1000)])
    assert (held.reports, held.file, spool.file) == (1, 1, 1)


def test_a_report_whose_bytes_were_altered_is_dropped_and_counted(tmp_path):
    spool = Spool(tmp_path / "s.db")
    spool.exchange([entry(seq, b"%d" % seq) for seq in range(3)])
    with spool._database.connection:
        spool._database.connection.execute(
            "UPDATE report SET body = substr(body, 1, length(body) - 1) || x'ff' WHERE id = 2"
        )
    assert [found.key.seq for _, found in spool.oldest(9)] == [0, 2]
    held = spool.exchange()
    assert (held.reports, held.lost, held.file) == (2, 1, 0)


def test_a_folder_in_the_spools_place_is_set_aside(tmp_path):
    (tmp_path / "s.db").mkdir()
    spool = Spool(tmp_path / "s.db")
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError):
            spool.exchange([entry(1)])
    assert spool.exchange([entry(1)]).file == 1


class Direct:
    """A storage that does its work at once, and can be told to fail."""

    def __init__(self):
        self.condition = ""
        self.error = None

    async def do(self, work):
        if self.error is not None:
            self.condition = "full"
            raise self.error
        return work()

    def recover(self):
        self.condition, self.error = "", None


class Bench:
    """A reporter with a clock and a link that can be cut."""

    def __init__(self, spool, monkeypatch, window_s=10.0):
        self.now = 1000.0
        monkeypatch.setattr(reporters.time, "monotonic", lambda: self.now)
        self.sent = []
        self.is_up = True
        self.collector = Collector()
        self.storage = Direct()
        self.set_aside = 0
        self.reporter = Reporter(
            "board", BOOT, Numbers(), self.storage, spool, window_s=window_s,
            close_window=lambda: self.collector.close_window([("digits", DIGEST)]),
            vitals=lambda: Vitals(1.0, 50.0, None, clock_ok=True), send=self._send, set_aside=self._aside,
        )  # fmt: skip

    def _aside(self):
        self.set_aside += 1

    def _send(self, payload):
        if self.is_up:
            self.sent.append(msgspec.json.decode(payload, type=Report))
        return self.is_up

    async def pass_time(self, seconds):
        self.now += seconds
        await self.tick()

    async def tick(self):
        self.reporter.tick()
        await self.settle()

    async def settle(self):
        if self.reporter._is_saving:
            await asyncio.wait([self.reporter._saving])

    async def acknowledge(self, *seqs, boot=BOOT):
        digests = self.reporter.acknowledged(messages.encode(Ack(boot, seqs)))
        await self.settle()
        return digests

    @property
    def seqs(self):
        return [report.seq for report in self.sent]


@pytest.fixture
def bench(spool, monkeypatch):
    return Bench(spool, monkeypatch)


def running(test):
    """Run a test's coroutine in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(test(*arguments, **named))

    return run


@running
async def test_idle_windows_are_sent_with_zero_counts(bench):
    await bench.pass_time(10)
    (report,) = bench.sent
    assert report.deployments == (DeploymentWindow("digits", DIGEST),)
    assert report.length_s == 10


@running
async def test_a_report_is_sent_again_with_back_off_until_acknowledged(bench, spool):
    await bench.pass_time(10)
    times = [bench.now]
    for _ in range(200):
        count = len(bench.sent)
        bench.now += 1
        bench.reporter._opened = bench.now
        await bench.tick()
        if len(bench.sent) > count:
            times.append(bench.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) >= 3
    assert gaps[-1] > 3 * gaps[0]
    assert set(bench.seqs) == {1}
    assert await bench.acknowledge(1) == {DIGEST}
    await bench.reporter.close()
    assert spool.oldest(9) == []


@running
async def test_only_the_exact_boot_and_number_removes_a_report(bench, spool):
    for _ in range(3):
        await bench.pass_time(10)
    assert await bench.acknowledge(1, 2, 3, boot=NEXT) == set()
    assert await bench.acknowledge(1, boot=Boot(7, 1, "f" * 16)) == set()
    assert await bench.acknowledge(3, 99) == {DIGEST}
    assert await bench.acknowledge(3) == set()
    await bench.reporter.close()
    assert keys(spool) == [(1, 1), (1, 2)]


@running
async def test_after_a_reconnect_everything_unacknowledged_goes_at_once(bench):
    bench.is_up = False
    for _ in range(3):
        await bench.pass_time(10)
    assert bench.sent == []
    bench.is_up = True
    bench.reporter.link_up()
    assert bench.seqs == [1, 2, 3]
    await bench.acknowledge(2)
    bench.reporter.link_up()
    assert bench.seqs == [1, 2, 3, 1, 3]


@running
async def test_an_acknowledgement_that_cannot_be_read_changes_nothing(bench, spool):
    await bench.pass_time(10)
    assert bench.reporter.acknowledged(b"garbage") == frozenset()
    assert keys(spool) == [(1, 1)]


@running
async def test_an_acknowledged_report_leaves_with_the_next_one(bench, spool):
    """One transaction a report: what waits on the disk meanwhile is sent again after a cut, at worst."""
    await bench.pass_time(10)
    await bench.acknowledge(1)
    assert keys(spool) == [(1, 1)]
    await bench.pass_time(10)
    assert keys(spool) == [(1, 2)]


@running
async def test_reports_of_earlier_starts_are_sent_first_and_in_parts(spool, monkeypatch):
    spool.exchange([entry(seq, messages.encode(_old(seq))) for seq in range(150)])
    bench = Bench(spool, monkeypatch)
    await bench.tick()
    assert bench.seqs == []
    await bench.tick()
    assert bench.seqs == list(range(64))
    for start in (0, 64, 128):
        await bench.acknowledge(*range(start, start + 64))
        await bench.tick()
    assert bench.seqs == list(range(150))
    await bench.reporter.close()
    assert spool.oldest(9) == []


def _old(seq):
    started = datetime(2026, 1, 1, tzinfo=UTC)
    return Report("board", BOOT, seq, started, 1.0, clock_ok=True, deployments=())


@running
async def test_while_the_disk_is_full_reports_are_kept_in_memory_and_sent(bench, spool):
    await bench.tick()
    bench.storage.error = OSError(errno.ENOSPC, "full")
    for _ in range(3):
        await bench.pass_time(10)
    assert set(bench.seqs) == {1, 2, 3}
    assert bench.reporter.unsaved == 3
    assert await bench.acknowledge(2) == {DIGEST}
    bench.storage.recover()
    await bench.tick()
    assert bench.reporter.unsaved == 0
    assert keys(spool) == [(1, 1), (1, 3)]
    await bench.acknowledge(1, 3)
    await bench.reporter.close()
    assert spool.oldest(9) == []


@running
async def test_what_does_not_fit_in_memory_is_counted_as_lost(bench, spool, monkeypatch):
    monkeypatch.setattr(reporters, "MAX_UNSAVED_BYTES", 2000)
    bench.is_up = False
    bench.storage.error = OSError(errno.EROFS, "read-only")
    for _ in range(20):
        await bench.pass_time(10)
    bench.storage.recover()
    bench.is_up = True
    await bench.pass_time(10)
    await bench.pass_time(10)
    assert 0 < bench.sent[-1].lost_reports < 20
    assert bench.sent[-1].lost_reports + len({*bench.seqs}) == 22


@running
async def test_reports_in_memory_survive_a_spool_that_was_damaged(bench, spool, tmp_path):
    bench.is_up = False
    for _ in range(3):
        await bench.pass_time(10)
    spool.close()
    (tmp_path / "spool.db").write_bytes(noise(5000))
    await bench.pass_time(10)
    await bench.tick()
    assert bench.set_aside == 1
    assert sorted(keys(spool)) == [(1, 1), (1, 2), (1, 3), (1, 4)]


@running
async def test_an_acknowledgement_during_the_save_is_not_forgotten(bench, spool):
    await bench.tick()
    bench.now += 10
    bench.reporter.tick()
    assert bench.reporter._is_saving
    assert await bench.acknowledge(1) == {DIGEST}
    await bench.reporter.close()
    assert spool.oldest(9) == []


COUNTS = st.integers(0, 5)
WINDOWS = st.builds(
    lambda digest, requests, errors, values: DeploymentWindow(
        "digits", digest * 64, requests, errors, infer_ms=sketch.of(values),
        outputs={"y": Histogram([0.0, 1.0, 2.0], [requests, errors])},
    ),
    st.sampled_from("ab"), COUNTS, COUNTS, st.lists(st.floats(0.01, 100), max_size=5),
)  # fmt: skip


@given(st.lists(WINDOWS, max_size=12))
def test_nothing_is_lost_or_mixed_in_merging(windows):
    collector = Collector()
    for window in windows:
        collector.add(window)
    closed = {window.digest: window for window in collector.close_window([])}
    for digest in ("a" * 64, "b" * 64):
        mine = [window for window in windows if window.digest == digest]
        if mine:
            assert closed[digest].requests == sum(window.requests for window in mine)
            assert closed[digest].infer_ms.count == sum(window.infer_ms.count for window in mine)
            assert closed[digest].outputs["y"].counts == [
                sum(window.requests for window in mine), sum(window.errors for window in mine)
            ]  # fmt: skip
    assert collector.close_window([]) == ()


def test_a_death_is_a_failed_request():
    window = merge(DeploymentWindow("d", DIGEST, requests=9), death("d", DIGEST))
    assert (window.requests, window.errors, window.worker_deaths) == (10, 1, 1)


def test_the_prometheus_page_reads_as_its_format_asks():
    collector = Collector()
    collector.add(DeploymentWindow("digits", DIGEST, requests=3, infer_ms=sketch.of([1.0, 2.0, 3.0])))
    page = prometheus(collector.totals, {"digits": DIGEST, "other": None})
    assert 'edgekit_requests_total{deployment="digits",digest="aaaaaaaaaaaa"} 3\n' in page
    assert "edgekit_infer_milliseconds_count" in page
    assert 'edgekit_ready{deployment="other"} 0\n' in page
    for line in page.splitlines():
        assert line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0


def test_sqlite_is_new_enough_for_what_the_spool_uses():
    assert sqlite3.sqlite_version_info >= (3, 8, 2)
