"""The fleet of deploy/compose, as docs/deploy.md has an operator start it: the same commands, files and secrets, as plain
processes, with a real mosquitto and a real PostgreSQL that asks for its password.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import composed
import pytest
import readme
from composed import ROOT, Composed
from fleet_support import FakeDevice, free_port, wait_until

from fleet import api
from fleet.client.config import find
from fleet.client.rest import Client

pytestmark = [pytest.mark.broker, pytest.mark.postgres, pytest.mark.slow]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def typed(section: str) -> list[str]:
    """The lines of the page's first block below this heading."""
    (found,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    body = re.search(r"^```\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)
    assert body is not None
    return [
        readme._COMMENT.sub("", line) for line in re.sub(r"\\\n\s*", "", body[1]).splitlines() if line.strip()
    ]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, for PostgreSQL's socket, and open to the user that it runs as."""
    made = Path("/tmp") / f"edgekit-compose-{os.getpid()}"
    made.mkdir(mode=0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[Composed]:
    made = Composed(folder / "compose")
    made.variables.update(composed.local_variables())
    try:
        for line in typed("With containers"):
            follow(made, line)
        yield made
    finally:
        made.stop()


def follow(made: Composed, line: str) -> None:
    """What the line does; `docker compose` is what this machine does in its place."""
    if line == "cd deploy/compose" or line == "docker compose build":
        return  # the folder is a copy; the image is a container file, which test_files.py reads
    if line.startswith("${EDITOR:-vi}"):
        made.read_env()
        made.variables.update(composed.local_variables())
        return
    if run := re.fullmatch(r"docker compose run --rm (\S+)", line):
        start_postgres(made)
        assert "/srv/" not in (said := made.run(run[1])), said
        give_to_mosquitto(made)
        return
    if line == "docker compose up --detach":
        for name in ("mosquitto", "fleet"):
            made.up(name)
        wait_until(lambda: "ready" in made.log("fleet"), made.log("fleet"), timeout_s=60)
        return
    done = subprocess.run(
        ["/bin/sh", "-ec", line], cwd=made.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def start_postgres(made: Composed) -> None:
    """As the image's entry point does with its variables; once."""
    if "postgres" in made.running:
        return
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not tools:
        pytest.skip("no PostgreSQL server is installed")
    given, state = made.environment("postgres"), made.folder / "state" / "postgres"
    password = made.folder.parent / "pg.password"
    shutil.copyfile(given["POSTGRES_PASSWORD_FILE"], password)
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # initdb refuses to run as root
        account = pwd.getpwnam("nobody")
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for place in (made.folder, made.folder / "state"):
            place.chmod(0o711)
        for place in (state, password):
            os.chown(place, account.pw_uid, account.pw_gid)
    port = free_port()
    data = given["PGDATA"]
    init = [tools[-1] / "initdb", "-D", data, "-U", given["POSTGRES_USER"], f"--pwfile={password}", "-A", "scram-sha-256",
            "--no-sync"]  # fmt: skip
    subprocess.run(init, check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
    options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(state), "-p", str(port)]
    made.running["postgres"] = subprocess.Popen(
        [tools[-1] / "postgres", "-D", data, *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user,
    )  # type: ignore[call-overload]  # fmt: skip
    secret = password.read_text().strip()
    ask = [
        tools[-1] / "psql",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-U",
        given["POSTGRES_USER"],
        "-d",
        "postgres",
    ]

    def create() -> bool:
        words = [*ask, "-c", f"CREATE DATABASE {given['POSTGRES_DB']}"]
        done = subprocess.run(words, env={"PGPASSWORD": secret}, capture_output=True, check=False, cwd="/")
        return done.returncode == 0

    wait_until(create, "PostgreSQL answers")
    # By its own name, since the file of the password names it; the address is this machine's.
    made.variables["EDGEKIT_DATABASE"] = (
        f"postgresql+psycopg://{given['POSTGRES_USER']}@postgres/{given['POSTGRES_DB']}?hostaddr=127.0.0.1&port={port}"
    )


def give_to_mosquitto(made: Composed) -> None:
    """As root mosquitto becomes a user of its own; in a container it is who owns the files."""
    broker = made.folder / "state" / "broker"
    if os.geteuid() == 0 and (broker / "mosquitto").exists():
        broker.chmod(0o711)
        subprocess.run(["chown", "-R", "mosquitto:", broker / "mosquitto"], check=True)


def client(fleet: Composed) -> Client:
    return Client(find(str(fleet.folder / "state" / "fleet" / "home")))


def test_the_fleet_is_up_with_what_the_page_has_an_operator_type(fleet: Composed) -> None:
    assert fleet.is_healthy("fleet")
    status = client(fleet).status()
    assert status.is_connected
    assert "postgresql" in fleet.log("fleet")
    host = fleet.variables["EDGEKIT_HOST"]
    file = client(fleet).enroll(api.NewDevice("first", ("digits",), {}))
    assert file.enrol_url.startswith(f"https://{host}:")
    assert (file.broker.host, file.broker.tls) == (host, True)
    device = FakeDevice(file)
    device.enrol()
    device.connect()
    wait_until(lambda: device.acked, "the fleet has stored what it reported")
    device.close()


def is_let_in(device: FakeDevice) -> bool:
    """Whether the broker answers a new connection of it, MQTT 5, in a name that ends no session."""
    hello = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x05other"
    context = device.tls()
    assert isinstance(context, ssl.SSLContext)
    broker = device.file.broker
    with socket.create_connection((broker.host, broker.port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=broker.host) as wrapped:
                wrapped.sendall(hello)
                return wrapped.recv(1) == b"\x20"
        except (ssl.SSLError, ConnectionError):
            return False


def is_connected(device: FakeDevice) -> bool:
    assert device._client is not None
    return device._client.is_connected()


def test_a_revoked_device_is_let_go_by_the_broker_that_runs_apart(fleet: Composed) -> None:
    device = FakeDevice(client(fleet).enroll(api.NewDevice("stolen", ("digits",), {})))
    device.enrol()
    device.connect()
    wait_until(lambda: device.acked, "it is connected")
    assert is_let_in(device)
    assert client(fleet).revoke("stolen", "").is_changed
    wait_until(lambda: not is_let_in(device), "it is out, and stays out", timeout_s=30)
    wait_until(lambda: not is_connected(device), "the connection that it had is ended", timeout_s=30)
    others = FakeDevice(client(fleet).enroll(api.NewDevice("honest", ("digits",), {})))
    others.enrol()
    others.connect()
    wait_until(lambda: others.acked, "others come in", timeout_s=30)
    others.close()
    device.close()


def test_what_the_operator_made_is_nobody_elses(fleet: Composed) -> None:
    for place in ("state", "secrets"):
        for path in (fleet.folder / place).rglob("*"):
            if path.is_file() and re.search(
                r"\.key$|passphrase|password|pgpass|client\.toml|fleet\.toml", path.name
            ):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    secrets = [path.read_text().strip().split(":")[-1] for path in (fleet.folder / "secrets").iterdir()]
    told = "".join(fleet.log(name) for name in ("fleet", "mosquitto"))
    told += (fleet.folder / "state" / "fleet" / "home" / "fleet.toml").read_text()
    for process in fleet.running.values():
        told += Path(f"/proc/{process.pid}/cmdline").read_text()
    assert len(secrets) == 3
    for secret in secrets:
        assert len(secret) > 20
        assert secret not in told


@pytest.mark.proof
def test_the_fleet_stops_when_it_is_told_and_starts_again(fleet: Composed) -> None:
    for name in ("fleet", "mosquitto"):
        process = fleet.running.pop(name)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert not [line for line in fleet.log("fleet").splitlines() if "Traceback" in line]
    for name in ("mosquitto", "fleet"):
        fleet.up(name)
    wait_until(lambda: "ready" in fleet.log("fleet"), "it is up again", timeout_s=60)
    wait_until(lambda: client(fleet).status().is_connected, "it is connected")
