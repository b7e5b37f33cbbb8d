"""Workers that share the reports: one that is killed loses nothing, and the fleet knows whether it hears."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from fleet_support import Service, free_port, wait_until
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import func, select
from store_support import NOW

from edgekit.errors import UsageError
from edgekit.wire import topics
from fleet.server import broker_config, schema
from fleet.server.broker import Mosquitto
from fleet.server.clock import BRIDGE_S, Clock
from fleet.server.crew import Crew
from fleet.server.database import Database, sqlite_url
from fleet.server.inbox import Message
from fleet.server.intake import RECEIVE_MAXIMUM, Intake
from fleet.server.link import Login
from fleet.server.places import EMBEDDED, Address, Wanted, settle
from fleet.server.service import Options
from fleet.server.store import workers

needs_mosquitto = pytest.mark.skipif(
    not shutil.which("mosquitto", path="/usr/sbin:/usr/bin"), reason="no mosquitto"
)


def stored(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.reports)).scalar_one())


def there(service: Service) -> list[workers.WorkerRow]:
    database = Database(sqlite_url(service.state))
    try:
        with database.read() as connection:
            return [row for row in connection.execute(select(schema.workers)) if row.is_hearing]
    finally:
        database.close()


def pids(service: Service) -> list[int]:
    """The workers' processes."""
    return [int(row.name.rpartition("-")[2]) for row in there(service)]


@pytest.fixture
def crewed(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, broker="mosquitto", more=("--workers", "2"))
    made.start()
    yield made
    made.stop()


@needs_mosquitto
@pytest.mark.proof
def test_what_a_killed_worker_had_not_stored_comes_again_and_counts_once(crewed: Service) -> None:
    """Devices report as fast as they may while one worker is killed, another is started, and all is counted."""
    made = crewed.simulated(20, "--duration", "6s", "--window", "0.2s")
    wait_until(lambda: len(there(crewed)) == 2, "both workers hear")
    victim = pids(crewed)[0]
    database = Database(sqlite_url(crewed.state))
    wait_until(lambda: stored(database) > 100, "reports are stored")
    os.kill(victim, signal.SIGKILL)
    out, _ = made.communicate(timeout=60)
    told = json.loads(out)
    assert told["reports_sent"] > 200
    assert told["reports_sent"] == told["reports_acknowledged"] == stored(database)
    wait_until(lambda: len(set(pids(crewed)) - {victim}) == 2, "another worker has taken its place")
    database.close()


def test_workers_need_a_broker_that_shares(tmp_path: Path) -> None:
    places = settle(Wanted())
    assert places.broker == EMBEDDED
    with pytest.raises(UsageError, match="does not share"):
        Crew(Options(tmp_path, workers=1), places)


def test_a_worker_goes_by_the_time_that_the_controller_keeps(database: Database) -> None:
    wall, ticks = [NOW], [100.0]
    controller, other = (Clock(lambda: wall[0], lambda: ticks[0]) for _ in range(2))
    wall[0] += 7200.0  # a step of the wall clock that only the controller has seen pass
    ticks[0] += 5.0
    with database.begin() as connection:
        controller.keep(connection, is_hearing=True)
    late = Clock(lambda: wall[0], lambda: ticks[0])
    assert late.now().steady == NOW + 7200.0
    with database.begin() as connection:
        late.follow(connection)
    assert late.now().steady == controller.now().steady == NOW + 5.0
    wall[0] += 10 * BRIDGE_S
    ticks[0] += 10 * BRIDGE_S
    controller.hears_again()
    with database.begin() as connection:
        controller.keep(connection, is_hearing=True)
        other.follow(connection)
    assert other.deaf == controller.deaf
    assert other.deaf[1] - other.deaf[0] == 10 * BRIDGE_S


def test_who_was_not_heard_of_lately_is_not_there(database: Database) -> None:
    with database.begin() as connection:
        workers.beat(connection, "a", "host", now=NOW, is_hearing=True, stored=1)
        workers.beat(connection, "b", "host", now=NOW + workers.GONE_S, is_hearing=False, stored=1)
        workers.beat(connection, "a", "host", now=NOW + 1, is_hearing=True, stored=2)
        assert [row.name for row in workers.there(connection, NOW + workers.GONE_S)] == ["a", "b"]
        assert [row.name for row in workers.there(connection, NOW + workers.GONE_S + 2)] == ["b"]
        workers.leave(connection, "b")
        assert not workers.there(connection, NOW + workers.GONE_S + 2)


@needs_mosquitto
def test_a_broker_whose_worker_stores_nothing_sends_it_a_bounded_number_of_reports(tmp_path: Path) -> None:
    config = tmp_path / "mosquitto.conf"
    port = free_port()
    config.write_text(broker_config.plain("127.0.0.1", port))
    broker = Mosquitto(Address("127.0.0.1", port), config)
    broker.start()
    intake = Intake(broker.address, "group", Login(), Clock())
    intake.start()
    wait_until(lambda: intake.is_connected, "the worker is connected")
    sender = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    sender.connect("127.0.0.1", port)
    sender.loop_start()
    try:
        more = RECEIVE_MAXIMUM + 300
        sent = [sender.publish(topics.of("d1", topics.TELEMETRY), str(n), qos=1) for n in range(more)]
        sent[-1].wait_for_publish(20)
        got: list[Message] = []
        wait_until(
            lambda: got.extend(intake.take(10_000, timeout_s=0.1)) or len(got) >= RECEIVE_MAXIMUM,
            "it is full",
        )
        assert not intake.take(10_000, timeout_s=0.3)
        assert len(got) == RECEIVE_MAXIMUM
        intake.confirm(got)
        wait_until(
            lambda: got.extend(intake.take(10_000, timeout_s=0.1)) or len(got) >= more, "the rest has come"
        )
        assert sorted(int(message.payload) for message in got) == list(range(more))
    finally:
        sender.loop_stop()
        intake.stop()
        broker.stop()
