"""The fleet's side of an agent, real but small: a broker, an HTTP server that enrols and serves artifacts, its keys and CA.

`Fleet` can be told to lie: alter artifacts, sign with a wrong key, keep silent instead of acknowledging. With a `TlsBroker`
everything is over TLS: a mosquitto that asks for certificates, and an HTTPS server that judges them.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
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
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion
from publisher import Publisher
from tls_authority import Authority

from edgekit.trust import dsse
from edgekit.trust.target import Target
from edgekit.wire import enrolment, messages, topics
from edgekit.wire.commands import OVER, Action, Command, Result
from edgekit.wire.enrolment import BrokerAddress, EnrolAnswer, EnrolmentFile, EnrolRequest, RenewRequest
from edgekit.wire.messages import Ack, Order, OrderedBundle, OrderOptions, Report, Reported, Status

CREDENTIAL = "a-secret-credential"
TOKEN = "a-one-time-token"


class Fleet:
    """Everything an agent talks to, for one device."""

    def __init__(
        self,
        broker: Any,
        authority: Authority,
        device: str = "board-1",
        deployments: tuple[str, ...] = ("digits",),
        folder: Path | None = None,
    ) -> None:
        self.broker = broker
        self.authority = authority
        self.is_secure = isinstance(broker, TlsBroker)
        self.folder = folder
        self.enrolment_number = 7
        # What the tokens that were given out are good for: the public key that used each, if one has.
        self.tokens: dict[str, bytes | None] = {TOKEN: None}
        self.certificate_life = timedelta(days=90)
        # Answers to the next requests to join or to renew are lost after they were made.
        self.answers_lost = 0
        self.approves = True
        self.renewals: list[str] = []
        self.refuses_renewals = False
        # Whom TLS said that each request for an artifact came from.
        self.named: list[str] = []
        self.device = device
        self.deployments = deployments
        self.order_key = Ed25519PrivateKey.generate()
        self.publisher = Publisher((folder or Path(tempfile.mkdtemp())) / f"publisher-{device}")
        # Answers to the next requests for metadata, instead of the true ones.
        self.metadata_lies: list[tuple[int, bytes]] = []
        self.metadata_asked: list[str] = []
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.enrolled: list[EnrolRequest] = []
        self.reported: list[Reported] = []
        self.reports: list[Report] = []
        self.statuses: list[Status] = []
        self.results: list[Result] = []
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
        address = f"http{'s' * self.is_secure}://127.0.0.1:{self.http.server_port}"
        file = EnrolmentFile(
            format=enrolment.FORMAT, fleet="lab", device=self.device, token=TOKEN, enrol_url=f"{address}/v1/enrol",
            artifact_url=f"{address}/v1/artifacts", allowed_hosts=("127.0.0.1",),
            broker=BrokerAddress("127.0.0.1", self.broker.port, tls=self.is_secure),
            ca=self.authority.pem if self.is_secure else "",
            order_keys={"orders": public(self.order_key)}, tuf_root=self.publisher.root,
            metadata_url=f"{address}/tuf", deployments=self.deployments, labels={"site": "lab"},
        )  # fmt: skip
        path = folder / "enrolment.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(file, **changed)))
        return path

    def publish(self, built: Any, *, signed: bool = True) -> OrderedBundle:
        """Put a bundle into the artifact store, and among the publisher's targets."""
        m = built.manifest
        target = Target(m.name, m.version, m.profile, built.length, built.sha256)
        self.artifacts[built.sha256] = built.path.read_bytes()
        if signed:
            self.publisher.publish(target)
        return OrderedBundle(built.target, built.sha256, built.length)

    def order(
        self,
        bundle: OrderedBundle | None,
        *,
        deployments: dict[str, OrderedBundle] | None = None,
        key: Ed25519PrivateKey | None = None,
        keyid: str = "orders",
        options: OrderOptions | None = None,
        **changed: Any,
    ) -> int:
        """Sign and publish an order; its counter."""
        self.counter += 1
        wanted = deployments if deployments is not None else ({self.deployments[0]: bundle} if bundle else {})
        now = datetime.now(UTC)
        order = Order(
            fleet="lab", device=self.device, enrolment=self.enrolment_number, deployments=wanted, counter=self.counter, issued=now,
            expires=now + timedelta(days=30), options=options or OrderOptions(probation_s=0.5),
        )  # fmt: skip
        order = msgspec.structs.replace(order, **changed)
        self._last_order = sign(messages.encode(order), dsse.ORDER_TYPE, keyid, key or self.order_key)
        self.send_order()
        return order.counter

    def send_order(self) -> None:
        assert self._last_order is not None
        self._client.publish(topics.of(self.device, topics.DESIRED), self._last_order, qos=1, retain=True)

    def command(
        self, action: Action, *, key: Ed25519PrivateKey | None = None, keyid: str = "orders", **changed: Any
    ) -> str:
        """Sign and publish a command; its id."""
        now = datetime.now(UTC)
        command = Command(
            "lab",
            self.device,
            self.enrolment_number,
            os.urandom(8).hex(),
            now,
            now + timedelta(hours=1),
            action,
        )
        command = msgspec.structs.replace(command, **changed)
        self.last_command = sign(messages.encode(command), dsse.COMMAND_TYPE, keyid, key or self.order_key)
        self.send_command()
        return command.id

    def send_command(self) -> None:
        self._client.publish(topics.of(self.device, topics.COMMAND), self.last_command, qos=1)

    def result(self, number: str) -> Result | None:
        """What came of a command, once it is over."""
        found = (one for one in self.results if one.id == number and one.state in OVER)
        return next(found, None)

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
        if self.is_secure:
            client.tls_set_context(self.broker.context_of("fleet"))
        client.connect_async("127.0.0.1", self.broker.port, keepalive=30)
        client.loop_start()
        return client

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        leaves = (topics.REPORTED, topics.STATUS, topics.TELEMETRY, topics.RESULT)
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
        elif parsed[1] == topics.RESULT:
            result = messages.decode(message.payload, Result)
            self.results.append(result)
            if self.acknowledges:
                ack = messages.encode(Ack(result.boot, (result.seq,)))
                client.publish(topics.of(self.device, topics.ACK), ack, qos=0)
        elif parsed[1] == topics.TELEMETRY:
            report = messages.decode(message.payload, Report)
            self.reports.append(report)
            if self.acknowledges:
                ack = messages.encode(Ack(report.boot, (report.seq,)))
                client.publish(topics.of(self.device, topics.ACK), ack, qos=0)

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def _serve(self) -> ThreadingHTTPServer:
        handler = type("Handler", (FleetHandler,), {"fleet": self})
        server = FleetServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.context = self.authority.server_context(self.folder) if self.is_secure else None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


class FleetServer(ThreadingHTTPServer):
    context: ssl.SSLContext | None

    def get_request(self) -> Any:
        sock, address = super().get_request()
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, *_: Any) -> None:
        pass


class FleetHandler(BaseHTTPRequestHandler):
    """Enrols, renews, and serves artifacts as its `fleet` says."""

    fleet: "Fleet"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/renew":
            self.renew(msgspec.json.decode(body, type=RenewRequest))
        else:
            self.enrol(msgspec.json.decode(body, type=EnrolRequest))

    def enrol(self, request: EnrolRequest) -> None:
        fleet = self.fleet
        key = key_of(request.csr)
        if request.token not in fleet.tokens or fleet.tokens[request.token] not in (None, key):
            self.answer(403, b'{"error":{"code":"auth","message":"the token is not valid"}}')
            return
        fleet.enrolled.append(request)
        if not fleet.approves:
            self.answer(202, b'{"error":{"code":"waiting","message":"waits for approval"}}')
            return
        fleet.tokens[request.token] = key
        self.give(request.csr, request.device)

    def renew(self, request: RenewRequest) -> None:
        fleet = self.fleet
        fleet.renewals.append(self.peer)
        is_known = self.peer == fleet.device or (
            self.headers.get("Authorization") == f"Bearer {CREDENTIAL}" and is_proved(request)
        )
        if fleet.refuses_renewals or not is_known:
            self.answer(403, b'{"error":{"code":"auth","message":"the certificate is revoked"}}')
        else:
            self.give(request.csr, fleet.device)

    def give(self, csr: str, device: str) -> None:
        fleet = self.fleet
        end = datetime.now(UTC) + fleet.certificate_life
        chain = fleet.authority.device(
            csr, device, begin=end - max(fleet.certificate_life, timedelta(0)), end=end
        )
        answer = EnrolAnswer(device, fleet.enrolment_number, chain, end, CREDENTIAL)
        if fleet.answers_lost > 0:
            fleet.answers_lost -= 1
            self.close_connection = True
            return
        self.answer(200, msgspec.json.encode(answer))

    @property
    def peer(self) -> str:
        """The name in the client's certificate, if it showed one."""
        shown = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        return dict(pair[0] for pair in shown["subject"])["commonName"] if shown else ""

    def do_GET(self) -> None:
        if self.path.startswith("/tuf/"):
            self.metadata()
            return
        name = self.path.rpartition("/")[2]
        self.fleet.requests.append((name, self.headers.get("Range")))
        self.fleet.named.append(self.peer)
        if self.fleet.lies:
            self.answer(*self.fleet.lies.pop(0))
        elif self.headers.get("Authorization") != f"Bearer {CREDENTIAL}":
            self.answer(401, b"")
        elif name not in self.fleet.artifacts:
            self.answer(404, b"")
        else:
            self.stream(self.fleet.artifacts[name], self.headers.get("Range"))

    def metadata(self) -> None:
        """To anybody: it is no secret."""
        self.fleet.metadata_asked.append(self.path)
        found = self.fleet.publisher.file(self.path.removeprefix("/tuf/"))
        if self.fleet.metadata_lies:
            status, body = self.fleet.metadata_lies.pop(0)
            self.answer(status, body.replace(b"{}", found or b""))
        else:
            self.answer(200 if found is not None else 404, found or b"")

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
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            super().handle()


class TlsBroker:
    """A real mosquitto that takes certificates of `authority` only, and knows clients by them; it lives in `folder`."""

    def __init__(
        self, folder: Path, authority: Authority, port: int, websocket_port: int | None = None
    ) -> None:
        self.port = port
        self.websocket_port = websocket_port
        self.authority = authority
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def context_of(self, name: str) -> ssl.SSLContext:
        """A client's context with a certificate for `name`."""
        chain, key = self.authority.client(name)
        path = self._folder / f"{name}.pem"
        path.write_text(key + chain)
        context = ssl.create_default_context(cadata=self.authority.pem)
        context.load_cert_chain(path)
        return context

    def start(self, **server: Any) -> None:
        folder = self._folder
        chain, key = self.authority.server(**server)
        files = {
            "ca.pem": self.authority.pem,
            "server.pem": chain,
            "server.key": key,
            "crl.pem": self.authority.crl(),
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        (folder / "acl").write_text(
            "user fleet\ntopic readwrite #\npattern readwrite edgekit/v1/devices/%u/#\n"
        )
        tls = (
            f"cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
            f"crlfile {folder}/crl.pem\nrequire_certificate true\nuse_identity_as_username true\n"
        )
        lines = f"per_listener_settings false\nuser root\nacl_file {folder}/acl\nlistener {self.port} 127.0.0.1\n{tls}"
        if self.websocket_port is not None:
            lines += f"listener {self.websocket_port} 127.0.0.1\nprotocol websockets\n{tls}"
        (folder / "mosquitto.conf").write_text(lines)
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with (folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", folder / "mosquitto.conf", "-v"], stdout=log, stderr=log
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def key_of(csr: str) -> bytes:
    request = x509.load_pem_x509_csr(csr.encode())
    assert request.is_signature_valid
    kind = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return request.public_key().public_bytes(*kind)


def is_proved(request: RenewRequest) -> bool:
    """Whether the key of the request signed it; in these tests devices keep their key when they renew."""
    key = x509.load_pem_x509_csr(request.csr.encode()).public_key()
    try:
        signed = enrolment.PROOF_PREFIX + request.csr.encode()
        key.verify(base64.b64decode(request.proof), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


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


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def tls_broker(tmp_path: Path, authority: Authority, tools: Any) -> Iterator[TlsBroker]:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    made = TlsBroker(folder, authority, tools.free_port(), tools.free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def make_fleet(broker: Any, authority: Authority, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(**wanted: Any) -> Fleet:
        used = wanted.pop("broker", broker)
        fleet = Fleet(used, authority, device=f"board-{next(_DEVICES)}", folder=tmp_path, **wanted)
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
