"""`edgekit fleet up` as a process: starting, stopping, being killed, being started where it cannot work."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fleet_support import Service, wait_until

from edgekit.errors import FleetError
from fleet.client.config import Access
from fleet.client.rest import Client


def refused(service: Service, *more: str) -> tuple[int, str]:
    done = subprocess.run(service.command(*more), capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def children(pid: int) -> list[int]:
    """Of all its threads: whichever started them."""
    return [
        int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()
    ]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.proof), signal.SIGTERM])
def test_it_stops_cleanly_with_its_broker(running: Service, number: int) -> None:
    assert running.process is not None
    broker = children(running.process.pid)
    assert len(broker) == 1
    assert running.stop(number) == 0
    assert not any(map(is_alive, broker))
    with pytest.raises(FleetError, match="is 'edgekit fleet up' running"):
        running.client().status()


def test_its_secrets_are_for_their_owner_only(running: Service) -> None:
    for name in ("client.toml", "keys/order.key", "keys/secrets.key", "publisher/ring.json"):
        assert stat.S_IMODE((running.state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(running.state.stat().st_mode) == 0o700


@pytest.mark.proof
def test_a_restart_keeps_fleet_keys_and_token(running: Service) -> None:
    before, file = running.client().keys(), (running.state / "client.toml").read_text()
    running.stop()
    running.start()
    assert running.client().keys() == before
    assert (running.state / "client.toml").read_text() == file


@pytest.mark.parametrize(
    "after_s", [0.4, *(pytest.param(after_s, marks=pytest.mark.proof) for after_s in (0.15, 0.7, 1.0))]
)
def test_an_interrupt_in_the_middle_of_the_start_leaves_nothing_running(
    service: Service, after_s: float
) -> None:
    process = service.spawn()
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    process.wait(20)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", service.mqtt_port))
    service.start()
    assert service.client().status().is_connected


@pytest.mark.proof
def test_a_kill_leaves_no_broker_behind_and_the_state_usable(running: Service) -> None:
    assert running.process is not None
    [broker] = children(running.process.pid)
    running.stop(signal.SIGKILL)
    wait_until(lambda: not is_alive(broker), "the broker ends with its parent")
    running.start()
    assert running.client().status().devices == 0


@pytest.mark.parametrize("which", ["--http", "--mqtt"])
def test_a_port_in_use_is_said_and_nothing_is_announced(service: Service, which: str) -> None:
    with socket.create_server(("127.0.0.1", service.http_port if which == "--http" else service.mqtt_port)):
        code, said = refused(service)
    assert code == 5
    assert f"{which} 127.0.0.1:" in said
    assert "the port cannot be used" in said
    assert not (service.state / "client.toml").exists()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--http", "0.0.0.0:80"), 2, "only loopback is served"),
        (("--mqtt", "0.0.0.0:1883"), 2, "--broker mqtts://HOST:PORT"),
        (("--broker", "mqtt://broker.example:1883"), 2, "write mqtts://"),
        (("--public-url", "https://fleet.example:8443"), 2, "give --mqtt-public"),
        (("--public-url", "http://fleet.example:8080"), 2, "over TLS only"),
        (("--mqtt", "nonsense"), 2, "write HOST:PORT"),
        (("--broker", "http://x"), 2, "write embedded, mosquitto, or mqtts://"),
        (("--database", "nonsense://x"), 2, "use sqlite"),
        (("--database", "postgresql+psycopg://x@127.0.0.1:1/x"), 5, "cannot be used"),
    ],
)
def test_options_that_cannot_work_are_refused(
    service: Service, more: tuple[str, ...], code: int, said: str
) -> None:
    found, text = refused(service, *more)
    assert said in text
    assert found == code


def test_one_service_per_folder(running: Service) -> None:
    other = Service(running.folder)
    code, said = refused(other)
    assert code == 5
    assert "another fleet service uses this folder" in said


@pytest.mark.proof
def test_a_folder_that_is_a_file_and_a_spoilt_database_are_said(service: Service) -> None:
    service.state.write_text("")
    code, said = refused(service)
    assert (code, "cannot be used as a folder" in said) == (5, True)
    service.state.unlink()
    service.start()
    service.stop()
    for leftover in service.state.glob("fleet.db*"):
        leftover.unlink()
    (service.state / "fleet.db").write_bytes(b"x" * 8192)
    code, said = refused(service)
    assert (code, "restore it from a backup" in said) == (5, True)


def test_a_key_that_others_can_read_is_refused(running: Service) -> None:
    running.stop()
    (running.state / "keys" / "order.key").chmod(0o644)
    code, said = refused(running)
    assert (code, "chmod 600" in said) == (2, True)


def test_a_broker_that_is_away_is_waited_for(service: Service) -> None:
    """`--broker mqtt://…` with nothing there yet: the service runs, says so, and connects once there is one."""
    service.broker = f"mqtt://127.0.0.1:{service.mqtt_port}"
    service.start()
    assert not service.client().status().is_connected
    code = "import sys; from iotcore import Broker; Broker(config_path=sys.argv[1]).start(); sys.stdin.read()"
    config = service.folder / "broker.toml"
    config.write_text(
        f"id = 0\n[router]\nid = 0\nmax_connections = 10\nmax_outgoing_packet_count = 200\nmax_segment_size = 104857600\n"
        f'max_segment_count = 10\n[v5.1]\nname = "b"\nlisten = "127.0.0.1:{service.mqtt_port}"\n'
        "next_connection_delay_ms = 1\n[v5.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 300000\n"
        "max_inflight_count = 100\ndynamic_filters = true\n"
    )
    broker = subprocess.Popen([sys.executable, "-c", code, str(config)], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: service.client().status().is_connected, "it connects")
    finally:
        broker.kill()
        broker.wait()


@pytest.mark.broker
def test_debians_mosquitto_serves_as_well(service: Service) -> None:
    service.broker = "mosquitto"
    service.start()
    assert service.client().status().is_connected
    assert service.process is not None
    pid = service.process.pid
    [keeper] = children(pid)
    [broker] = children(keeper)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not is_alive(broker), "mosquitto ends with its keeper")
    wait_until(lambda: children(pid) not in ([], [keeper]), "another is started")
    [keeper] = children(pid)
    wait_until(lambda: children(keeper), "with its mosquitto")
    [broker] = children(keeper)
    wait_until(lambda: service.client().status().is_connected, "on the same port")
    service.stop(signal.SIGKILL)
    wait_until(lambda: not is_alive(keeper) and not is_alive(broker), "both end with the service")


def test_without_a_token_nothing_is_told(running: Service) -> None:
    url = f"http://127.0.0.1:{running.http_port}"
    answer = httpx.get(f"{url}/api/v1/devices", trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "auth"
    with pytest.raises(Exception, match="not one of this fleet"):
        Client(Access(url, "wrong")).status()
