"""The fleet's side of an agent, real but small: a broker, an HTTP server that enrols and serves artifacts, two keys.

`Fleet` can be told to lie: alter artifacts, sign with a wrong key, keep silent instead of acknowledging.
"""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.trust import dsse
from edgekit.trust.target import Target
from edgekit.wire import messages, topics
from edgekit.wire.enrolment import BrokerAddress, EnrolAnswer, EnrolmentFile, EnrolRequest
from edgekit.wire.messages import Ack, Order, OrderedBundle, OrderOptions, Report, Reported, Status

CREDENTIAL = "a-secret-credential"
TOKEN = "a-one-time-token"


class Fleet:
    """Everything an agent talks to, for one device."""

    def __init__(
        self, broker: Any, device: str = "board-1", deployments: tuple[str, ...] = ("digits",)
    ) -> None:
        self.broker = broker
        self.device = device
        self.deployments = deployments
        self.order_key = Ed25519PrivateKey.generate()
        self.publisher_key = Ed25519PrivateKey.generate()
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.enrolled: list[EnrolRequest] = []
        self.reported: list[Reported] = []
        self.reports: list[Report] = []
        self.statuses: list[Status] = []
        self.counter = 100
        self.acknowledges = True
        self.chunk_delay_s = 0.0
        self.cut_after: int | None = None
        # Answers to the next requests for artifacts, instead of the true ones: a status and a body each.
        self.lies: list[tuple[int, bytes]] = []
        self.http = self._serve()
        self._last_order: bytes | None = None
        self._client = self._connect()

    # -- keys and files ------------------------------------------------------------------------------------------

    def enrolment(self, folder: Path, **changed: Any) -> Path:
        address = f"127.0.0.1:{self.http.server_port}"
        file = EnrolmentFile(
            format=1, fleet="lab", device=self.device, token=TOKEN, enrol_url=f"http://{address}/enrol",
            artifact_url=f"http://{address}/artifacts", allowed_hosts=("127.0.0.1",),
            broker=BrokerAddress("127.0.0.1", self.broker.port),
            order_keys={"orders": public(self.order_key)}, publisher_keys={"publisher": public(self.publisher_key)},
            deployments=self.deployments, labels={"site": "lab"},
        )  # fmt: skip
        path = folder / "enrolment.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(file, **changed)))
        return path

    def publish(
        self, built: Any, *, key: Ed25519PrivateKey | None = None, signed: bool = True
    ) -> OrderedBundle:
        """Put a bundle into the artifact store with the publisher's word beside it."""
        m = built.manifest
        target = Target(m.name, m.version, m.profile, built.length, built.sha256)
        self.artifacts[built.sha256] = built.path.read_bytes()
        if signed:
            envelope = sign(
                msgspec.json.encode(target), dsse.TARGET_TYPE, "publisher", key or self.publisher_key
            )
            self.artifacts[f"{built.sha256}.dsse"] = envelope
        return OrderedBundle(built.target, built.sha256, built.length)

    def order(
        self,
        bundle: OrderedBundle | None,
        *,
        deployments: dict[str, OrderedBundle] | None = None,
        key: Ed25519PrivateKey | None = None,
        options: OrderOptions | None = None,
        **changed: Any,
    ) -> int:
        """Sign and publish an order; its counter."""
        self.counter += 1
        wanted = deployments if deployments is not None else ({self.deployments[0]: bundle} if bundle else {})
        now = datetime.now(UTC)
        order = Order(
            fleet="lab", device=self.device, enrolment=7, deployments=wanted, counter=self.counter, issued=now,
            expires=now + timedelta(days=30), options=options or OrderOptions(probation_s=0.5),
        )  # fmt: skip
        order = msgspec.structs.replace(order, **changed)
        self._last_order = sign(messages.encode(order), dsse.ORDER_TYPE, "orders", key or self.order_key)
        self.send_order()
        return order.counter

    def send_order(self) -> None:
        assert self._last_order is not None
        self._client.publish(topics.of(self.device, topics.DESIRED), self._last_order, qos=1, retain=True)

    # -- what the agent said -------------------------------------------------------------------------------------

    @property
    def now(self) -> Reported | None:
        return self.reported[-1] if self.reported else None

    def deployment(self, name: str = "digits") -> Any:
        return self.now.deployments.get(name) if self.now is not None else None

    def runs(self, built: Any, name: str = "digits") -> bool:
        """Whether the device says that it has loaded and committed this bundle."""
        said = self.deployment(name)
        return said is not None and (said.digest, said.committed) == (built.sha256, built.sha256)

    def states(self) -> list[str]:
        """The states that were reported of the first deployment, repeats left out."""
        seen: list[str] = []
        for reported in self.reported:
            state = reported.deployments[self.deployments[0]].state.value
            if not seen or seen[-1] != state:
                seen.append(state)
        return seen

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.http.shutdown()
        self.http.server_close()

    # -- MQTT ----------------------------------------------------------------------------------------------------

    def _connect(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"fleet-{time.time_ns()}", protocol=mqtt.MQTTv5
        )
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.connect_async("127.0.0.1", self.broker.port, keepalive=30)
        client.loop_start()
        return client

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        leaves = (topics.REPORTED, topics.STATUS, topics.TELEMETRY)
        client.subscribe([(topics.of(self.device, leaf), 1) for leaf in leaves])
        if self._last_order is not None:
            self.send_order()

    def _on_message(self, client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        parsed = topics.parse(message.topic)
        assert parsed is not None
        if parsed[1] == topics.REPORTED:
            self.reported.append(messages.decode(message.payload, Reported))
        elif parsed[1] == topics.STATUS:
            self.statuses.append(messages.decode(message.payload, Status))
        elif parsed[1] == topics.TELEMETRY:
            report = messages.decode(message.payload, Report)
            self.reports.append(report)
            if self.acknowledges:
                ack = messages.encode(Ack(report.boot, (report.seq,)))
                client.publish(topics.of(self.device, topics.ACK), ack, qos=0)

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def _serve(self) -> ThreadingHTTPServer:
        handler = type("Handler", (FleetHandler,), {"fleet": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


class FleetHandler(BaseHTTPRequestHandler):
    """Enrols, and serves artifacts as its `fleet` says."""

    fleet: "Fleet"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])), type=EnrolRequest)
        if request.token != TOKEN:
            self.answer(403, b'{"error":{"code":"auth","message":"the token is not valid"}}')
            return
        self.fleet.enrolled.append(request)
        self.answer(200, msgspec.json.encode(EnrolAnswer(self.fleet.device, 7, CREDENTIAL)))

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.fleet.requests.append((name, self.headers.get("Range")))
        if self.fleet.lies:
            self.answer(*self.fleet.lies.pop(0))
        elif self.headers.get("Authorization") != f"Bearer {CREDENTIAL}":
            self.answer(401, b"")
        elif name not in self.fleet.artifacts:
            self.answer(404, b"")
        else:
            self.stream(self.fleet.artifacts[name], self.headers.get("Range"))

    def stream(self, data: bytes, wanted: str | None) -> None:
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        sent = 0
        for position in range(start, len(data), 1024):
            if self.fleet.cut_after is not None and sent >= self.fleet.cut_after and len(data) > 2048:
                self.fleet.cut_after = None
                self.close_connection = True
                return
            self.wfile.write(data[position : position + 1024])
            sent += 1024
            if self.fleet.chunk_delay_s and len(data) > 2048:
                time.sleep(self.fleet.chunk_delay_s)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def sign(payload: bytes, payload_type: str, keyid: str, key: Ed25519PrivateKey) -> bytes:
    signature = base64.b64encode(key.sign(dsse.pae(payload_type, payload))).decode()
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": keyid, "sig": signature}],
        }
    ).encode()


class AgentProcess:
    """`edgekit agent run` as a process, with everything it starts."""

    def __init__(self, state: Path, port: int, *words: str) -> None:
        self.state = state
        self.port = port
        self.log_path = state.parent / f"{state.name}.log"
        self._words = ["-m", "edgekit", "agent", "run", "--state", str(state),
                       "--http", f"127.0.0.1:{port}", "--window", "1", *words]  # fmt: skip
        self.environment: dict[str, str] = {}
        self.python: str | Path = sys.executable
        self.process: subprocess.Popen[bytes]

    def words(self, *words: str) -> None:
        """More words of the command, from the next start on."""
        self._words += words

    def start(self) -> "AgentProcess":
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, *self._words],
                stderr=log,
                stdout=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def children(self, module: str = "device_agent.worker") -> list[int]:
        """Its processes that run `module`: by default the workers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    command = (entry / "cmdline").read_bytes()
                    if int(fields[1]) == self.process.pid and module.encode() in command:
                        found.append(int(entry.name))
        return found

    def kill_tree(self) -> None:
        """As a power cut would, as far as processes go."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill_tree()
                raise
        return self.process.returncode


_DEVICES = iter(range(1, 1_000_000))


@pytest.fixture
def make_fleet(broker: Any) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(**wanted: Any) -> Fleet:
        fleet = Fleet(wanted.pop("broker", broker), device=f"board-{next(_DEVICES)}", **wanted)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    return make_fleet()


@pytest.fixture
def make_agent(tmp_path: Path, tools: Any) -> Iterator[Callable[..., AgentProcess]]:
    made: list[AgentProcess] = []

    def make(
        fleet: Fleet, *words: str, start: bool = True, profile: str | None = "x86-64-v3"
    ) -> AgentProcess:
        chosen = ["--profile", profile] if profile else []
        state = tmp_path / f"state-{len(made)}"
        agent = AgentProcess(
            state, tools.free_port(), "--enrolment", str(fleet.enrolment(tmp_path)), *chosen, *words
        )
        made.append(agent)
        return agent.start() if start else agent

    yield make
    for agent in made:
        if hasattr(agent, "process"):
            agent.kill_tree()


@pytest.fixture
def settled(fleet: Fleet, make_agent: Callable[..., AgentProcess], first: Any, tools: Any) -> AgentProcess:
    """An agent that has committed the first release."""
    agent = make_agent(fleet)
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the first release is committed")
    return agent
