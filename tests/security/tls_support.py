"""A fleet on TLS as an operator would run it: `fleet init`, a passphrase, mosquitto with mutual TLS."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fleet_support import FakeDevice, Service, free_port

from fleet import api


@dataclass
class TlsFleet:
    """A running service over TLS with its mosquitto."""

    service: Service
    websocket_port: int

    def device(self, name: str, *deployments: str, **more: str) -> FakeDevice:
        file = self.service.client().enroll(api.NewDevice(name, deployments or ("digits",), {"site": "lab"}))
        return FakeDevice(file, **more)  # type: ignore[arg-type]

    def kill_broker(self) -> None:
        """SIGKILL mosquitto, which its keeper started; the service starts another."""
        assert self.service.process is not None
        [keeper] = _children(self.service.process.pid)
        [broker] = _children(keeper)
        os.kill(broker, signal.SIGKILL)

    def joined(self, name: str) -> FakeDevice:
        made = self.device(name)
        made.enrol()
        return made


def _children(pid: int) -> list[int]:
    """Of whichever thread: the first broker is started by another than those after it."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def edgekit(*words: str | Path, passphrase: Path | None = None) -> "subprocess.CompletedProcess[str]":
    more = ["--ca-passphrase-file", str(passphrase)] if passphrase else []
    command = [sys.executable, "-m", "edgekit", "fleet", *map(str, words), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def secret(path: Path, text: str = "a long passphrase") -> Path:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


# The command, with certificates whose renewal is due as soon as a device has them: they begin ten minutes before they are
# made, and end so long after it. Nothing else is changed.
SHORT_LIVED = """
from edgekit.cli import main
from fleet.server import ca
ca.DEVICE_DAYS = {minutes} / 1440
main()
"""


def make_fleet(folder: Path, *program: str) -> TlsFleet:
    """A fleet's home, made and started."""
    service = Service(folder, broker="mosquitto", program=program or ("-m", "edgekit"))
    passphrase = secret(folder / "passphrase")
    websocket_port = free_port()
    made = edgekit(
        "init",
        service.state,
        "--public-url",
        f"https://localhost:{service.http_port}",
        "--mqtt-public",
        f"mqtts://localhost:{service.mqtt_port}",
        "--mqtt-websockets",
        f"wss://localhost:{websocket_port}/mqtt",
        "--inside-repository",
        passphrase=passphrase,
    )
    assert made.returncode == 0, made.stderr
    service.more = ("--ca-passphrase-file", str(passphrase))
    service.start()
    return TlsFleet(service, websocket_port)
