"""How fast a rollout may go: windows, rates and limits as rules; the file of a rollout."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.wire.states import FleetState
from fleet import api
from fleet.client import rollout_file
from fleet.rules import pace, stages, windows
from fleet.rules.members import Member
from fleet.rules.pace import Given, Pace, parse_rate

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEADLINE_S = 600.0
ONE_MINUTE = timedelta(seconds=60)


@pytest.mark.parametrize(
    ("text", "zone", "at", "left_h"),
    [
        ("22:00-05:00", "UTC", "2026-01-01T21:59", 0),
        ("22:00-05:00", "UTC", "2026-01-01T22:00", 7),
        ("22:00-05:00", "UTC", "2026-01-02T04:00", 1),
        ("22:00-05:00", "UTC", "2026-01-02T05:00", 0),
        ("22:00-05:00", "Asia/Tokyo", "2026-01-01T13:00", 7),
        ("22:00-05:00", "Asia/Kolkata", "2026-01-01T22:00", 1.5),
        # 2 January 2026 is a Friday: the window belongs to the day on which it begins.
        ("fri 22:00-05:00", "UTC", "2026-01-03T04:00", 1),
        ("fri 22:00-05:00", "UTC", "2026-01-02T04:00", 0),
        ("mon-thu 22:00-05:00", "UTC", "2026-01-02T04:00", 1),
        ("sat,sun 00:00-24:00", "UTC", "2026-01-03T23:00", 25),
        ("00:00-24:00", "UTC", "2026-01-03T23:00", 7 * 24),
        # Zurich, 29 March 2026: there is no 02:30, and the night is an hour shorter.
        ("22:00-05:00", "Europe/Zurich", "2026-03-28T21:00", 6),
        ("02:15-02:45", "Europe/Zurich", "2026-03-29T01:30", 0),
        # 25 October 2026: 02:30 comes twice, and the window opens once.
        ("02:15-02:45", "Europe/Zurich", "2026-10-25T00:30", 0.25),
        ("02:15-02:45", "Europe/Zurich", "2026-10-25T01:30", 0),
        ("22:00-05:00", "Nowhere/Else", "2026-01-01T23:00", 0),
    ],
)
def test_a_window_is_open_by_the_devices_own_clock(text: str, zone: str, at: str, left_h: float) -> None:
    wall = datetime.fromisoformat(f"{at}:00+00:00")
    assert windows.left_s([windows.parse(text)], zone, wall) == left_h * 3600


def test_windows_that_adjoin_are_one_and_none_at_all_is_always() -> None:
    both = [windows.parse("mon 20:00-24:00"), windows.parse("tue 00:00-02:00")]
    monday = datetime(2026, 1, 5, 23, tzinfo=UTC)
    assert windows.left_s(both, "UTC", monday) == 3 * 3600
    assert windows.left_s([], "UTC", monday) == windows.ALWAYS_S
    assert windows.parse("sat-mon 01:00-02:00").days == (0, 5, 6)


@pytest.mark.parametrize(
    "text", ["", "22-05", "25:00-26:00", "22:60-23:00", "24:30-25:00", "abc 22:00-05:00", "mon-xyz 1:00-2:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="window"):
        windows.parse(text)


@pytest.mark.parametrize(
    ("text", "count", "per_s"),
    [("60", 60, 60), ("60/min", 60, 60), ("10 / h", 10, 3600), ("5/s", 300, 60), ("2/d", 2, 86_400)],
)
def test_a_rate_is_read(text: str, count: int, per_s: float) -> None:
    found = parse_rate(text)
    assert (found.count, found.per_s) == (count, per_s)


@pytest.mark.parametrize("text", ["", "0", "-1", "1/week", "fast", "1.5/min"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="rate"):
        parse_rate(text)


@given(
    count=st.integers(1, 300),
    waits=st.lists(st.floats(0, 90), min_size=1, max_size=60),
    wants=st.integers(1, 50),
)
def test_no_minute_sees_more_orders_than_the_rate(count: int, waits: list[float], wants: int) -> None:
    rate, now, told = parse_rate(f"{count}/min"), T0, [(T0 - 2 * ONE_MINUTE, 0)]
    noted: tuple[Given, ...] = ()
    for wait in waits:
        now += timedelta(seconds=wait)
        some = min(wants, pace.room(noted, rate, now))
        noted = pace.note(noted, rate, some, now)
        told.append((now, some))
        assert sum(n for at, n in told if at > now - ONE_MINUTE) <= count
    assert len(noted) <= len(waits)


def test_a_rate_is_spread_and_used_up() -> None:
    rate, noted, total = parse_rate("60/min"), (), 0
    for second in range(60):
        now = T0 + timedelta(seconds=second)
        some = pace.room(noted, rate, now)
        assert some <= 5
        noted, total = pace.note(noted, rate, some, now), total + some
    assert total == 60


def member(name: str, **more: object) -> Member:
    base = Member(name, "p", stages.key("r1", name), "a" * 64, None, "", online_since=T0)
    return msgspec.structs.replace(base, **more)


def admitted(limits: Pace, members: list[Member], at: datetime = T0) -> list[str]:
    waiting = [m for m in members if not m.order_counter]
    found = pace.admit(limits, waiting, members, (), 200, deadline_s=DEADLINE_S, now=at, wall=at)
    return [m.device for m in found]


def moving(name: str, **more: object) -> Member:
    return member(name, order_counter=1, ordered_at=T0, **more)


def test_a_site_has_no_more_devices_on_the_move_than_it_may() -> None:
    at_sites = [member(f"d{n}", site=f"s{n % 2}") for n in range(8)]
    assert len(admitted(Pace(per_site=2), at_sites)) == 4
    one_moves = [moving("m", site="s0"), *at_sites]
    found = admitted(Pace(per_site=2), one_moves)
    assert len([name for name in found if int(name[1:]) % 2 == 0]) == 1
    arrived = [moving("m", site="s0", state=FleetState.SUCCEEDED), *at_sites]
    assert len(admitted(Pace(per_site=2), arrived)) == 4


def test_a_device_that_went_away_on_its_move_counts_until_its_deadline() -> None:
    away = moving("m", online_since=None)
    assert admitted(Pace(at_once=1), [away, member("d")]) == []
    later = T0 + timedelta(seconds=DEADLINE_S)
    assert admitted(Pace(at_once=1), [away, member("d")], later) == ["d"]
    back = moving("m")
    assert admitted(Pace(at_once=1), [back, member("d")], later) == [], "it is there, and moving"


def test_who_is_away_is_not_told_where_presence_counts() -> None:
    away = member("away", online_since=None)
    assert admitted(Pace(at_once=5), [away]) == []
    assert admitted(Pace(rate=parse_rate("5/min")), [away]) == ["away"]


def test_a_window_must_last_as_long_as_a_device_may_take() -> None:
    limits = Pace(windows=(windows.parse("11:00-12:09"),))
    assert admitted(limits, [member("d")]) == []
    assert admitted(limits, [member("d")], T0 - ONE_MINUTE) == ["d"]
    assert admitted(limits, [member("d", zone="Asia/Tokyo")], T0 - ONE_MINUTE) == []
    assert admitted(msgspec.structs.replace(limits, zone="Asia/Tokyo"), [member("d")], T0 - ONE_MINUTE) == []


def test_the_devices_that_may_move_together_share_the_line() -> None:
    limits = Pace(per_site=4, site_bytes_s=8e6, jitter_s=100.0)
    assert pace.fetch_bytes_s(limits, 100) == 2e6
    assert pace.fetch_bytes_s(limits, 2) == 4e6
    assert pace.fetch_bytes_s(Pace(site_bytes_s=8e6), 100) == 8e4
    assert pace.fetch_bytes_s(Pace(), 100) is None
    begins = [pace.fetch_after_s(limits, stages.key("r1", f"d{n}")) for n in range(100)]
    assert 0 <= min(begins) < 20 < 80 < max(begins) <= 100
    assert (pace.parse_bandwidth("2MB/s"), pace.parse_bandwidth("10 Mbit/s")) == (2e6, 1.25e6)
    with pytest.raises(UsageError, match="bandwidth"):
        pace.parse_bandwidth("2")


def test_stages_wait_for_approval_where_that_was_asked_for() -> None:
    cut = stages.parse("1,50%,100%", 10)
    assert [s.needs_approval for s in stages.with_approvals(cut, "2, 3")] == [False, True, True]
    assert [s.needs_approval for s in stages.with_approvals(cut, "all")] == [True, True, True]
    assert stages.with_approvals(cut, "") == cut
    for text in ("0", "4", "second"):
        with pytest.raises(UsageError, match="approve"):
            stages.with_approvals(cut, text)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        api.NewRollout, release=texts, to=texts, stages=texts, gates=st.lists(texts, max_size=3).map(tuple),
        on_violation=st.sampled_from(["rollback", "pause", "abort"]), windows=st.lists(texts, max_size=2).map(tuple),
        at_once=st.integers(0, 1_000_000), queue=st.booleans(), rate=texts, soak=texts,
    )
)  # fmt: skip
def test_a_rollouts_file_says_what_it_was_written_from(wanted: api.NewRollout) -> None:
    assert rollout_file.parse(rollout_file.write(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("release = 1", "release"),
        ("release = 'a@1'", "to"),
        ("release='a@1'\nto='all'\nspeed='1'", "speed"),
        ("=", "TOML"),
    ],
)
def test_a_file_that_is_wrong_is_told_where(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        rollout_file.parse(text)
