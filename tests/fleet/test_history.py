"""The past: a report counts once in each of its intervals, the unit of every interval is the device, tables stay bounded."""

import concurrent.futures
import math
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from access_support import Inside
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select
from store_support import NEW, NOW, OLD, enrolled, report, rollout_of

from edgekit.errors import UsageError
from edgekit.sketch import of
from edgekit.wire.messages import DeploymentWindow, Moments
from fleet.api import ArmPoint
from fleet.rules import history
from fleet.rules.access import Role
from fleet.rules.history import ArmSums, Level, Minute
from fleet.rules.retention import Kept, Retention, checked
from fleet.rules.sums import NOT_DEAF
from fleet.server import ingest, schema
from fleet.server.clock import same
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.schema_history import arm_history, device_history, release_history
from fleet.server.store import history as store
from fleet.server.store import retention, rollouts, telemetry

AT = 1_790_000_040.0  # a whole minute


def window(
    requests: int = 100, errors: int = 0, ms: float = 2.0, psi: float | None = None
) -> DeploymentWindow:
    metrics = {"drift_psi": Moments(1, psi)} if psi is not None else {}
    return DeploymentWindow(
        "digits", "a" * 64, requests, errors, infer_ms=of([ms] * requests), metrics=metrics
    )


def arm(*devices: DeploymentWindow, at: float = AT) -> ArmSums:
    """One window of each device in a minute."""
    total = ArmSums()
    for one in devices:
        total = history.beside(total, history.step(Minute(), one, at, is_warm=True)[1])
    return total


def point(sums: ArmSums, level: Level = Level.MINUTE) -> ArmPoint:
    return history.arm_point(sums, at=AT, level=level, stage=0, arm="canary")


def test_windows_of_one_minute_are_one_value_of_their_device() -> None:
    minute, whole = Minute(), ArmSums()
    for part in (window(40, 1), window(60, 3)):
        minute, more = history.step(minute, part, AT, is_warm=True)
        whole = history.beside(whole, more)
    once = arm(window(100, 4))
    assert (whole.devices, whole.requests, whole.errors) == (1, 100, 4)
    for name in ("ee", "er", "rr", "w", "ww", "w_p95", "ww_p95_p95"):
        assert getattr(whole, name) == pytest.approx(getattr(once, name))


def test_a_window_of_an_earlier_minute_leaves_the_newest_as_it_is() -> None:
    minute, _ = history.step(Minute(), window(50, 1), AT, is_warm=True)
    same, late = history.step(minute, window(30, 2), AT - 60, is_warm=True)
    assert same is minute
    assert (late.devices, late.requests, late.errors) == (1, 30, 2)


def test_cold_windows_have_no_latency() -> None:
    _, cold = history.step(Minute(), window(50, 1), AT, is_warm=False)
    drawn = point(cold)
    assert (drawn.requests, drawn.p95_ms, drawn.p95_low) == (50, None, None)


def test_one_device_says_nothing_of_how_devices_differ() -> None:
    alone = point(arm(window(1000, 10)))
    assert (alone.error_share, alone.error_low, alone.error_high) == (0.01, 0.0, 1.0)
    assert (alone.p95_low, alone.p95_high) == (None, None)


def test_an_interval_is_as_wide_as_devices_differ_and_not_as_requests_are_many() -> None:
    alike = point(arm(*(window(1000, 20) for _ in range(20))))
    apart = point(arm(*(window(1000, 0 if at % 2 else 40) for at in range(20))))
    assert alike.error_share == apart.error_share == pytest.approx(0.02)
    assert apart.error_high - apart.error_low > 3 * (alike.error_high - alike.error_low)
    assert apart.error_low < 0.013 < 0.028 < apart.error_high


def test_no_errors_at_all_are_not_yet_no_errors() -> None:
    drawn = point(arm(*(window(100, 0) for _ in range(10))))
    assert drawn.error_low == 0.0
    assert 0.003 < drawn.error_high < 0.01


def test_the_latency_interval_covers_the_devices_mean_and_narrows_with_their_number() -> None:
    few = point(arm(*(window(100, ms=2.0 * 1.1 ** (at % 3 - 1)) for at in range(6))))
    many = point(arm(*(window(100, ms=2.0 * 1.1 ** (at % 3 - 1)) for at in range(60))))
    assert few.p95_low is not None
    assert few.p95_high is not None
    assert few.p95_low < 2.0 < few.p95_high
    assert few.p95_low < (few.p95_ms or 0.0) < few.p95_high
    assert (many.p95_high or 0.0) - (many.p95_low or 0.0) < (few.p95_high - few.p95_low) / 2


def test_an_hour_is_no_surer_than_its_minutes_because_the_devices_are_the_same() -> None:
    devices = [window(1000, 0 if at % 2 else 40, ms=1.0 + at % 4) for at in range(20)]
    minute = arm(*devices)
    hour = minute
    for _ in range(59):
        hour = history.after(hour, arm(*devices))
    one, sixty = point(minute), point(hour, Level.HOUR)
    assert (sixty.devices, sixty.requests) == (20, 60 * one.requests)
    assert sixty.length_s == 3600
    assert sixty.error_low == pytest.approx(one.error_low, rel=0.02)
    assert sixty.error_high == pytest.approx(one.error_high, rel=0.02)
    assert sixty.p95_low == pytest.approx(one.p95_low)
    assert sixty.p95_high == pytest.approx(one.p95_high)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 200), st.floats(0.1, 50), st.integers(0, 3)),
        min_size=1, max_size=30,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_parts_add_up_to_the_same_whoever_writes_them_and_in_whatever_order(
    sent: list[tuple[int, int, float, int]], random: object
) -> None:
    """Windows of five devices over some minutes, split over three writers, drawn together in any order."""
    minutes: dict[int, Minute] = {}
    parts: list[tuple[float, ArmSums]] = []
    for at, (device, requests, ms, _) in enumerate(sorted(sent, key=lambda one: one[3])):
        moment = AT + 60 * sorted(s[3] for s in sent)[at]
        minutes[device], more = history.step(
            minutes.get(device, Minute()), window(requests, requests // 9, ms), moment, is_warm=True
        )
        parts.append((Level.MINUTE.begin(moment), more))

    def drawn(order: list[tuple[float, ArmSums]]) -> dict[float, ArmSums]:
        found: dict[float, ArmSums] = {}
        for at, more in order:
            found[at] = history.beside(found[at], more) if at in found else more
        return found

    straight = drawn(parts)
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a Random
    mixed = drawn(shuffled)
    for begin, sums in straight.items():
        assert mixed[begin].requests == sums.requests
        assert mixed[begin].devices == sums.devices
        assert mixed[begin].ee == pytest.approx(sums.ee)
        assert mixed[begin].ww_p95_p95 == pytest.approx(sums.ww_p95_p95, abs=1e-6)
    assert sum(sums.requests for sums in straight.values()) == sum(requests for _, requests, _, _ in sent)
    for begin, sums in straight.items():
        there = {device for device, _, _, minute in sent if AT + 60 * minute == begin}
        assert sums.devices == len(there)


def test_the_bounds_are_those_of_student() -> None:
    for freedom, wanted in ((1, 12.7), (2, 4.30), (5, 2.57), (30, 2.04), (1000, 1.962)):
        assert history._t(freedom) == pytest.approx(wanted, rel=0.01)
    assert math.isfinite(history._t(10**6))


def test_a_report_counts_once_and_where_it_belongs(database: Database) -> None:
    """Three devices report each minute over an hour's end; one was cut off and sends its minutes late, all twice."""
    start = NOW // 3600 * 3600 + 3600 - 120  # two minutes before a full hour
    enrolled(database, ["d1", "d2", "d3"], last_report_at=start - 60)
    minutes = [start + 60 * n for n in range(1, 6)]
    for at in minutes:
        batch = [report(name, int(at), at, ms=2.0) for name in ("d1", "d2")]
        ingest.take_in(database, [*batch, *batch], same(at + 1))
    late = [report("d3", int(at), at, ms=4.0, errors=3) for at in minutes]
    for _ in range(2):
        ingest.take_in(database, late, same(minutes[-1] + 7200))
    with database.read() as connection:
        release = store.of_release(connection, "digits", OLD, start, start + 86_400)
        first, *_ = store.of_device(connection, "d1", 0, start + 86_400)
        third = store.of_device(connection, "d3", 0, start + 86_400)
    assert [(p.at - start, p.devices, p.requests, p.errors) for p in release] == [
        (60.0 * n, 3, 300, 5) for n in range(1, 6)
    ]
    assert release[0].p95_ms == pytest.approx(4.0, rel=0.02)
    assert release[0].p50_ms == pytest.approx(2.0, rel=0.02)
    assert (first.length_s, first.at + 3600, first.requests) == (3600, start + 120, 100)
    assert [(p.at - start - 120, p.requests, p.errors) for p in third] == [(-3600.0, 100, 3), (0.0, 400, 12)]
    assert third[1].p95_ms == pytest.approx(4.0, rel=0.02)


def test_canary_and_control_are_told_apart_while_a_stage_is_judged(database: Database) -> None:
    names = [f"d{n}" for n in range(6)]
    enrolled(database, names)
    rollout = rollout_of(names, "50%,100%", judged_from=NOW)
    members = {
        name: msgspec.structs.replace(member, order_counter=7 if at < 3 else 0)
        for at, (name, member) in enumerate(rollout.members.items())
    }
    with database.begin() as connection:
        rollouts.add(connection, msgspec.structs.replace(rollout, members=members), NOW)
    for minute in range(1, 5):
        at = NOW + 61 + 60 * minute
        canary = [report(name, minute, at, digest=NEW, errors=10, ms=3.0) for name in names[:3]]
        # One that was ordered to move and has not yet is in neither arm.
        stayed = [report(names[0], 100 + minute, at, digest=OLD)]
        control = [report(name, minute, at, digest=OLD, errors=1, ms=2.0) for name in names[3:]]
        ingest.take_in(database, canary + stayed + control, same(at))
    with database.read() as connection:
        points = store.of_rollout(connection, 1)
    # Each device's first window is left out, as the gates leave it out.
    assert [(p.arm, p.stage, p.devices, p.requests, p.errors) for p in points] == [
        ("canary", 0, 3, 300, 30), ("control", 0, 3, 300, 3),
    ] * 3  # fmt: skip
    assert points[0].p95_ms == pytest.approx(3.0, rel=0.02)
    assert points[1].p95_ms == pytest.approx(2.0, rel=0.02)
    assert points[0].error_low < 0.1 < points[0].error_high


def test_older_minutes_become_hours_and_days_and_nothing_is_lost(database: Database) -> None:
    """Windows over three days, drawn together in small steps, with one that comes when its hour is long drawn."""
    kept = checked(Retention(minutes="1h", hours="1d", days="2d", device_hours="1d", device_days="5d"))
    start = NOW // 86_400 * 86_400
    enrolled(database, ["d1", "d2"], last_report_at=start)
    moments = [start + 1800 * n + 100 for n in range(1, 3 * 48)]
    now = moments[-1] + 600
    sent = [report(name, seq, at) for seq, at in enumerate(moments) for name in ("d1", "d2")]
    ingest.take_in(database, sent, same(now))
    rolled(database, kept, now)
    ingest.take_in(database, [report("d2", 999, moments[0] - 900)], same(now))
    rolled(database, kept, now)
    with database.read() as connection:
        release = store.of_release(connection, "digits", OLD, 0, now)
        of_device = store.of_device(connection, "d1", 0, now)
    assert {p.length_s for p in release} == {60.0, 3600.0, 86_400.0}
    assert sum(p.requests for p in release) == 100 * (2 * len(moments) + 1)
    assert sum(p.errors for p in release) == 2 * len(moments) + 1
    assert {p.devices for p in release} == {2}
    assert (release[0].at, release[0].length_s, release[0].requests) == (start, 86_400.0, 100 * (2 * 47 + 1))
    # What is left of a device's first interval is where the others count from.
    assert {p.length_s for p in of_device} == {3600.0, 86_400.0}
    assert sum(p.requests for p in of_device) == 100 * len(moments)
    later = now + 10 * 86_400
    rolled(database, kept, later)
    with database.read() as connection:
        assert store.of_release(connection, "digits", OLD, 0, later) == []
        assert store.of_device(connection, "d1", 0, later) == []
        assert rows_of(connection) == {"arm_history": 0, "release_history": 0, "device_history": 0}


def rolled(database: Database, kept: Kept, now: float) -> None:
    has_more = True
    while has_more:
        with database.begin() as connection:
            has_more = retention.roll(connection, kept, now) | retention.thin(connection, kept, now)


def rows_of(connection: Connection) -> dict[str, int]:
    tables = (arm_history, release_history, device_history)
    return {
        table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for table in tables
    }


def test_what_is_kept_shorter_than_what_it_follows_on_is_refused() -> None:
    with pytest.raises(UsageError, match=r"hours = '1d': may not be shorter than minutes = '2d'"):
        checked(Retention(hours="1d"))
    with pytest.raises(UsageError, match="report_keys = '1d': may not be shorter than 2d"):
        checked(Retention(report_keys="1d"))
    with pytest.raises(UsageError, match=r"\[history\] days: 'ever' is no duration"):
        checked(Retention(days="ever"))


def test_keys_of_old_reports_go_in_chunks_until_none_is_left(database: Database) -> None:
    enrolled(database, ["d1"])
    for seq in range(5):
        ingest.take_in(database, [report("d1", 10 * seq + n, NOW + seq) for n in range(4)], same(NOW + seq))
    with database.begin() as connection:
        assert telemetry.prune(connection, NOW + 102.5, 100.0, limit=5)
        assert not telemetry.prune(connection, NOW + 102.5, 100.0, limit=50)
        left = connection.execute(select(schema.reports.c.received_at).distinct()).scalars().all()
    assert sorted(left) == [NOW + 3, NOW + 4]


@pytest.mark.postgres
def test_a_writer_waits_for_no_other_that_adds_to_the_same_minute(empty_postgresql: str) -> None:
    """And for no controller that holds the rollout's row."""
    names = [f"d{n}" for n in range(4)]
    with closing(Database(empty_postgresql)) as database:
        enrolled(database, names)
        with database.begin() as connection:
            rollouts.add(connection, rollout_of(names, judged_from=NOW), NOW)
        at = NOW + 121

        def batch(some: list[str], seq: int) -> list[Message]:
            return [report(name, n, at + n, digest=OLD) for name in some for n in range(seq, seq + 2)]

        with database.begin() as held, concurrent.futures.ThreadPoolExecutor(1) as pool:
            rollouts.lock(held, 1)
            taken = ingest.Taken()
            said = [found for one in batch(names[:2], 1) if (found := ingest._read(one, taken)) is not None]
            ingest._store(held, said, taken, same(at), NOT_DEAF)
            other = pool.submit(ingest.take_in, database, batch(names[2:], 1), same(at))
            assert len(other.result(timeout=8).acks) == 2
        with database.read() as connection:
            [point] = store.of_rollout(connection, 1)
            assert (point.arm, point.devices, point.requests) == ("control", 4, 400)
            [minute] = store.of_release(connection, "digits", OLD, NOW, NOW + 3600)
            assert (minute.devices, minute.requests) == (4, 800)


def test_the_api_tells_of_devices_releases_and_rollouts(tmp_path: Path) -> None:
    inside = Inside(tmp_path)
    inside.clock.now = NOW + 7200
    client = inside.client(inside.token("all", Role.ADMIN))
    limited = inside.client(inside.token("attic", Role.VIEWER, "site=attic"))
    names = [f"d{n}" for n in range(4)]
    enrolled(inside.database, names)
    with inside.database.begin() as connection:
        rollouts.add(connection, rollout_of(names, judged_from=NOW), NOW)
    for minute in range(1, 4):
        at = NOW + 61 + 60 * minute
        ingest.take_in(inside.database, [report(name, minute, at) for name in names], same(at))
    arms = client.get("/api/v1/rollouts/r1/history").json()
    assert [(point["arm"], point["devices"], point["errors"]) for point in arms] == [("control", 4, 4)] * 2
    [device] = client.get("/api/v1/devices/d1/history").json()
    assert (device["requests"], device["digest"]) == (300, OLD)
    release = client.get("/api/v1/releases/digits/1/history").json()
    assert [point["requests"] for point in release] == [400, 400, 400]
    later = client.get(f"/api/v1/releases/digits/1/history?since={release[1]['at']}").json()
    assert later == release[1:]
    until = datetime.fromtimestamp(release[1]["at"], UTC).isoformat().replace("+00:00", "Z")
    assert client.get(f"/api/v1/releases/digits/1/history?until={until}").json() == release[:1]
    for path in ("devices/d9", "rollouts/r9", "releases/digits/9"):
        assert client.get(f"/api/v1/{path}/history").status_code == 404
    assert client.get("/api/v1/devices/d1/history?since=yesterday").status_code == 400
    assert [limited.get(f"/api/v1/{path}/history").status_code for path in ("devices/d1", "rollouts/r1")] == [
        404,
        404,
    ]
    assert limited.get("/api/v1/releases/digits/1/history").status_code == 403
    inside.close()
