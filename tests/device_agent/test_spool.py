"""The spool and the reporter: nothing leaves without its exact acknowledgement."""

import itertools
import sqlite3

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import reporter as reporters
from device_agent.collector import Collector, death, merge, prometheus
from device_agent.reporter import Numbers, Reporter, Vitals
from device_agent.spool import Spool, key_of
from edgekit import sketch
from edgekit.manifest import Histogram
from edgekit.wire import messages
from edgekit.wire.messages import Ack, Boot, DeploymentWindow, Report

BOOT = Boot(7, 1, "0" * 16)
NEXT = Boot(7, 2, "1" * 16)
DIGEST = "a" * 64


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool.db")
    yield opened
    opened.close()


def test_only_the_exact_boot_and_number_removes_a_report(spool):
    for seq in (1, 2, 3):
        spool.add(key_of(BOOT, seq), b"x", [DIGEST])
    assert spool.acknowledge(NEXT, [1, 2, 3]) == set()
    assert spool.acknowledge(Boot(7, 1, "f" * 16), [1]) == set()
    assert spool.acknowledge(BOOT, [3, 99]) == {DIGEST}
    assert [key.seq for key, _ in spool.oldest(10)] == [1, 2]
    assert spool.acknowledge(BOOT, [3]) == set()


def test_the_oldest_go_first_beyond_the_bound_and_are_counted(tmp_path):
    spool = Spool(tmp_path / "s.db", max_reports=3)
    for boot, seq in ((BOOT, 1), (BOOT, 2), (NEXT, 1), (NEXT, 2), (NEXT, 3)):
        spool.add(key_of(boot, seq), b"x", [])
    assert [(key.incarnation, key.seq) for key, _ in spool.oldest(9)] == [(2, 1), (2, 2), (2, 3)]
    assert spool.lost == 2


def test_bytes_are_bounded_too(tmp_path):
    spool = Spool(tmp_path / "s.db", max_bytes=1000)
    for seq in range(10):
        spool.add(key_of(BOOT, seq), b"x" * 300, [])
    assert len(spool) == 3


def test_it_is_all_there_after_a_restart(tmp_path):
    spool = Spool(tmp_path / "s.db", max_reports=2)
    for seq in range(3):
        spool.add(key_of(BOOT, seq), b"%d" % seq, [])
    spool.close()
    again = Spool(tmp_path / "s.db", max_reports=2)
    assert [payload for _, payload in again.oldest(9)] == [b"1", b"2"]
    assert (again.lost, len(again)) == (1, 2)
    mode = (
        again._db.execute("PRAGMA journal_mode").fetchone()[0],
        again._db.execute("PRAGMA synchronous").fetchone()[0],
    )
    assert mode == ("wal", 2)


def test_a_damaged_spool_is_put_aside(tmp_path):
    (tmp_path / "s.db").write_bytes(b"not a database" * 100)
    spool = Spool(tmp_path / "s.db")
    spool.add(key_of(BOOT, 1), b"x", [])
    assert len(spool) == 1
    assert (tmp_path / "s.db.damaged").exists()


class Bench:
    """A reporter with a clock and a link that can be cut."""

    def __init__(self, spool, monkeypatch, window_s=10.0):
        self.now = 1000.0
        monkeypatch.setattr(reporters.time, "monotonic", lambda: self.now)
        self.sent = []
        self.is_up = True
        self.collector = Collector()
        self.reporter = Reporter(
            "board", BOOT, Numbers(), spool, window_s=window_s,
            close_window=lambda: self.collector.close_window([("digits", DIGEST)]),
            vitals=lambda: Vitals(1.0, 50.0, None, clock_ok=True), send=self._send,
        )  # fmt: skip

    def _send(self, payload):
        if self.is_up:
            self.sent.append(msgspec.json.decode(payload, type=Report))
        return self.is_up

    def pass_time(self, seconds):
        self.now += seconds
        self.reporter.tick()

    def acknowledge(self, *seqs):
        return self.reporter.acknowledged(messages.encode(Ack(BOOT, seqs)))


@pytest.fixture
def bench(spool, monkeypatch):
    return Bench(spool, monkeypatch)


def test_idle_windows_are_sent_with_zero_counts(bench):
    bench.pass_time(10)
    (report,) = bench.sent
    assert report.deployments == (DeploymentWindow("digits", DIGEST),)
    assert report.length_s == 10


def test_a_report_is_sent_again_with_back_off_until_acknowledged(bench, spool):
    bench.pass_time(10)
    times = [bench.now]
    for _ in range(200):
        count = len(bench.sent)
        bench.now += 1
        bench.reporter._opened = bench.now
        bench.reporter.tick()
        if len(bench.sent) > count:
            times.append(bench.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) >= 3
    assert gaps[-1] > 3 * gaps[0]
    assert {report.seq for report in bench.sent} == {1}
    assert bench.acknowledge(1) == {DIGEST}
    assert len(spool) == 0


def test_after_a_reconnect_everything_unacknowledged_goes_at_once(bench):
    bench.is_up = False
    for _ in range(3):
        bench.pass_time(10)
    assert bench.sent == []
    bench.is_up = True
    bench.reporter.link_up()
    assert [report.seq for report in bench.sent] == [1, 2, 3]
    bench.acknowledge(2)
    bench.reporter.link_up()
    assert [report.seq for report in bench.sent] == [1, 2, 3, 1, 3]


def test_an_acknowledgement_that_cannot_be_read_changes_nothing(bench, spool):
    bench.pass_time(10)
    assert bench.reporter.acknowledged(b"garbage") == set()
    assert len(spool) == 1


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
