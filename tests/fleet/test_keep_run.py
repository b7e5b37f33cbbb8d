"""A backup taken under load, restored elsewhere: devices and a rollout under way go on."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
from fleet_support import FakeDevice, Service, make_bundle, wait_until

from fleet import api
from fleet.client import publishing
from fleet.client.rest import Client

# What few windows can satisfy: a machine under load stores them late.
GATES = ("error_rate < 20% min 100 requests",)


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.proof])]
)
def databases(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Where the fleet is, and where it is restored to; nothing for the homes' own files."""
    if request.param == "sqlite":
        return ()
    first: str = request.getfixturevalue("empty_postgresql")
    with psycopg.connect(first.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS restored")
        connection.execute("CREATE DATABASE restored")
    return first, first.removesuffix("postgres") + "restored"


@pytest.fixture
def services(tmp_path: Path, databases: tuple[str, ...]) -> Iterator[tuple[Service, Service]]:
    """One, and the one that takes its place: in another folder, at the same addresses."""
    first = Service(tmp_path / "first", more=("--database", databases[0]) if databases else ())
    first.folder.mkdir()
    second = Service(tmp_path / "second", http_port=first.http_port, mqtt_port=first.mqtt_port)
    second.folder.mkdir()
    yield first, second
    for service in (first, second):
        if service.process is not None:
            service.process.kill()
            service.process.wait()


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "fleet", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def publish(client: Client, service: Service, version: str) -> None:
    [checked] = publishing.check(client, [make_bundle(service.folder / "bundles", version)])
    publishing.publish(client, checked, service.state / "publisher", lambda _: None)


@pytest.mark.proof
def test_a_backup_taken_under_load_goes_on_elsewhere(
    services: tuple[Service, Service], databases: tuple[str, ...], tmp_path: Path
) -> None:
    first, second = services
    first.start()
    client = first.client()
    publish(client, first, "1.0.0")
    files = [client.enroll(api.NewDevice(f"d{n}", ("digits",), {"site": "lab"})) for n in range(4)]
    devices = [FakeDevice(file, window_s=0.25) for file in files]
    for device in devices:
        device.enrol()
        device.connect()
    try:
        wait_until(lambda: client.status().online == 4, "the devices are online")
        wanted = api.NewRollout(
            "digits@1.0.0", "site=lab", stages="1,100%", soak="4s", gates=GATES, deadline="2m"
        )
        started = client.start(wanted).rollout
        assert started is not None
        wait_until(lambda: client.rollout(started.id).counts.get("succeeded") == 1, "the canary arrived")
        secret = tmp_path / "passphrase"
        secret.write_text("a passphrase")
        secret.chmod(0o600)
        sealed = ("--passphrase-file", str(secret))
        out = tmp_path / "backup.zip"
        where = ("--database", databases[0]) if databases else ()
        made = command(
            "backup", str(out), "--state", str(first.state), "--with-keys", *sealed, *where, "--json"
        )
        assert msgspec.json.decode(made)["tables"]["members"]["rows"] == 4

        # The fleet goes on: orders go out that the backup knows nothing of.
        wait_until(lambda: client.rollout(started.id).status == "completed", "it completes", timeout_s=60)
        wait_until(lambda: all(device.running for device in devices), "all run it")
        publish(client, first, "1.1.0")
        before = [device.orders[-1].counter for device in devices]
        assert first.process is not None
        first.process.kill()
        first.process.wait()

        to = ("--database", databases[1]) if databases else ()
        told = command("restore", str(out), "--state", str(second.state), *sealed, *to)
        assert "rollouts go on where they were: r1" in told
        second.start()
        again = second.client()
        assert again.rollout(started.id).status in ("running", "completed")
        wait_until(lambda: again.status().online == 4, "the devices are back", timeout_s=60)
        wait_until(
            lambda: again.rollout(started.id).status == "completed", "it completes once more", timeout_s=60
        )
        wait_until(
            lambda: all(
                device.running and device.running["digits"].target.startswith("digits/1.0.0")
                for device in devices
            ),
            "all run it again",
        )
        for device, counter in zip(devices, before, strict=True):
            counters = [order.counter for order in device.orders]
            assert counters == sorted(set(counters))
            assert counters[-1] > counter
            assert device.refused == ""
        newest = [device._seq for device in devices]
        wait_until(
            lambda: all(
                max(device.acked, default=0) > seq for device, seq in zip(devices, newest, strict=True)
            ),
            "what they report now is acknowledged",
        )
        # It can be worked with: what was published since, from the publisher's own folder, and a device that joins.
        assert [release.version for release in again.releases()] == ["1.0.0"]
        publish(again, first, "1.1.0")
        publish(again, first, "1.2.0")
        assert [release.version for release in again.releases()] == ["1.2.0", "1.1.0", "1.0.0"]
        enrolled = FakeDevice(again.enroll(api.NewDevice("d9", ("digits",), {"site": "lab"})))
        enrolled.enrol()
        assert enrolled.enrolment > 1000
        history = again._transport.call("GET", f"/rollouts/{started.id}/history", list[api.ArmPoint])
        assert {point.arm for point in history} >= {"canary"}
    finally:
        for device in devices:
            device.close()
