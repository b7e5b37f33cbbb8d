"""What ingest does with messages: hostile ones, late ones, many; and the sums that come of them."""

import threading

import msgspec
import pytest
from sqlalchemy import event, insert, select, update
from store_support import NEW, NOW, OLD, enrolled, report, rollout_of, said, status, topic

from edgekit.wire import topics
from edgekit.wire.messages import Reported, decode
from fleet.rules.sums import BLOCK, Recent, StageSums
from fleet.server import ingest, schema
from fleet.server.clock import Now, same
from fleet.server.database import Database, sqlite_url
from fleet.server.inbox import Inbox, Message
from fleet.server.store import devices, news, rollouts, telemetry
from fleet.server.store.devices import DeviceRow

POISON = b'{"seq": 9223372036854775808}'


def device(database: Database, name: str = "d1") -> DeviceRow:
    with database.read() as connection:
        return devices.get(connection, name)


def sums(database: Database, name: str = "d1") -> StageSums:
    with database.read() as connection:
        return telemetry.sums_of(connection, {1: 0})[1, name]


def recent(database: Database, name: str = "d1", digest: str = OLD) -> Recent:
    with database.read() as connection:
        key = (schema.totals.c.device == name) & (schema.totals.c.digest == digest)
        found = connection.execute(select(schema.totals.c.recent).where(key)).scalar_one()
        return msgspec.json.decode(found, type=Recent)


def opened(database: Database, names: list[str], at: float = NOW) -> None:
    with database.begin() as connection:
        rollouts.add(connection, rollout_of(names, judged_from=at), at)


def raw(message: Message, **change: object) -> Message:
    """The message with fields changed past what its types allow."""
    return message._replace(payload=msgspec.json.encode(msgspec.json.decode(message.payload) | change))


def test_a_message_beyond_its_bounds_is_counted_and_harms_no_other(database: Database) -> None:
    enrolled(database, ["d1"])
    windows = msgspec.json.decode(report("d1", 1, NOW).payload)["deployments"]
    windows[0]["infer_ms"]["bins"] = {"100000": 1}
    batch = [
        raw(report("d1", 1, NOW), seq=2**63),
        raw(report("d1", 2, NOW), deployments=windows),
        raw(report("d1", 3, NOW), boot={"enrolment": 1, "incarnation": 2**62, "nonce": "0" * 16}),
        raw(said("d1", 1), agent_version="1" * 300),
        report("d1", 4, NOW),
    ]
    taken = ingest.take_in(database, batch, same(NOW))
    assert taken.dropped == {"unreadable report": 3, "unreadable reported": 1}
    assert list(taken.acks.values()) == [[4]]


def test_what_only_the_database_refuses_is_found_and_dropped_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds may have a gap; a message that finds it must not be tried again for ever."""
    enrolled(database, ["d1", "d2"])
    real = telemetry.record

    def refuses(connection: object, arrived: list[telemetry.Arrived], *rest: object) -> None:
        if any(item.report.seq == 13 for item in arrived):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        real(connection, arrived, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(telemetry, "record", refuses)
    batch = [report("d1", seq, NOW) for seq in range(10, 16)] + [report("d2", 1, NOW)]
    taken = ingest.take_in(database, batch, same(NOW))
    assert taken.dropped == {"cannot be stored": 1}
    assert sorted(seq for seqs in taken.acks.values() for seq in seqs) == [1, 10, 11, 12, 14, 15]


def test_a_retained_poison_message_is_cleared_from_its_topic_but_never_another_fleets(
    database: Database,
) -> None:
    enrolled(database, ["d1"])
    retained = [
        Message(topic("d1", topics.REPORTED), b"{", None, True),
        Message(topic("d1", topics.STATUS), b'{"online": 7}', None, True),
        said("d1", 1, profile="other")._replace(is_retained=True),
        Message(topic("not-ours", topics.REPORTED), b"{", None, True),
        Message(topic("d1", topics.REPORTED), b"{", None, False),
        Message(topic("d1", topics.REPORTED), b"", None, True),
        said("d1", 2)._replace(is_retained=True),
    ]
    taken = ingest.take_in(database, retained, same(NOW))
    assert taken.poisoned == [
        topic("d1", topics.REPORTED),
        topic("d1", topics.STATUS),
        topic("d1", topics.REPORTED),
    ]
    assert sum(taken.dropped.values()) == 5, "an empty payload takes a message away, and is none itself"
    assert device(database).reported_seq == 2


def test_a_forged_incarnation_does_not_lock_the_device_out(database: Database) -> None:
    enrolled(database, ["d1"])
    ingest.take_in(database, [status("d1", online=True, incarnation=2)], same(NOW))
    ingest.take_in(database, [status("d1", online=False, incarnation=2**31 - 1)], same(NOW))
    ingest.take_in(database, [status("d1", online=True, incarnation=4)], same(NOW))
    row = device(database)
    assert (row.incarnation, row.is_online) == (4, True)


def test_a_report_is_a_sign_of_life_against_a_forged_offline(database: Database) -> None:
    enrolled(database, ["d1"])
    ingest.take_in(database, [status("d1", online=True), status("d1", online=False, received=NOW)], same(NOW))
    assert not device(database).is_online
    early = report("d1", 1, NOW)._replace(received=NOW - 5)
    ingest.take_in(database, [early], same(NOW + 1))
    assert not device(database).is_online, "it was sent before the device went"
    ingest.take_in(database, [report("d1", 2, NOW + 60)._replace(received=NOW + 60)], same(NOW + 60))
    assert device(database).is_online


def test_a_window_counts_for_the_stage_it_belongs_to_by_its_own_time(database: Database) -> None:
    enrolled(database, ["d1"])
    before = [report("d1", seq, NOW - 600 + 60 * seq) for seq in range(1, 9)]
    ingest.take_in(database, before, same(NOW - 10))
    opened(database, ["d1"])
    spooled = [report("d1", 20 + n, NOW - 3600 + 60 * n, errors=99) for n in range(3)]
    straddling = report("d1", 30, NOW + 30, errors=99)
    doubtful = report("d1", 31, NOW + 70, errors=99, clock_ok=False)
    future = report("d1", 32, NOW + 90_000, errors=99)
    present = [report("d1", 40 + n, NOW + 100 + 60 * n) for n in range(3)]
    ingest.take_in(database, [*spooled, straddling, doubtful, future, *present], same(NOW + 220))
    found = sums(database)
    assert found.past is not None
    assert (found.past.windows, found.past.errors) == (8, 8), "the past is that of before the stage"
    assert (found.stayed.seen, found.stayed.sums.windows, found.stayed.sums.errors) == (3, 2, 2)
    assert found.moved.seen == 0
    assert found.is_at_risk


def test_a_stepped_fleet_clock_makes_no_present_window_old(database: Database) -> None:
    enrolled(database, ["d1"])
    opened(database, ["d1"])
    stepped = Now(wall=NOW + 7200 + 100, steady=NOW + 100, unstepped=NOW + 100)
    batch = [report("d1", 1, NOW + 100), report("d1", 2, NOW - 3000)]
    ingest.take_in(database, batch, stepped)
    assert sums(database).stayed.seen == 1


def test_the_first_windows_on_the_release_are_cold(database: Database) -> None:
    enrolled(database, ["d1"])
    opened(database, ["d1"])
    batch = [report("d1", n, NOW + 60 * n + 1, digest=NEW, ms=50.0 if n == 1 else 2.0) for n in range(1, 6)]
    ingest.take_in(database, batch, same(NOW + 301))
    moved = sums(database).moved
    assert (moved.seen, moved.sums.windows, moved.sums.requests) == (5, 4, 400)
    assert moved.since == pytest.approx(NOW + 61)
    assert moved.sums.infer_ms.largest == 2.0


def test_who_was_silent_when_the_stage_opened_is_at_no_risk(database: Database) -> None:
    enrolled(database, ["d1"])
    enrolled_late = {"id": "d2", "last_report_at": NOW - 3600}
    with database.begin() as connection:
        row = connection.execute(select(schema.devices)).one()._asdict()
        connection.execute(insert(schema.devices).values(**(row | enrolled_late)))
    opened(database, ["d1", "d2"])
    batch = [report("d1", 1, NOW + 100), report("d2", 1, NOW + 100)]
    ingest.take_in(database, batch, same(NOW + 100))
    assert [sums(database, name).is_at_risk for name in ("d1", "d2")] == [True, False]


def test_a_device_that_speaks_for_the_first_time_counts_from_then_on(database: Database) -> None:
    enrolled(database, ["d1"], last_report_at=None)
    opened(database, ["d1"])
    ingest.take_in(database, [report("d1", n, NOW + 540 + 60 * n) for n in (1, 2)], same(NOW + 660))
    found = sums(database)
    assert found.is_at_risk
    assert found.fell_silent_at is None, "before its first report it was not silent, it was not there"
    assert found.stayed.sums.requests == 100


def test_the_fleets_own_deafness_makes_nobody_silent(database: Database) -> None:
    enrolled(database, ["d1"], last_report_at=NOW - 3600)
    opened(database, ["d1"])
    deaf = (NOW - 3590, NOW - 5)
    ingest.take_in(database, [report("d1", 1, NOW + 100)], same(NOW + 100), deaf)
    assert sums(database).is_at_risk
    ingest.take_in(database, [report("d1", 2, NOW + 1000)], same(NOW + 1000), (NOW + 120, NOW + 990))
    assert sums(database).fell_silent_at is None
    ingest.take_in(database, [report("d1", 3, NOW + 1300)], same(NOW + 1300), (NOW + 120, NOW + 990))
    assert sums(database).fell_silent_at == pytest.approx(NOW + 1000 + 180)


def test_a_stage_judged_afresh_begins_with_empty_sums(database: Database) -> None:
    enrolled(database, ["d1"])
    opened(database, ["d1"])
    ingest.take_in(database, [report("d1", n, NOW + 60 * n) for n in range(1, 4)], same(NOW + 180))
    assert sums(database).stayed.seen == 3
    with database.begin() as connection:
        connection.execute(update(schema.rollouts).values(judged_from=NOW + 200))
    ingest.take_in(database, [report("d1", 4, NOW + 300)], same(NOW + 300))
    assert sums(database).stayed.seen == 1


def test_a_recent_past_is_bounded_and_of_the_newest_windows(database: Database) -> None:
    enrolled(database, ["d1"])
    for start in range(0, 300, 100):
        batch = [report("d1", n, NOW + 60 * n, requests=n + 1, errors=0) for n in range(start, start + 100)]
        ingest.take_in(database, batch, same(NOW + 60 * (start + 100)))
    found = recent(database).all()
    assert BLOCK <= found.windows < 2 * BLOCK
    assert found.requests == sum(n + 1 for n in range(300 - found.windows, 300))


def test_a_report_adds_to_the_sums_once_however_often_it_comes(database: Database) -> None:
    enrolled(database, ["d1"])
    opened(database, ["d1"])
    batch = [report("d1", 1, NOW + 100), report("d1", 2, NOW + 160)]
    for _ in range(3):
        ingest.take_in(database, [*batch, *batch], same(NOW + 160))
    assert (sums(database).stayed.seen, recent(database).all().windows) == (2, 2)


def test_a_batch_takes_a_bounded_number_of_statements(database: Database) -> None:
    names = [f"d{n:03}" for n in range(200)]
    enrolled(database, names)
    opened(database, names)
    counted: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: counted.append(args[2]))
    ingest.take_in(database, [report(name, 1, NOW + 100) for name in names], same(NOW + 100))
    assert len(counted) <= 20, counted
    with database.read() as connection:
        assert len(telemetry.sums_of(connection, {1: 0})) == 200


def test_news_are_told_once_and_stay_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(database, ["d1", "d2"])
    ingest.take_in(database, [report("d1", 1, NOW)], same(NOW))
    with database.begin() as connection:
        assert news.take(connection) == {"d1"}
        assert news.take(connection) == set()
        monkeypatch.setattr(news, "_MOST", 10)
        for _ in range(200):
            news.note(connection, ["d2"])
        assert len(connection.execute(select(schema.changes)).all()) <= 10 + news._LOOK_EVERY
        assert news.take(connection) is None


def test_states_are_never_dropped_by_a_full_inbox_and_telemetry_is() -> None:
    inbox = Inbox(telemetry=10, states=50)
    for n in range(100):
        inbox.put(report("d1", n, NOW))
        inbox.put(said(f"d{n % 30}", n))
        inbox.put(status(f"d{n % 30}", online=True, received=float(n)))
    assert inbox.overflowed == 90
    taken = inbox.take(1000, timeout_s=0)
    states = [message for message in taken if not message.topic.endswith(topics.TELEMETRY)]
    assert len(taken) - len(states) == 10
    newest = {
        message.topic: decode(message.payload, Reported).seq
        for message in states
        if "reported" in message.topic
    }
    assert newest == {topic(f"d{n % 30}", topics.REPORTED): n for n in range(70, 100)}
    assert inbox.take(1, timeout_s=0) == []


def test_states_keep_their_order_while_there_is_room() -> None:
    inbox = Inbox()
    for n in range(5):
        inbox.put(status("d1", online=bool(n % 2), incarnation=n))
    assert [m.payload for m in inbox.take(10, timeout_s=0)] == [
        status("d1", online=bool(n % 2), incarnation=n).payload for n in range(5)
    ]


def test_reading_waits_for_no_writer_on_sqlite(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A tick may take its time: who only looks is answered meanwhile."""
    database = Database(sqlite_url(tmp_path))
    enrolled(database, ["d1"])
    seen: list[bool] = []
    with database.begin() as connection:
        connection.execute(update(schema.devices).values(is_online=False))
        reader = threading.Thread(target=lambda: seen.append(device(database).is_online))
        reader.start()
        reader.join(timeout=5)
        assert seen == [True], "as it was before the transaction that still runs"
    assert not device(database).is_online
