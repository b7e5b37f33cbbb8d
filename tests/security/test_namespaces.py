"""A fleet, its broker and five boards, each on an address of its own, over wires that are slow, lose frames, break, and
lead past a man in the middle. `make chaos` runs it; `-s` is not needed to read what happened.
"""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_support import Asker, Operator, live, made, wait_until
from fleet_support import wait_until as wait_for
from tls_support import SHORT_LIVED, secret
from wires import Host, Wires, refusal, wires

from fleet.client.config import find

BOARDS = tuple(f"board-{number}" for number in range(1, 6))
API, MQTT, SERVING = 8443, 8883, 8500
# The second addresses of fleet and broker, by which the man in the middle reaches them.
BEHIND = {API: "10.77.0.101", MQTT: "10.77.0.102"}
_MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("EDGEKIT_CHAOS") != "1", reason="minutes: make chaos runs it"),
    pytest.mark.skipif(_MOSQUITTO is None, reason="mosquitto is not installed"),
]


UNPINNED = ssl.create_default_context()
UNPINNED.check_hostname = False
UNPINNED.verify_mode = ssl.CERT_NONE


def read_all(sock: ssl.SSLSocket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def ask_carelessly(address: str) -> bytes:
    """What a client gets from the API that takes every certificate."""
    with UNPINNED.wrap_socket(socket.create_connection((address, API), 5)) as sock:
        sock.sendall(b"GET /v1/crl.pem HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n\r\n")
        return read_all(sock)


class Middle:
    """Whoever comes gets TLS by a certificate of the middle's own; what they then say is kept, and passed on."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.came = 0
        self.refused: list[str] = []
        self.heard = b""
        authority = live.Authority("an impostor")
        self._context = authority.server_context(folder, hosts=("10.77.0.1", "10.77.0.2"))
        self._listeners = [host.within(lambda port=port: socket.create_server(("", port))) for port in BEHIND]
        for port, listener in zip(BEHIND, self._listeners, strict=True):
            threading.Thread(target=self._listen, args=(port, listener), daemon=True).start()

    def _listen(self, port: int, listener: socket.socket) -> None:
        self.host.enter()
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.came += 1
                with client:
                    client.settimeout(5)
                    self._meet(port, client)

    def _meet(self, port: int, client: socket.socket) -> None:
        try:
            inner = self._context.wrap_socket(client, server_side=True)
            # TLS 1.3: a client's refusal arrives only now.
            self.heard += inner.recv(4096)
        except OSError as error:
            self.refused.append(str(error))
            return
        with UNPINNED.wrap_socket(socket.create_connection((BEHIND[port], port), 5)) as beyond:
            beyond.sendall(self.heard)
            inner.sendall(read_all(beyond))

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


class Ground:
    """Everything that runs, and where."""

    def __init__(self, folder: Path, lines: Wires, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.tell = tell
        self.lines = lines
        self.fleet = lines.host("fleet", 1, f"{BEHIND[API]}/24")
        self.broker = lines.host("broker", 2, f"{BEHIND[MQTT]}/24")
        self.hosts = {name: lines.host(name, 10 + number) for number, name in enumerate(BOARDS, 1)}
        self.attacker = lines.host("attacker", 66)
        for owner, behind in ((self.fleet, BEHIND[API]), (self.broker, BEHIND[MQTT])):
            lines.teach(self.attacker, behind, owner)
            # What is meant for them and arrives at the attacker is taken there.
            words = ["ip", "-n", self.attacker.space, "address", "add", f"{owner.address}/32", "dev", "lo"]
            subprocess.run(words, check=True)
        lines.begin()
        self.home = folder / "fleet"
        self.url = f"https://{self.fleet.address}:{API}"
        self.operator = Operator(self.home, self.fleet.before)
        self.agents: dict[str, Any] = {}
        self.users: dict[str, Asker] = {}
        self.mosquitto: subprocess.Popen[bytes]
        self._service: subprocess.Popen[bytes] | None = None
        self._ended: list[Callable[[], object]] = []
        # The user that mosquitto becomes may not look into the test's own folder.
        self.rules = Path(tempfile.mkdtemp(prefix="edgekit-broker-"))
        self.rules.chmod(0o755)

    # -- the fleet's side ----------------------------------------------------------------------------------------

    def edgekit(self, *words: str | Path) -> None:
        command = [*self.fleet.before, sys.executable, "-m", "edgekit", "fleet", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr

    def open_fleet(self) -> None:
        """`init`, `broker-config`, a mosquitto by that on its own host, and `up`."""
        passphrase = ("--ca-passphrase-file", secret(self.folder / "passphrase"))
        place = f"mqtts://{self.broker.address}:{MQTT}"
        self.edgekit(
            "init", self.home, "--public-url", self.url, "--mqtt-public", place, "--inside-repository", *passphrase
        )  # fmt: skip
        out = self.rules / "files"
        self.edgekit("broker-config", "mosquitto", "--state", self.home, "--out", out, *passphrase)
        # The service's own key stays with the service.
        mine = [shutil.move(out / f"service.{kind}", self.folder) for kind in ("pem", "key")]
        subprocess.run(["chown", "-R", "mosquitto:", out], check=True)
        self.start_broker()
        short = [*self.fleet.before, sys.executable, "-c", SHORT_LIVED.format(minutes=4), "fleet", "up"]
        more = [
            "--state",
            self.home,
            "--tick",
            "0.2",
            "--broker",
            place,
            "--broker-ca",
            self.home / "keys/ca.pem",
        ]
        more += ["--broker-cert", mine[0], "--broker-key", mine[1], *passphrase]
        with (self.folder / "fleet.log").open("wb") as log:
            self._service = subprocess.Popen([*short, *map(str, more)], stdout=log, stderr=log)
        wait_for(lambda: "ready" in self.log("fleet"), "the fleet is ready", timeout_s=60)

    def start_broker(self) -> None:
        with (self.folder / "broker.log").open("ab") as log:
            words = [*self.broker.before, str(_MOSQUITTO), "-c", str(self.rules / "files/mosquitto.conf")]
            self.mosquitto = subprocess.Popen(words, stdout=log, stderr=log)

    def take_revocations(self) -> None:
        """As a timer on the broker's host would."""
        context = ssl.create_default_context(cadata=find(str(self.home)).ca)
        got = self.broker.within(lambda: httpx.get(f"{self.url}/v1/crl.pem", verify=context, trust_env=False))
        got.raise_for_status()
        (self.rules / "files/crl.pem").write_bytes(got.content)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    # -- the boards' side ----------------------------------------------------------------------------------------

    def start_boards(self) -> None:
        """One file for all of them, each with hardware of its own."""
        file = self.folder / "batch.json"
        self.operator.types(
            "enroll", "--count", "5", "--expires", "1d", "--label", "site=roof", "--deployment", "digits",
            "--out", file,
        )  # fmt: skip
        for name, host in self.hosts.items():
            place = self.folder / "hardware" / name / "sys/firmware/devicetree/base"
            place.mkdir(parents=True)
            (place / "serial-number").write_text(f"{name}\0")
            agent = live.AgentProcess(
                self.folder / name, SERVING, "--enrolment", str(file), "--profile", made.PROFILE
            )
            agent.environment["EDGEKIT_HARDWARE_ROOT"] = str(self.folder / "hardware" / name)
            agent.python, agent._words = host.before[0], [*host.before[1:], sys.executable, *agent._words]
            self.agents[name] = agent.start()
            self.users[name] = Asker(lambda: made.Client(SERVING), host.enter)

    def online(self) -> set[str]:
        return {name for name, view in self.operator.devices().items() if view["online"]}

    def versions(self) -> dict[str, str]:
        return {name: user.version for name, user in self.users.items()}

    def all_run(self, version: str) -> bool:
        return set(self.versions().values()) == {version}

    def all_keep(self, version: str) -> bool:
        """As the fleet sees it."""
        slots = [view["deployments"]["digits"] for view in self.operator.devices().values()]
        return all((slot["state"], slot["version"]) == ("idle", version) for slot in slots)

    def close(self) -> None:
        for user in self.users.values():
            user.end()
        for agent in self.agents.values():
            agent.kill_tree()
        for process in (self._service, getattr(self, "mosquitto", None)):
            if process is not None:
                process.terminate()
                process.wait(30)
        shutil.rmtree(self.rules)


@pytest.fixture
def ground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Ground]:
    if why := refusal():
        pytest.skip(why)
    began = time.monotonic()

    def tell(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")

    with wires() as lines:
        found = Ground(tmp_path, lines, tell)
        try:
            yield found
        finally:
            found.close()


def test_a_fleet_over_a_bad_network_and_past_a_man_in_the_middle(ground: Ground) -> None:
    tell, lines, operator, agents = ground.tell, ground.lines, ground.operator, ground.agents
    lines.delay_s, lines.loss = 0.02, 0.01
    tell("\nnetwork: 8 hosts, 20 ms ± 20 % each way, 1 % of all frames lost")
    ground.open_fleet()
    tell(f"fleet at {ground.url}; mosquitto on {ground.broker.address} by broker-config")

    ground.start_boards()
    wait_until(lambda: len(ground.online()) == 5, "all joined", 120)
    tell("five boards joined by one batch file, and are online over mutual TLS")
    wait_until(lambda: all("certificate renewed" in agents[name].log for name in BOARDS), "all renewed", 60)
    tell("five certificates, due at once, renewed")

    for number in (1, 2):
        operator.types("publish", made.build(ground.folder, version=f"{number}.0.0", seed=number).path)
    rollout = operator.rolls_out("digits@1.0.0", "site=roof", "--stages", "1,100%")
    operator.types("rollout", "watch", rollout, "--timeout", "120")
    wait_until(lambda: ground.all_run("1.0.0"), "all serve it")
    tell("digits@1.0.0 went out in two stages; all five serve it")

    lines.cut.add("board-5")
    rollout = operator.rolls_out("digits@2.0.0", "site=roof", "--stages", "100%")
    rest = set(BOARDS) - {"board-5"}
    wait_until(lambda: {ground.versions()[name] for name in rest} == {"2.0.0"}, "four follow", 60)
    assert ground.versions()["board-5"] == "1.0.0"
    tell("board-5 is cut off: four run digits@2.0.0, it serves 1.0.0 on")
    lines.cut.clear()
    operator.types("rollout", "watch", rollout, "--timeout", "120")
    wait_until(lambda: ground.all_run("2.0.0"), "all serve it")
    tell("the cut is mended: board-5 follows, the rollout is complete")

    operator.types("rollout", "rollback", rollout)
    wait_until(lambda: ground.all_run("1.0.0"), "all are back", 60)
    # Only then: a board that loses the link right after a change undoes it until the link is back.
    wait_until(lambda: ground.all_keep("1.0.0"), "they keep it", 60)
    tell("rolled back: all five serve 1.0.0")

    victim = agents["board-3"]
    ups = victim.log.count("link up")
    middle = Middle(ground.attacker, ground.folder)
    lines.diverted["board-3"] = ground.attacker
    wait_until(lambda: len(middle.refused) >= 2, "it meets the man in the middle", 90)
    wait_until(lambda: "certificate verify failed" in victim.log, "it says so")
    answers = ground.users["board-3"].answers
    wait_until(lambda: ground.users["board-3"].answers > answers + 3, "it serves on")
    assert middle.heard == b""
    tell(f"a man in the middle of board-3: met {middle.came} times, told nothing; '{middle.refused[0]}'")
    careless = ground.hosts["board-3"].within(lambda: ask_carelessly(ground.fleet.address))
    assert b"X509 CRL" in careless
    assert b"GET /v1/crl.pem" in middle.heard
    tell("a careless client on the same board is read by him: he would get what he wants")
    lines.diverted.clear()
    middle.close()
    wait_until(lambda: victim.log.count("link up") > ups, "it is back", 90)
    tell("he is gone: board-3 is online again")

    operator.types("device", "revoke", "board-2", "--reason", "stolen")
    ground.take_revocations()
    before = {name: agents[name].log.count("link up") for name in BOARDS}
    ground.mosquitto.send_signal(signal.SIGKILL)
    ground.mosquitto.wait(10)
    ground.start_broker()
    wait_until(
        lambda: all(agents[name].log.count("link up") > before[name] for name in set(BOARDS) - {"board-2"}),
        "four are back with their new certificates",
        90,
    )
    wait_until(lambda: "the broker ended the connection" in agents["board-2"].log, "board-2 is told", 60)
    wait_until(lambda: ground.online() == set(BOARDS) - {"board-2"}, "four are online", 60)
    tell("board-2 revoked, the broker killed and started with the new list: four are back, board-2 is not")

    for name, user in ground.users.items():
        assert user.failures == [], f"{name}: {user.failures[:3]}\n{agents[name].log[-2000:]}"
    total = sum(user.answers for user in ground.users.values())
    tell(f"{total} predictions asked for meanwhile, none failed; {lines.carried} frames, {lines.lost} lost")
