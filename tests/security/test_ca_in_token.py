"""A fleet whose CA's key is in a PKCS#11 token (SoftHSM2): devices join, renew and are put out; without it nothing starts."""

import socket
import subprocess
from pathlib import Path

import pytest
from fleet_support import FakeDevice, Service
from softhsm import PIN, Tokens, needed
from tls_support import edgekit, secret

from fleet import api

pytestmark = [pytest.mark.broker, needed]


class Home:
    def __init__(self, folder: Path) -> None:
        self.tokens = Tokens(folder / "softhsm")
        self.tokens.add()
        self.pin = secret(folder / "pin", PIN)
        self.service = Service(folder, broker="mosquitto", more=("--ca-passphrase-file", str(self.pin)))

    def init(self, *more: str) -> "subprocess.CompletedProcess[str]":
        return edgekit(
            "init", self.service.state, "--public-url", f"https://localhost:{self.service.http_port}",
            "--mqtt-public", f"mqtts://localhost:{self.service.mqtt_port}", "--inside-repository",
            "--ca-key", self.tokens.uri(), *more,
        )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    made = Home(tmp_path)
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.tokens.config))
    monkeypatch.delenv("EDGEKIT_CA_PASSPHRASE", raising=False)
    return made


@pytest.mark.proof
def test_devices_join_renew_and_are_put_out_by_a_key_in_a_token(home, tmp_path):
    made = home.init("--ca-passphrase-file", str(home.pin))
    assert made.returncode == 0, made.stderr
    assert "its key by the token's own means" in made.stdout
    keys = home.service.state / "keys"
    assert not (keys / "ca.key").exists()
    home.service.start()
    try:
        client = home.service.client()
        device = FakeDevice(client.enroll(api.NewDevice("board-7", ("digits",), {})))
        device.enrol()
        device.connect()
        assert device.renew().status_code == 200
        before = (keys / "crl.pem").read_bytes()
        client.revoke("board-7", "stolen")
        assert (keys / "crl.pem").read_bytes() != before
        assert device.renew().status_code in (401, 403)
        device.close()
        out = tmp_path / "broker"
        asked = edgekit(
            "broker-config", "mosquitto", "--state", home.service.state, "--out", out, passphrase=home.pin
        )
        assert asked.returncode == 0, asked.stderr
        verify = ["openssl", "verify", "-CAfile", keys / "ca.pem", out / "server.pem", out / "service.pem"]
        subprocess.run(verify, check=True, capture_output=True)
    finally:
        home.service.stop()
    seen = [
        path for path in home.service.state.rglob("*") if path.is_file() and PIN.encode() in path.read_bytes()
    ]
    assert seen == []


@pytest.mark.proof
def test_without_its_token_a_fleet_does_not_begin_to_start(home, tmp_path):
    assert home.init("--ca-passphrase-file", str(home.pin)).returncode == 0
    secret(home.pin, "4712")
    refused = up(home)
    assert "refused the PIN" in refused
    assert "4712" not in refused
    (home.tokens.folder / "tokens").rename(home.tokens.folder / "away")
    (home.tokens.folder / "tokens").mkdir()
    assert "the PKCS#11 token with label 'fleet' is not there (tokens found: none)" in up(home)


def up(home: Home) -> str:
    """What `fleet up` says on its way out; it has neither listener nor broker then."""
    done = subprocess.run(
        [*home.service.command()],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, done.stderr
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr
    for port in (home.service.http_port, home.service.mqtt_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    return " ".join(done.stderr.split())
