"""A mosquitto that the service does not start: reached by certificate or password, with its list brought by a script."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_support import FakeDevice, Service, free_port, wait_until
from tls_support import edgekit, secret

from fleet import api

pytestmark = [pytest.mark.broker, pytest.mark.slow]
SCRIPT = Path(__file__).parents[2] / "deploy" / "mosquitto" / "edgekit-crl"


class Apart:
    """A fleet's home whose broker is a mosquitto of its own, on the files that `broker-config` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passphrase = secret(folder / "passphrase")
        self.service = Service(folder, broker="external")
        self.files = folder / "broker"
        self.mosquitto: subprocess.Popen[bytes] | None = None
        urls = ("--public-url", f"https://localhost:{self.service.http_port}",
                "--mqtt-public", f"mqtts://localhost:{self.service.mqtt_port}")  # fmt: skip
        self.run("init", self.service.state, *urls, "--inside-repository")
        self.said = self.run("broker-config", "mosquitto", "--state", self.service.state, "--out", self.files)

    def run(self, *words: str | Path) -> str:
        done = edgekit(*words, passphrase=self.passphrase)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_mosquitto(self, more: str = "") -> None:
        """As whoever runs the tests, who owns the files: mosquitto would become a user of its own as root."""
        config = self.files / "mosquitto.conf"
        text = config.read_text().replace("user mosquitto", "user root")
        config.write_text(text + more)
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        assert program is not None
        self.mosquitto = subprocess.Popen([program, "-c", config])

    def start(self, broker: str, *more: str | Path) -> None:
        self.service.broker = broker
        self.service.more = ("--ca-passphrase-file", str(self.passphrase), *map(str, more))
        self.service.start()

    def joined(self, name: str) -> FakeDevice:
        device = FakeDevice(self.service.client().enroll(api.NewDevice(name, ("digits",), {})))
        device.enrol()
        return device

    def stop(self) -> None:
        if self.service.process is not None:
            self.service.stop()
        if self.mosquitto is not None:
            self.mosquitto.terminate()
            self.mosquitto.wait(10)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Callable[[], Apart]]:
    made: list[Apart] = []

    def make() -> Apart:
        made.append(Apart(tmp_path))
        return made[0]

    yield make
    for one in made:
        one.stop()


def gets_in(device: FakeDevice) -> bool:
    """Whether the broker answers a CONNECT of MQTT 5."""
    context = device.tls()
    assert isinstance(context, ssl.SSLContext)
    broker = device.file.broker
    hello = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x05other"
    with socket.create_connection((broker.host, broker.port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=broker.host) as wrapped:
                wrapped.sendall(hello)
                return wrapped.recv(1) == b"\x20"
        except (ssl.SSLError, ConnectionError):
            return False


def works(fleet: Apart, device: FakeDevice) -> None:
    device.connect()
    wait_until(lambda: device.acked, "the fleet has stored what it reported")
    assert fleet.service.client().status().is_connected


@pytest.mark.proof
def test_a_broker_apart_is_reached_by_certificate_and_its_list_is_brought_by_the_script(
    apart: Callable[[], Apart],
) -> None:
    fleet = apart()
    assert f"--broker mqtts://localhost:{fleet.service.mqtt_port} --broker-files {fleet.files}" in fleet.said
    fleet.start_mosquitto()
    login = ("--broker-ca", "ca.pem", "--broker-cert", "service.pem", "--broker-key", "service.key")
    words = [fleet.files / word if not word.startswith("--") else word for word in login]
    fleet.start(f"mqtts://localhost:{fleet.service.mqtt_port}", *words)
    honest, stolen = fleet.joined("honest"), fleet.joined("stolen")
    works(fleet, honest)
    assert gets_in(stolen)
    present = fleet.files / "crl.pem"
    assert bring(fleet) == (0, "")
    fleet.service.client().revoke("stolen", "")
    assert gets_in(stolen), "the broker has not heard of it"
    before = present.read_bytes()
    assert bring(fleet) == (0, "")
    assert present.read_bytes() != before
    subprocess.run(["kill", "-HUP", str(fleet.mosquitto.pid)], check=True)  # type: ignore[union-attr]  # it runs
    wait_until(lambda: not gets_in(stolen), "the stolen one is out")
    assert gets_in(honest)
    # A list that is not the fleet's, and one of before, stay out.
    served = fleet.service.state / "keys" / "crl.pem"
    newest = present.read_bytes()
    other = fleet.folder / "other"
    assert edgekit("init", other, "--inside-repository").returncode == 0
    for listed, says in (
        ((other / "keys" / "crl.pem").read_bytes(), "is not signed by"),
        (b"spoilt", "is not signed by"),
        (before, "older than the present one"),
    ):
        served.write_bytes(listed)
        code, told = bring(fleet)
        assert (code, says in told) == (1, True), told
        assert present.read_bytes() == newest
    assert not [path for path in fleet.files.iterdir() if path.name.startswith(".crl")]
    honest.close()


def bring(fleet: Apart) -> tuple[int, str]:
    """The script, but for the signal, which it sends to every mosquitto of its user: the test's are not alone."""
    programs = fleet.folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "pkill").write_text("#!/bin/sh\n")
    (programs / "pkill").chmod(0o755)
    environment = {
        "EDGEKIT_FLEET_URL": f"https://localhost:{fleet.service.http_port}",
        "PATH": f"{programs}:/usr/bin:/bin",
    }
    done = subprocess.run([SCRIPT, fleet.files], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.proof
def test_the_folder_of_a_broker_is_kept_fresh_by_the_service_and_by_hand(apart: Callable[[], Apart]) -> None:
    fleet = apart()
    fleet.start_mosquitto()
    again = ("broker-config", "mosquitto", "--state", fleet.service.state, "--out", fleet.files)
    assert "exists already" in edgekit(*again, passphrase=fleet.passphrase).stderr
    assert "nothing was due" in fleet.run(*again, "--refresh")
    (fleet.files / "server.pem").write_bytes((fleet.files / "service.pem").read_bytes())
    assert "server.pem, server.key changed" in fleet.run(*again, "--refresh")
    fleet.start(f"mqtts://localhost:{fleet.service.mqtt_port}", "--broker-files", fleet.files)
    device = fleet.joined("roof")
    before = (fleet.files / "crl.pem").read_bytes()
    fleet.service.client().revoke("roof", "")
    assert (fleet.files / "crl.pem").read_bytes() != before
    assert (fleet.files / "crl.pem").read_bytes() == (fleet.service.state / "keys" / "crl.pem").read_bytes()
    assert "user roof\ntopic deny #\n" in (fleet.files / "acl").read_text()
    by_hand = (fleet.files / "acl").read_text() + "# mine\n"
    (fleet.files / "acl").write_text(by_hand)
    fleet.joined("roof")
    assert (fleet.files / "acl").read_text() == by_hand
    assert "roof" not in (fleet.service.state / "keys" / "acl").read_text()
    device.close()


@pytest.mark.proof
def test_a_broker_apart_is_reached_by_a_password_that_stands_in_a_file(apart: Callable[[], Apart]) -> None:
    fleet = apart()
    port, passwords = free_port(), fleet.files / "passwords"
    tool = shutil.which("mosquitto_passwd")
    assert tool is not None
    subprocess.run([tool, "-b", "-c", passwords, "service", "the right one"], check=True)
    passwords.chmod(0o600)
    rules = (fleet.files / "acl").read_text().replace("user _fleet", "user service")
    (fleet.files / "acl").write_text(rules)
    fleet.start_mosquitto(
        f"\nlistener {port}\ncertfile {fleet.files}/server.pem\nkeyfile {fleet.files}/server.key\n"
        f"password_file {passwords}\n"
    )
    right, wrong = (
        secret(fleet.folder / "right", "the right one"),
        secret(fleet.folder / "wrong", "a wrong one"),
    )
    place = f"mqtts://service@localhost:{port}"
    ca = ("--broker-ca", fleet.files / "ca.pem")
    missing = edgekit(
        "up", "--state", fleet.service.state, "--broker", place, *map(str, ca), passphrase=fleet.passphrase
    )
    assert (missing.returncode, "its password?" in missing.stderr) == (2, True)
    spoken = edgekit(
        "up",
        "--state",
        fleet.service.state,
        "--broker",
        place.replace("@", ":x@"),
        passphrase=fleet.passphrase,
    )
    assert (spoken.returncode, "never in an address" in spoken.stderr) == (2, True)
    fleet.start(place, *ca, "--broker-password-file", wrong)
    assert not fleet.service.client().status().is_connected
    fleet.service.stop()
    fleet.start(place, *ca, "--broker-password-file", right)
    wait_until(lambda: fleet.service.client().status().is_connected, "it is connected")
    works(fleet, device := fleet.joined("board"))
    assert device.file.broker.port == fleet.service.mqtt_port
    device.close()
