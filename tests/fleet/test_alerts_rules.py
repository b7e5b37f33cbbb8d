"""When an alert opens, ends, is told, and when many are one."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import rollout_of

from fleet.rules import alerts, findings
from fleet.rules.alerts import FOLD_ABOVE, KINDS, Alert, Finding, Told, step
from fleet.rules.findings import Drifted, Expiry, Silent, Site, Stopped, Trouble
from fleet.rules.rollout import Status

WALL = 1_790_000_000.0
CONDITION = "device-condition"
RAISE = KINDS[CONDITION].raise_after_s
CLEAR = KINDS[CONDITION].clear_after_s


@dataclass
class Book:
    """Alerts as the store would keep them, from look to look."""

    now: float = 1000.0
    alerts: dict[int, Alert] = field(default_factory=dict)
    messages: list[Told] = field(default_factory=list)
    _next: int = 1

    def look(self, found: list[Finding], *kinds: str, after_s: float = 10.0) -> Told:
        self.now += after_s
        looked = kinds or (CONDITION,)
        known = [a for a in self.alerts.values() if a.ended is None]
        done = step(known, found, looked, wall=WALL + self.now, steady=self.now)
        for alert in done.changed:
            number = alert.id or self._next
            self._next += not alert.id
            self.alerts[number] = msgspec.structs.replace(alert, id=number)
        for number in done.forgotten:
            del self.alerts[number]
        if done.told:
            self.messages.append(done.told)
        return done.told

    @property
    def open(self) -> list[Alert]:
        return [a for a in self.alerts.values() if a.is_open]


def full(*devices: str) -> list[Finding]:
    return [Finding(CONDITION, f"{d}: storage-full", f"{d} is full", topic="storage-full") for d in devices]


def names(count: int) -> list[str]:
    return [f"d{n:05}" for n in range(count)]


def test_an_alert_is_told_once_after_it_has_lasted_and_once_when_it_is_over() -> None:
    book = Book()
    assert not book.look(full("d1"))
    assert not book.look(full("d1"), after_s=RAISE - 1)
    opened = book.look(full("d1"), after_s=1)
    assert [a.subject for a in opened.opened] == ["d1: storage-full"]
    assert opened.opened[0].since == WALL + 1010, "since it was found, not since it was told"
    for _ in range(50):
        assert not book.look(full("d1"))
    assert not book.look([])
    assert not book.look([], after_s=CLEAR - 21)
    assert [a.subject for a in book.look([], after_s=30).ended] == ["d1: storage-full"]
    assert not book.look([], after_s=1000)


def test_what_is_gone_before_it_is_told_leaves_nothing() -> None:
    book = Book()
    book.look(full("d1"))
    book.look([])
    assert book.alerts == {}
    book.look(full("d1"))
    assert not book.look(full("d1"), after_s=RAISE - 1), "it begins anew"


def test_what_flaps_is_one_alert() -> None:
    book = Book()
    book.look(full("d1"))
    book.look(full("d1"), after_s=RAISE)
    for _ in range(20):
        book.look([], after_s=CLEAR - 20)
        book.look(full("d1"))
    assert len(book.messages) == 1
    assert len(book.open) == 1


def test_what_was_not_looked_at_does_not_end() -> None:
    book = Book()
    book.look(full("d1"))
    book.look(full("d1"), after_s=RAISE)
    assert not book.look([], "storage", after_s=100 * CLEAR)
    assert len(book.open) == 1
    assert book.look([], CONDITION).ended


def test_a_storm_of_ten_thousand_devices_is_one_alert_and_one_message() -> None:
    book = Book()
    for count in (3, 40, 2000, 9000, 10_000):
        book.look(full(*names(count)))
    book.look(full(*names(10_000)), after_s=RAISE)
    for _ in range(100):
        book.look(full(*names(10_000)), after_s=60)
    [told] = book.messages
    [alert] = told.opened
    assert alert.count == 10_000
    assert alert.words.startswith("10000 devices (storage-full): d00000: storage-full, d00001")
    assert "and 9995 more" in alert.words
    assert alert.since == WALL + 1010, "as old as the first of them"
    assert len(book.alerts) == 1, "one row"
    book.look([])
    assert book.look([], after_s=CLEAR).ended
    assert len(book.messages) == 2


def test_a_storm_that_goes_on_growing_is_told_again_only_tenfold_and_an_hour_later() -> None:
    book = Book()
    book.look(full(*names(20)))
    book.look(full(*names(20)), after_s=RAISE)
    assert not book.look(full(*names(5000)), after_s=60)
    assert not book.look(full(*names(199)), after_s=3600)
    assert book.look(full(*names(200)), after_s=60).grown[0].count == 200
    assert not book.look(full(*names(5000)), after_s=60)
    assert len(book.messages) == 2


def test_few_that_are_left_of_many_are_told_with_its_end_and_not_again() -> None:
    book = Book()
    book.look(full(*names(500)))
    book.look(full(*names(500)), after_s=RAISE)
    assert not book.look(full(*names(FOLD_ABOVE // 2 + 1)))
    assert not book.look(full("d00001", "d00002")), "it does not come apart at once"
    told = book.look(full("d00001", "d00002"), after_s=CLEAR)
    assert told.ended[0].words.endswith("over but for d00001: storage-full, d00002: storage-full")
    assert not told.opened
    assert sorted(a.subject for a in book.open) == ["d00001: storage-full", "d00002: storage-full"]
    assert not book.look(full("d00001", "d00002"))
    third = book.look([*full("d00001", "d00002"), *full("d00003")], after_s=RAISE)
    assert not third
    assert [a.subject for a in book.look(full("d00001", "d00002", "d00003"), after_s=RAISE).opened] == [
        "d00003: storage-full"
    ]


def test_those_told_one_by_one_end_silently_where_the_storm_takes_them_in() -> None:
    book = Book()
    book.look(full("d00001"))
    book.look(full("d00001"), after_s=RAISE)
    assert not book.look(full(*names(100)))
    assert [a.subject for a in book.open] == ["d00001: storage-full"], "it stands until the other is told"
    told = book.look(full(*names(100)), after_s=RAISE)
    assert [a.count for a in told.opened] == [100]
    assert not told.ended
    assert len(book.open) == 1


def test_different_conditions_are_not_told_as_one() -> None:
    book = Book()
    hot = [Finding(CONDITION, f"{d}: too-hot", "hot", topic="too-hot") for d in names(100)]
    found = [*full(*names(100)), *hot]
    book.look(found)
    told = book.look(found, after_s=RAISE)
    assert sorted(a.topic for a in told.opened) == ["storage-full", "too-hot"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 14)), st.floats(1, 400)), max_size=40))
def test_whatever_comes_and_goes_each_alert_is_told_at_most_once_each_way(
    looks: list[tuple[set[int], float]],
) -> None:
    book = Book()
    for present, after_s in looks:
        book.look(full(*(f"d{n:02}" for n in sorted(present))), after_s=after_s)
        subjects = [a.subject for a in book.alerts.values() if a.ended is None]
        assert len(subjects) == len(set(subjects))
        whole = [a for a in book.open if a.is_of_many]
        assert len(whole) <= 1
    opened = [(a.subject, a.since) for told in book.messages for a in told.opened]
    ended = [(a.subject, a.since) for told in book.messages for a in told.ended]
    assert len(opened) == len(set(opened))
    assert len(ended) == len(set(ended))


# -- findings --------------------------------------------------------------------------------------------------------


def stopped(status: Status, by: str = "fleet", reason: str = "error_rate < 1%: 4.1 %") -> Stopped:
    moment = datetime.fromtimestamp(1000, UTC)
    made = msgspec.structs.replace(
        rollout_of(["d1"]), status=status, reason=reason, turned_at=moment, stage=0
    )
    return Stopped(made, by)


@pytest.mark.parametrize(
    ("status", "severity"),
    [
        (Status.PAUSED, "warning"),
        (Status.ROLLING_BACK, "critical"),
        (Status.ROLLED_BACK, "critical"),
        (Status.ABORTED, "critical"),
    ],
)
def test_a_rollout_that_the_fleet_stopped_is_found_and_why(status: Status, severity: str) -> None:
    [found] = findings.of_rollouts([stopped(status)], 1060)
    assert (found.kind, found.subject, found.severity) == ("rollout-stopped", "r1", severity)
    assert "error_rate < 1%: 4.1 %" in found.words
    assert findings.of_rollouts([stopped(status, by="user:ann")], 1060) == [], "who did it knows"


@pytest.mark.parametrize("status", [Status.RUNNING, Status.COMPLETED, Status.QUEUED])
def test_a_rollout_that_goes_its_way_is_not(status: Status) -> None:
    assert findings.of_rollouts([stopped(status)], 1060) == []


def test_a_rollout_that_went_back_is_shown_for_a_day_and_one_that_stands_for_as_long_as_it_does() -> None:
    assert findings.of_rollouts([stopped(Status.ROLLED_BACK)], 1000 + 86_401) == []
    assert findings.of_rollouts([stopped(Status.PAUSED)], 1000 + 10 * 86_400)


def test_a_rollout_that_waits_for_approval_is_found() -> None:
    waits = msgspec.structs.replace(rollout_of(["d1"]), awaits=1, reason="stage 2 waits for approval")
    [found] = findings.of_rollouts([Stopped(waits, "")], 1000)
    assert (found.kind, found.words.endswith("stage 2 waits for approval")) == ("rollout-waits", True)


def test_a_site_is_silent_when_none_of_its_devices_is_heard() -> None:
    sites = [
        Site("lab", 12, 12, WALL),
        Site("roof", 12, 11, WALL),
        Site("", 3, 3, WALL),
        Site("shed", 1, 1, WALL),
    ]
    found = findings.of_sites(sites)
    assert [one.subject for one in found] == ["lab", "shed"]
    assert "none of its 12 devices was heard since 2026-09-2" in found[0].words
    assert "its only device" in found[1].words


def test_a_device_of_a_silent_site_is_not_told_of_besides() -> None:
    devices = [Silent("a", "lab", WALL), Silent("b", "roof", WALL), Silent("c", "", WALL)]
    assert [one.subject for one in findings.of_silent(devices, frozenset({"lab"}))] == ["b", "c"]


def test_a_release_that_devices_refuse_is_one_finding_and_conditions_are_each_their_own() -> None:
    refuses = Trouble("release-refused", "self-test: other outputs", "digits", "b" * 64)
    said = [
        ("a", (refuses, Trouble("storage-full", "no room"))),
        ("b", (refuses,)),
        ("c", (Trouble("storage-full", "none", "digits"),)),
    ]
    conditions_a, conditions_c, refused = findings.of_troubles(said, {"b" * 64: "digits@3"})
    assert (refused.subject, refused.count) == ("digits@3", 2)
    assert refused.words == "2 devices do not run digits@3 (a, b): self-test: other outputs"
    assert (conditions_a.subject, conditions_c.subject) == ("a: storage-full", "c: storage-full (digits)")
    assert conditions_a.topic == conditions_c.topic == "storage-full"
    [unknown] = findings.of_troubles([("a", (refuses,))], {})
    assert unknown.subject == "b" * 12


@pytest.mark.parametrize(
    ("left_s", "severity"),
    [(31 * 86_400, None), (20 * 86_400, "warning"), (86_400, "critical"), (-5, "critical")],
)
def test_what_runs_out_is_found_in_time_and_is_grave_at_the_end(left_s: float, severity: str | None) -> None:
    found = findings.of_expiries([Expiry("root", WALL + left_s, 30 * 86_400)], WALL)
    assert [one.severity for one in found] == ([severity] if severity else [])
    if left_s < 0:
        assert "ran out on" in found[0].words


def test_a_disk_is_low_by_its_share_and_a_large_one_by_bytes() -> None:
    assert findings.of_disk("/srv", 40 << 20, 1 << 30)
    assert not findings.of_disk("/srv", 60 << 20, 1 << 30)
    assert not findings.of_disk("/srv", 2 << 30, 1 << 40)
    assert findings.of_disk("/srv", 1 << 29, 1 << 40)


def test_ingest_is_late_only_after_a_while() -> None:
    assert not findings.of_ingest(None, 1000)
    assert not findings.of_ingest(980, 1000)
    assert findings.of_ingest(900, 1000)
    assert findings.of_queue(3)
    assert not findings.of_queue(0)


def test_drift_says_which_release_where_and_since_when() -> None:
    one = Drifted("digits@1", "digits", ("a" * 64,), ("d1", "d2"), 40, {"lab": 2}, 0.41, WALL)
    [found] = findings.of_drift([one])
    assert found.subject == "digits@1"
    assert "2 of 40 devices (lab 2): index 0.41" in found.words
    assert found.about["since"] == WALL
    assert found.words.startswith("the inputs of digits@1 drifted")
    moved = ("inputs/image", "outputs/logits", "inputs/depth")
    [named] = findings.of_drift([msgspec.structs.replace(one, moved=moved)])
    assert named.words.startswith("inputs image, depth of digits@1 drifted at 2 of 40 devices")
    assert named.words.endswith("; so did output logits")
    [other] = findings.of_drift([msgspec.structs.replace(one, deployment="spare")])
    assert other.subject == "digits@1 as spare"


def test_every_kind_that_is_found_is_in_the_table_and_says_what_to_do() -> None:
    for kind in KINDS.values():
        assert kind.what_to_do
        assert kind.raise_after_s >= 0
    assert alerts.FOLD_ABOVE // 2 >= 1
