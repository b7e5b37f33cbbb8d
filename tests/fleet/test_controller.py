"""The controller against a database and no broker: one at a time, in bounded pieces, reading only what is new."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fleet_support import wait_until
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from store_support import NEW, NOW, enrolled, report, rollout_of, said

from edgekit.wire.states import FleetState
from fleet.publish import make_key
from fleet.rules.moving import MOVES_AT_ONCE
from fleet.rules.rollout import Command, Rollout, Status
from fleet.server import changes, ingest, schema, stepping
from fleet.server.clock import Clock, Now, same
from fleet.server.controller import Controller
from fleet.server.database import Database, sqlite_url
from fleet.server.link import Link
from fleet.server.lock import Lock, LostError
from fleet.server.store import audit, devices, rollouts, settings
from fleet.server.store.orders import Issuer


class Time:
    """A clock that stands until it is moved on."""

    def __init__(self) -> None:
        self.seconds = NOW

    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, lambda: self.seconds)


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer("fleet-1", make_key(tmp_path / "order.key"))


def made(database: Database, issuer: Issuer, passing: Time) -> Controller:
    link = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
    return Controller(database, issuer, cast("Link", link), passing.clock())


@pytest.fixture
def passing() -> Time:
    return Time()


@pytest.fixture
def leading(database: Database, issuer: Issuer, passing: Time) -> Iterator[Controller]:
    found = made(database, issuer, passing)
    assert found.follow()
    yield found
    found.stop()


def begun(database: Database, issuer: Issuer, names: list[str], cut: str = "100%") -> None:
    with database.begin() as connection:
        changes.begin(connection, issuer, rollout_of(names, cut), now=same(NOW), who=audit.FLEET)


def ordered(database: Database) -> int:
    with database.read() as connection:
        query = select(func.count()).select_from(schema.outbox)
        return int(connection.execute(query).scalar_one())


def loaded(database: Database) -> Rollout:
    with database.read() as connection:
        return rollouts.get(connection, 1)


def accepted(database: Database, names: list[str], seq: int = 1) -> list[Any]:
    counters = {m.device: m.order_counter for m in loaded(database).members.values()}
    return [said(name, seq, counter=counters[name], digest=NEW) for name in names]


def test_a_large_stage_opens_in_bounded_transactions_and_wholly(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    names = [f"d{n:04}" for n in range(1000)]
    enrolled(database, names)
    begun(database, issuer, names)
    assert ordered(database) == MOVES_AT_ONCE
    leading.tick(same(NOW + 1))
    assert ordered(database) == 1000
    assert all(member.order_counter for member in loaded(database).members.values())


def test_opening_goes_on_in_whoever_takes_over(
    database: Database, issuer: Issuer, passing: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"d{n:04}" for n in range(1000)]
    enrolled(database, names)
    begun(database, issuer, names)
    monkeypatch.setattr(stepping, "CHUNKS_AT_ONCE", 1)
    first, second = made(database, issuer, passing), made(database, issuer, passing)
    assert first.follow()
    assert not second.follow()
    first.tick(same(NOW + 1))
    assert ordered(database) == 2 * MOVES_AT_ONCE
    first.stop()
    # A server of PostgreSQL ends a session, and with it the lock, in its own time.
    wait_until(second.follow, "it is free")
    for n in range(4):
        second.tick(same(NOW + 2 + n))
    assert ordered(database) == 1000
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.orders)).scalar_one() == 1000, (
            "none twice"
        )
    second.stop()


def test_a_rollback_of_many_goes_back_in_pieces_also_while_frozen(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    names = [f"d{n:04}" for n in range(500)]
    enrolled(database, names)
    begun(database, issuer, names)
    leading.tick(same(NOW + 1))
    with database.begin() as connection:
        settings.set_frozen(connection, True)
        rollout = rollouts.load(connection, 1)
        changes.apply(connection, issuer, rollout, Command("rollback"), now=same(NOW + 2))
    leading.tick(same(NOW + 3))
    assert all(m.is_returning and not m.is_leaving for m in loaded(database).members.values())


def test_a_tick_reads_what_is_new_and_not_the_rest(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    names = [f"d{n:04}" for n in range(600)]
    enrolled(database, names)
    begun(database, issuer, names)
    leading.tick(same(NOW + 1))
    leading.tick(same(NOW + 2))
    read: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: read.append(args[2]))
    ingest.take_in(database, [report("d0007", 1, NOW + 70)], same(NOW + 70))
    read.clear()
    leading.tick(same(NOW + 71))
    selected = [sql for sql in read if sql.startswith("SELECT")]
    big = [sql for sql in selected if ("FROM members" in sql or "FROM stage_sums" in sql) and "IN" not in sql]
    assert big == [], "neither all members nor all sums"
    assert len(selected) < 30


def test_success_is_heard_through_rows(database: Database, issuer: Issuer, leading: Controller) -> None:
    names = ["d1", "d2", "d3"]
    enrolled(database, names)
    begun(database, issuer, names)
    ingest.take_in(database, accepted(database, ["d1", "d2"]), same(NOW + 1))
    leading.tick(same(NOW + 2))
    states = {m.device: m.state for m in loaded(database).members.values()}
    assert states == {"d1": FleetState.SUCCEEDED, "d2": FleetState.SUCCEEDED, "d3": FleetState.PENDING}


def test_a_change_by_an_operator_between_ticks_is_seen(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    names = ["d1", "d2"]
    enrolled(database, names)
    begun(database, issuer, names)
    leading.tick(same(NOW + 1))
    with database.begin() as connection:
        changes.apply(connection, issuer, rollouts.load(connection, 1), Command("abort"), now=same(NOW + 2))
    leading.tick(same(NOW + 3))
    assert loaded(database).status is Status.ABORTING


@pytest.mark.parametrize("step", [7200.0, -86_400.0])
def test_a_step_of_the_wall_clock_ends_no_soak_and_stops_no_chore(
    database: Database, issuer: Issuer, leading: Controller, step: float
) -> None:
    names = ["d1", "d2"]
    enrolled(database, names)
    begun(database, issuer, names)
    ingest.take_in(database, accepted(database, names), same(NOW + 1))
    leading.tick(same(NOW + 2))
    assert loaded(database).soak_from is not None
    windows = [report(name, n, NOW + 60 * n + 5, digest=NEW, errors=0) for name in names for n in range(1, 9)]
    ingest.take_in(database, windows, same(NOW + 50))
    leading.tick(Now(NOW + 55 + step, NOW + 55, NOW + 55))
    assert loaded(database).status is Status.RUNNING, "55 s of a soak of 60"
    leading.tick(Now(NOW + 63 + step, NOW + 63, NOW + 63))
    assert loaded(database).status is not Status.PAUSED


def test_only_one_is_the_controller_and_the_next_takes_over(
    database: Database, issuer: Issuer, passing: Time
) -> None:
    first, second = made(database, issuer, passing), made(database, issuer, passing)
    assert first.follow()
    assert not second.follow()
    assert first.follow()
    first.stop()
    # A server of PostgreSQL ends a session, and with it the lock, in its own time.
    wait_until(second.follow, "it is free")
    second.stop()


def test_two_names_of_one_sqlite_file_are_one_database(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
    one, other = Lock(Database(sqlite_url(tmp_path))), Lock(Database(sqlite_url(tmp_path / "other")))
    assert one.take()
    assert not other.take()
    one.release()
    assert other.take()


@pytest.mark.postgres
def test_a_controller_whose_connection_is_cut_changes_nothing_more(
    empty_postgresql: str, issuer: Issuer, passing: Time
) -> None:
    database = Database(empty_postgresql)
    first, second = made(database, issuer, passing), made(database, issuer, passing)
    assert first.follow()
    with database.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 20000) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
        )
    assert second.follow(), "the lock is free"
    with pytest.raises(LostError):
        first.tick(same(NOW + 1))
    first._lose()
    assert not first.follow(), "it has not come back by a connection made anew"
    with database.begin() as connection:
        holders = connection.execute(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))
        assert holders.scalar_one() == 1
    second.stop()
    # A server of PostgreSQL ends a session, and with it the lock, in its own time.
    wait_until(first.follow, "it is free")
    first.stop()
    database.close()


@pytest.mark.postgres
def test_opening_a_stage_of_a_thousand_under_ingest_never_deadlocks(
    empty_postgresql: str, issuer: Issuer, passing: Time
) -> None:
    """Both lock many devices; before they did so in one order, three of three runs ended in a deadlock."""
    database = Database(empty_postgresql)
    names = [f"d{n:04}" for n in range(1000)]
    enrolled(database, names)
    failures: list[str] = []
    done = threading.Event()
    batches = [0, 0]

    def speak(worker: int) -> None:
        seq = 0
        while not done.is_set():
            seq += 1
            some = names[worker::2] if worker else names[::-1]
            batch = [report(name, 10_000 * worker + seq, NOW + seq) for name in some[seq % 5 :: 5]]
            try:
                ingest.take_in(database, batch, same(NOW + seq))
            except SQLAlchemyError as error:
                failures.append(str(error))
            batches[worker] += 1

    threads = [threading.Thread(target=speak, args=(n,)) for n in (0, 1)]
    leading = made(database, issuer, passing)
    assert leading.follow()
    for thread in threads:
        thread.start()
    try:
        for n in range(3):
            with database.begin() as connection:
                for table in (schema.members, schema.stage_sums):
                    connection.execute(table.delete())
                connection.execute(schema.rollouts.delete())
            begun(database, issuer, names)
            leading.tick(same(NOW + n))
            leading.tick(same(NOW + n + 0.5))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    leading.stop()
    assert failures == []
    assert min(batches) > 3
    assert all(member.order_counter for member in loaded(database).members.values())
    database.close()


def test_a_device_taken_out_of_service_leaves_its_row_too(
    database: Database, issuer: Issuer, leading: Controller
) -> None:
    names = ["d1", "d2", "d3"]
    enrolled(database, names)
    begun(database, issuer, names)
    leading.tick(same(NOW + 1))
    with database.begin() as connection:
        devices.decommission(connection, "d3", now=NOW + 2, who=audit.FLEET)
    leading.tick(same(NOW + 3))
    assert set(loaded(database).members) == {"d1", "d2"}
