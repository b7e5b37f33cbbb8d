"""The MQTT broker that `fleet up` brings along.

Always true
 1. A broker that does not know who a client is listens on loopback only (`places` sees to it).
 2. It ends with the service, even if the service is killed: both children watch a pipe to it. mosquitto ends with its
    keeper besides, whoever kills that.
"""

import logging
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from edgekit.distribution import extra
from edgekit.errors import ConflictError, FleetError
from fleet.server.broker_config import PACKET_BYTES
from fleet.server.places import Address

log = logging.getLogger(__name__)

START_S = 10.0


class Broker(Protocol):
    """A broker of ours; `is_running` turns False if it died."""

    address: Address

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def reload(self) -> None: ...
    @property
    def is_running(self) -> bool: ...


def check_free(address: Address, flag: str) -> None:
    """Raises: ConflictError if something listens there already."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConflictError(
                f"{flag} {address}: the port cannot be used ({error.strerror}); stop what uses it, or choose another"
            ) from error


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C goes to the whole terminal group; a child started in here leaves it to its parent to stop it."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


class EmbeddedBroker:
    """iotcore 0.4: rumqttd in a child process. It knows no TLS that it enforces and no rules per topic."""

    def __init__(self, address: Address, folder: Path) -> None:
        try:
            from iotcore import Broker as Child
        except ModuleNotFoundError as error:
            raise FleetError(
                f"the embedded broker is not installed; run: {extra('fleet')}, "
                "or use --broker mosquitto or --broker mqtt://HOST:PORT"
            ) from error
        self.address = address
        config = folder / "broker.toml"
        config.write_text(_RUMQTTD.format(listen=address, payload=PACKET_BYTES), encoding="utf-8")
        # A separate port per protocol version: only MQTT 5 is opened.
        self._child = Child(config_path=str(config))

    def start(self) -> None:
        check_free(self.address, "--mqtt")
        try:
            with _interrupts_wait():
                self._child.start(timeout=START_S)
        except (OSError, RuntimeError) as error:
            self._child.stop()
            raise FleetError(f"the embedded broker did not start on {self.address}: {error}") from error

    def stop(self) -> None:
        self._child.stop()

    def reload(self) -> None:
        """It has nothing to read anew."""

    @property
    def is_running(self) -> bool:
        return bool(self._child.is_running)


class Mosquitto:
    """Debian's mosquitto as a child, with a configuration that is written already (`broker_config`)."""

    def __init__(self, address: Address, config: Path, *, has_websockets: bool = False) -> None:
        found = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if found is None:
            raise FleetError(
                "mosquitto is not installed; run: apt-get install mosquitto, or use --broker embedded"
            )
        self.address = address
        self._program = found
        self._config = config
        # mosquitto 2.0.11 dies of a SIGHUP now and then, always with clients on WebSockets.
        self.must_restart = has_websockets
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._child is not None:
            self._wait_for_port()
        check_free(self.address, "--mqtt")
        command = [sys.executable, "-m", "fleet.server.keeper", self._program, "-c", str(self._config)]
        with _interrupts_wait():
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.is_running:
            if _answers(self.address):
                return
            time.sleep(0.05)
        self.stop()
        raise FleetError(
            f"mosquitto did not start on {self.address}; see its message above, or run it by hand"
        )

    def _wait_for_port(self) -> None:
        """A mosquitto whose keeper was killed may still be on its way out."""
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and _answers(self.address):
            time.sleep(0.05)

    def stop(self) -> None:
        if self._child is None:
            return
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            # The keeper kills what does not stop within 5 s.
            self._child.wait(8)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(5)

    def reload(self) -> None:
        """Certificates and revocation list are read anew; connections stay."""
        if self._child is not None and self.is_running:
            self._child.send_signal(signal.SIGHUP)

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None


def _answers(address: Address) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    try:
        with socket.create_connection((host, address.port), timeout=0.2):
            return True
    except OSError:
        return False


_RUMQTTD = """\
# Written by 'edgekit fleet up' at each start.
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "edgekit"
listen = "{listen}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {payload}
max_inflight_count = 100
dynamic_filters = true
"""


class KeptUp:
    """Starts a broker of ours again if it died; the link reconnects by itself, and orders are published again."""

    def __init__(self, broker: Broker | None) -> None:
        self._broker = broker
        self._not_before = 0.0

    def __call__(self) -> None:
        if self._broker is None or self._broker.is_running or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + 5
        log.warning("the broker on %s died; starting it again", self._broker.address)
        try:
            self._broker.start()
        except FleetError as error:
            log.error("%s", error)  # noqa: TRY400  # the message says it all; it is tried again in 5 s
