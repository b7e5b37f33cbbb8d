"""Two real services on one database, a broker of their own beside them, and scripted devices: one controller, always."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
import psycopg
import pytest
from fleet_support import FakeDevice, Service, free_port, make_bundle, wait_until
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.wire import topics
from fleet import api
from fleet.client import publishing

GATES = ("error_rate < 1% min 100 requests", "latency_p95 <= 10ms min 100 requests")


class Pair:
    """The services, the first of which is the controller, and what both of them use."""

    def __init__(self, folder: Path, broker: str, database: str) -> None:
        self.folder = folder
        more = ("--database", database)
        self.services = [Service(folder / name, broker, more) for name in ("one", "two")]
        for service in self.services:
            service.folder.mkdir()
        self.devices: list[FakeDevice] = []

    @property
    def first(self) -> Service:
        return self.services[0]

    @property
    def second(self) -> Service:
        return self.services[1]

    def start(self, *versions: str, devices: int = 3) -> None:
        """The first with its devices and releases, then the second from a copy of the first's home."""
        self.first.start()
        client = self.first.client()
        for version in versions:
            path = make_bundle(self.folder / "bundles", version)
            [checked] = publishing.check(client, [path])
            publishing.publish(client, checked, self.first.state / "publisher", lambda _: None)
        files = [client.enroll(api.NewDevice(f"d{n}", ("digits",), {"site": "lab"})) for n in range(devices)]
        self.devices = [FakeDevice(file) for file in files]
        for device in self.devices:
            device.enrol()
        shutil.copytree(
            self.first.state,
            self.second.state,
            ignore=shutil.ignore_patterns("*.lock", "fleet.db*", ".*.part"),
        )
        self.second.start()
        for device in self.devices:
            # Artifacts are behind one address where there are two services; here the second serves them.
            url = device.file.artifact_url.replace(str(self.first.http_port), str(self.second.http_port))
            device.file = msgspec.structs.replace(device.file, artifact_url=url)
            device.connect()
        wait_until(lambda: self.online() == devices, "the devices are online")

    def online(self) -> int:
        return self.second.client().status().online

    def leads(self, service: Service) -> bool:
        return service.client().status().is_controller

    def close(self) -> None:
        for device in self.devices:
            device.close()
        for service in self.services:
            if service.process is not None:
                service.process.kill()
                service.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A broker that outlives both services."""
    port = free_port()
    code = "import sys; from iotcore import Broker; Broker(config_path=sys.argv[1]).start(); sys.stdin.read()"
    config = tmp_path / "broker.toml"
    config.write_text(
        f"id = 0\n[router]\nid = 0\nmax_connections = 50\nmax_outgoing_packet_count = 200\nmax_segment_size = 104857600\n"
        f'max_segment_count = 10\n[v5.1]\nname = "b"\nlisten = "127.0.0.1:{port}"\n'
        "next_connection_delay_ms = 1\n[v5.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 300000\n"
        "max_inflight_count = 100\ndynamic_filters = true\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(config)], stdin=subprocess.PIPE)
    yield f"mqtt://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.proof])]
)
def pair(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> Iterator[Pair]:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    if request.param == "postgresql":
        database = request.getfixturevalue("empty_postgresql")
    made = Pair(tmp_path, broker, database)
    with ExitStack() as stack:
        stack.callback(made.close)
        yield made


def test_a_follower_takes_over_when_the_controller_is_killed_and_nothing_is_repeated_or_lost(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    pair.start("1.0.0")
    assert (pair.leads(pair.first), pair.leads(pair.second)) == (True, False)
    # The follower serves the API: it may start a rollout too.
    wanted = api.NewRollout(
        "digits@1.0.0", "site=lab", stages="1,100%", soak="2s", gates=GATES, deadline="10s"
    )
    started = pair.second.client().start(wanted).rollout
    assert started is not None
    client = pair.second.client()
    wait_until(lambda: client.rollout(started.id).counts.get("succeeded") == 1, "the canary arrived")
    assert pair.first.process is not None
    pair.first.process.kill()
    at = time.monotonic()
    wait_until(lambda: pair.leads(pair.second), "the follower leads")
    taken_s = time.monotonic() - at
    wait_until(lambda: client.rollout(started.id).status == "completed", "it completes", timeout_s=60)
    assert [len(device.orders) for device in pair.devices] == [1, 1, 1], "nobody was ordered twice"
    for device in pair.devices:
        device.sends_telemetry = False
    wait_until(
        lambda: all(d.acked >= set(range(d._seq - 3, d._seq + 1)) for d in pair.devices),
        "the newest are acknowledged",
    )
    record_property("taken_over_s", round(taken_s, 2))


@pytest.mark.proof
def test_the_one_that_comes_back_follows(pair: Pair) -> None:
    pair.start()
    assert pair.first.process is not None
    pair.first.process.kill()
    pair.first.process.wait()
    wait_until(lambda: pair.leads(pair.second), "the follower leads")
    pair.first.start()
    assert (pair.leads(pair.first), pair.leads(pair.second)) == (False, True)
    assert pair.second.stop() == 0
    wait_until(lambda: pair.leads(pair.first), "the first leads again")


@pytest.mark.proof
@pytest.mark.postgres
def test_a_controller_that_loses_its_session_leaves_the_broker_to_the_next(
    tmp_path: Path, broker: str, empty_postgresql: str
) -> None:
    """Both go by one name at the broker: two that listen would throw each other out for ever."""
    plain = empty_postgresql.replace("+psycopg", "")
    pair = Pair(tmp_path, broker, empty_postgresql)
    try:
        pair.start("1.0.0")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")

            def holders() -> int:
                found = connection.execute(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                ).fetchone()
                assert found is not None
                return int(found[0])

            wait_until(lambda: holders() == 1, "one of them has the lock")
            wait_until(lambda: pair.leads(pair.first) != pair.leads(pair.second), "and knows it")
        wait_until(lambda: pair.online() == 3, "the devices are heard again")
        leader = next(service for service in pair.services if pair.leads(service))
        client = leader.client()
        wanted = api.NewRollout(
            "digits@1.0.0", "site=lab", stages="100%", soak="1s", gates=GATES, deadline="10s"
        )
        started = client.start(wanted).rollout
        assert started is not None
        wait_until(lambda: client.rollout(started.id).status == "completed", "it completes", timeout_s=60)
    finally:
        pair.close()


def test_a_home_whose_orders_the_devices_would_refuse_is_refused(tmp_path: Path, broker: str) -> None:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    pair = Pair(tmp_path, broker, database)
    try:
        pair.first.start()
        shutil.copytree(
            pair.first.state,
            pair.second.state,
            ignore=shutil.ignore_patterns("*.lock", "fleet.db*", ".*.part"),
        )
        (pair.second.state / "keys" / "order.key").unlink()
        make = "import sys, pathlib; from fleet.publish import make_key; make_key(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", make, pair.second.state / "keys" / "order.key"], check=True)
        said, _ = pair.second.spawn().communicate(timeout=60)
        assert "its devices would refuse" in said
        assert pair.second.process is not None
        assert pair.second.process.returncode == 5
    finally:
        pair.close()


@pytest.mark.proof
def test_a_retained_poison_message_does_not_come_back_for_ever(tmp_path: Path, broker: str) -> None:
    pair = Pair(tmp_path, broker, f"sqlite:///{tmp_path / 'shared.db'}")
    try:
        pair.first.start()
        file = pair.first.client().enroll(api.NewDevice("d0", ("digits",), {"site": "lab"}))
        device = FakeDevice(file)
        pair.devices = [device]
        device.enrol()
        device.connect()
        wait_until(lambda: pair.first.client().status().online == 1, "the device is online")
        device.publish("reported", b'{"seq": 9223372036854775808}', retain=True)
        dropped = "unreadable reported"
        wait_until(lambda: dropped in pair.first.client().status().dropped, "it is counted")
        # A broker that does not say of a message just published that it is retained says so to who subscribes later.
        pair.first.stop()
        pair.first.start()
        wait_until(lambda: retained(broker, "d0") == b"", "it is gone from its topic")
        pair.first.stop()
        pair.first.start()
        wait_until(lambda: pair.first.client().status().is_connected, "the service hears its broker again")
        assert dropped not in pair.first.client().status().dropped
    finally:
        pair.close()


def retained(broker: str, device: str) -> bytes:
    """What the broker keeps on the device's `reported`; empty for nothing."""
    host, _, port = broker.removeprefix("mqtt://").partition(":")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    found: list[bytes] = []
    client.on_message = lambda _c, _u, message: found.append(bytes(message.payload))
    client.on_connect = lambda *_: client.subscribe(topics.of(device, topics.REPORTED))
    client.connect(host, int(port))
    client.loop_start()
    time.sleep(0.5)
    client.loop_stop()
    client.disconnect()
    return found[0] if found else b""
