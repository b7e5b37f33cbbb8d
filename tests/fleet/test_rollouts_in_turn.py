"""Rollouts one after the other: the queue, who joins with what, and who follows an assignment."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace
from sqlalchemy import insert, select, update
from store_support import NEW, NOW, OLD, enrolled, rollout_of, said

from edgekit.errors import ConflictError
from fleet import api
from fleet.publish import make_key
from fleet.rules import windows
from fleet.rules.pace import Pace
from fleet.rules.rollout import Command, Rollout, Status
from fleet.server import changes, ingest, placing, planning, schema
from fleet.server.clock import Clock, same
from fleet.server.controller import Controller
from fleet.server.database import Database
from fleet.server.link import Link
from fleet.server.schema_audit import audit as log
from fleet.server.store import assignments, audit, blocked, devices, groups, orders, rollouts
from fleet.server.store.orders import Issuer

DEADLINE_S = 600.0


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer("fleet-1", make_key(tmp_path / "order.key"))


@pytest.fixture
def leading(database: Database, issuer: Issuer) -> Iterator[Controller]:
    link = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
    made = Controller(database, issuer, cast("Link", link), Clock(lambda: NOW, lambda: NOW))
    assert made.follow()
    yield made
    made.stop()


def wanted(version: str, to: str = "all", **more: object) -> api.NewRollout:
    return api.NewRollout(
        f"digits@{version}", to, stages="100%", gates=("error_rate < 5%",), **({"holdback": "0"} | more)
    )


def asked(database: Database, issuer: Issuer, new: api.NewRollout, at: float = NOW) -> Rollout:
    with database.begin() as connection:
        planned, _ = planning.plan(connection, new, same(at))
        return changes.begin(connection, issuer, planned, now=same(at), who=audit.FLEET, wanted=new)


def told(database: Database, issuer: Issuer, number: int, command: Command, at: float) -> None:
    with database.begin() as connection:
        changes.apply(connection, issuer, rollouts.load(connection, number), command, now=same(at))


def shown(database: Database, number: int) -> Rollout:
    with database.read() as connection:
        return rollouts.get(connection, number)


def runs(database: Database, device: str) -> tuple[str, str] | None:
    with database.read() as connection:
        found = orders.desired_of(connection, device).get((device, "digits"))
    return (found.sha256, found.because) if found is not None else None


def speak(database: Database, *names: str, seq: int = 1, at: float = NOW) -> None:
    ingest.take_in(database, [said(name, seq) for name in names], same(at))


def test_a_rollout_in_the_way_is_waited_for_in_order(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    enrolled(database, ["d1", "d2", "d3"])
    speak(database, "d1", "d2", "d3")
    asked(database, issuer, wanted("2"))
    with pytest.raises(ConflictError, match=r"r1 of digits@2 is running on 1 of these devices .* --queue"):
        asked(database, issuer, wanted("1", "device in (d1)"))
    second = asked(database, issuer, wanted("1", "device in (d1)", queue=True))
    third = asked(database, issuer, wanted("2", "device in (d1, d2)", queue=True))
    assert (second.status, third.status) == (Status.QUEUED, Status.QUEUED)
    leading.tick(same(NOW + 1))
    assert shown(database, 2).status is Status.QUEUED
    told(database, issuer, 1, Command("abort"), NOW + 2)
    for at in (3.0, 3.0 + DEADLINE_S, 4.0 + DEADLINE_S):
        leading.tick(same(NOW + at))
    assert shown(database, 1).status is Status.ABORTED
    assert (shown(database, 2).status, set(shown(database, 2).members)) == (Status.RUNNING, {"d1"})
    waits = shown(database, 3)
    assert (waits.status, "rollout r2 of digits@1 is running" in waits.reason) == (Status.QUEUED, True)
    assert runs(database, "d1") == (OLD, "rollout r2")
    told(database, issuer, 3, Command("abort"), NOW + 700)
    assert shown(database, 3).status is Status.ABORTED
    with database.read() as connection:
        actions = list(connection.execute(select(log.c.action)).scalars())
    assert [a for a in actions if a in ("rollout.queue", "rollout.start")] == [
        "rollout.start", "rollout.queue", "rollout.queue", "rollout.start",
    ]  # fmt: skip


def test_what_cannot_begin_after_its_wait_ends_and_says_why(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    enrolled(database, ["d1"])
    speak(database, "d1")
    asked(database, issuer, wanted("2"))
    asked(database, issuer, wanted("1", queue=True))
    with database.begin() as connection:
        blocked.add(connection, "digits@1", "bad", now=NOW, who=audit.FLEET)
    told(database, issuer, 1, Command("abort"), NOW + 2)
    for at in (3.0, 3.0 + DEADLINE_S, 4.0 + DEADLINE_S):
        leading.tick(same(NOW + at))
    ended = shown(database, 2)
    assert ended.status is Status.ABORTED
    assert "could not begin after its wait" in ended.reason
    assert "blocked" in ended.reason


def assigned(database: Database, version: str, at: float, rollout: int = 0) -> None:
    row = {
        "deployment": "digits", "selector": "all", "name": "digits", "version": version, "rollout": rollout,
        "set_at": at,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(schema.assignments).values(row))


def test_who_joins_in_the_middle_first_gets_what_is_assigned_and_would_go_back_to_it(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    enrolled(database, ["d1", "late"])
    assigned(database, "1", NOW - 50)
    speak(database, "d1")
    asked(database, issuer, wanted("2", approve="1"))
    leading.tick(same(NOW + 1))
    speak(database, "late", at=NOW + 2)
    leading.tick(same(NOW + 2))
    assert runs(database, "late") == (OLD, "assignment digits@1")
    assert "late" not in shown(database, 1).members
    with database.read() as connection:
        counter = devices.get(connection, "late").order_counter
    ingest.take_in(database, [said("late", 2, counter=counter, digest=OLD)], same(NOW + 3))
    leading.tick(same(NOW + 3))
    joined = shown(database, 1).members["late"]
    assert (joined.previous, joined.previous_title, joined.order_counter) == (OLD, "digits@1", 0)


@pytest.mark.parametrize("before", ["1", ""])
def test_a_rollback_reaches_devices_that_came_since(
    database: Database, issuer: Issuer, leading: Controller, before: str
) -> None:
    enrolled(database, ["d1", "since"])
    speak(database, "d1")
    if before:
        assigned(database, before, NOW - 50)
    leading.tick(same(NOW))
    rollout = asked(database, issuer, wanted("2", "device != nobody"))
    with database.begin() as connection:
        done = replace(rollout, status=Status.COMPLETED)
        rollouts.save(connection, done, rollout, NOW)
        rollouts.assign(connection, done, NOW)
    speak(database, "since", at=NOW + 1)
    leading.tick(same(NOW + 1))
    assert runs(database, "since") == (NEW, "assignment digits@2")
    told(database, issuer, 1, Command("rollback"), NOW + 2)
    leading.tick(same(NOW + 3))
    assert runs(database, "since") == ((OLD, "assignment digits@1") if before else None)
    assert runs(database, "d1") == ((OLD, "rollout r1") if before else None)


def test_who_was_away_follows_when_it_is_back_and_its_window_is_open(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    """The rollout completed without it, and said when devices may change."""
    enrolled(database, ["away", "apart"])
    speak(database, "away", "apart")
    opens = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=2)
    span = windows.parse(f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}")
    rollout = rollout_of(["apart"])
    rollout = replace(
        rollout, spec=replace(rollout.spec, pace=Pace(windows=(span,))), status=Status.COMPLETED
    )
    with database.begin() as connection:
        rollouts.add(connection, rollout, NOW)
        orders.set_desired(connection, "away", "digits", OLD, because="rollout r0", now=NOW - 50)
        orders.set_desired(connection, "apart", "digits", OLD, because="rollout r2", now=NOW + 50)
        connection.execute(
            update(schema.devices).where(schema.devices.c.id == "away").values(is_online=False)
        )
    assigned(database, "2", NOW, rollout=1)
    leading.tick(same(NOW + 1))
    assert runs(database, "away") == (OLD, "rollout r0")
    with database.begin() as connection:
        connection.execute(update(schema.devices).values(is_online=True))
    speak(database, "away", seq=2, at=NOW + 2)
    leading.tick(same(NOW + 2))
    assert runs(database, "away") == (OLD, "rollout r0"), "its window is closed"
    speak(database, "away", seq=3, at=NOW + 7300)
    leading.tick(same(NOW + 7300))
    assert runs(database, "away") == (NEW, "assignment digits@2")
    assert runs(database, "apart") == (OLD, "rollout r2"), "a rollout gave it that since"


def test_orders_say_how_devices_of_a_site_share_its_line(database: Database, issuer: Issuer) -> None:
    enrolled(database, ["d1", "d2"])
    speak(database, "d1", "d2")
    limits = {"site_bandwidth": "1MB/s", "jitter": "1m"}
    rollout = asked(database, issuer, wanted("2", **limits))
    options = changes._options(rollout, ["d1", "d2"])
    assert {o.fetch_bytes_s for o in options.values()} == {5e5}
    assert all(0 <= o.fetch_after_s <= 60 for o in options.values())
    back = changes._options(replace(rollout, status=Status.ROLLING_BACK), ["d1"])
    assert (back["d1"].fetch_after_s, back["d1"].fetch_bytes_s) == (0.0, None)


def test_who_is_one_too_many_or_waits_for_its_window_is_marked_and_not_forgotten(
    database: Database, issuer: Issuer, leading: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "AT_ONCE", 1)
    enrolled(database, ["a", "b", "c"])
    speak(database, "a", "b", "c")
    opens = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=2)
    span = windows.parse(f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}")
    rollout = rollout_of(["a"])
    rollout = replace(
        rollout, spec=replace(rollout.spec, pace=Pace(windows=(span,))), status=Status.COMPLETED
    )
    with database.begin() as connection:
        rollouts.add(connection, rollout, NOW)
        for device in ("a", "b"):
            orders.set_desired(connection, device, "digits", OLD, because="rollout r0", now=NOW - 50)
    assigned(database, "2", NOW, rollout=1)
    leading.tick(same(NOW + 1))
    assert runs(database, "c") == (NEW, "assignment digits@2"), "who runs nothing waits for nothing"
    with database.read() as connection:
        assert {mark.device for mark in groups.marked(connection, ("", 0), 10)} == {"a", "b"}
    for seconds in range(4):
        leading.tick(same(NOW + 7300 + seconds))
    assert {runs(database, device) for device in ("a", "b")} == {(NEW, "assignment digits@2")}
    with database.read() as connection:
        assert groups.marked(connection, ("", 0), 10) == []


def test_an_assignment_that_a_person_takes_away_leaves_devices_what_they_have(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    enrolled(database, ["d1"])
    assigned(database, "2", NOW - 50)
    speak(database, "d1")
    leading.tick(same(NOW + 1))
    assert runs(database, "d1") == (NEW, "assignment digits@2")
    with database.begin() as connection:
        assignments.remove(connection, "a1", "a mistake", now=NOW + 2, who=audit.FLEET)
    leading.tick(same(NOW + 3))
    assert runs(database, "d1") == (NEW, "kept digits@2")
