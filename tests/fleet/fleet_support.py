"""What the fleet's tests work with: bundles to publish, the service as a real process, and scripted devices.

A scripted device enrols and downloads over real HTTP, speaks MQTT with a real client, follows the real order rules,
and has no model: the boundary that the fleet needs. Real agents are tested end to end elsewhere.
"""

import hashlib
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion
from ports import free_port

from edgekit import bundle, sketch
from edgekit.bundle import file_entry
from edgekit.errors import OrderRefusedError
from edgekit.manifest import Contract, EngineSpec, Manifest, Reference, SelfTest, TensorSpec
from edgekit.protocol import orders
from edgekit.trust import dsse
from edgekit.wire import topics
from edgekit.wire.enrolment import EnrolAnswer, EnrolmentFile, EnrolRequest, RenewRequest, renew_url
from edgekit.wire.messages import (
    Ack,
    Boot,
    DeploymentReport,
    DeploymentWindow,
    Order,
    OrderedBundle,
    Report,
    Reported,
    Status,
    decode,
    encode,
)
from edgekit.wire.states import AgentState
from fleet.client.config import find
from fleet.client.rest import Client

FILES = ("model/model.onnx", "selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")


def make_bundle(
    folder: Path,
    version: str,
    *,
    name: str = "digits",
    profile: str = "x86-64-v3",
    seed: str = "",
    bundle_format: int = 1,
    contract: Contract | None = None,
    reference: Reference | None = None,
) -> Path:
    """A well-formed bundle; the fleet never loads the model in it."""
    files = {path: f"{path} {version} {seed}".encode() for path in FILES}
    manifest = Manifest(
        format=bundle_format,
        name=name,
        version=version,
        profile=profile,
        engine=EngineSpec("onnxruntime", ">=1.20", FILES[0]),
        inputs=(TensorSpec("image", "float32", (1, 64)),),
        outputs=(TensorSpec("logits", "float32", (1, 10)),),
        recipe="onnxruntime/fp32",
        source_sha256="0" * 64,
        files=tuple(file_entry(path, data) for path, data in sorted(files.items())),
        selftest=SelfTest(*FILES[1:], samples=1, tolerance={"logits": 1e-3}, agreement=1.0),
        contract=contract or Contract(),
        reference=reference or Reference(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / manifest.filename
    bundle.write(path, manifest, files)
    return path


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s until {what}"
        time.sleep(0.05)


@dataclass
class Service:
    """`edgekit fleet up` as a process of its own, on ports that nobody else uses."""

    folder: Path
    broker: str = "embedded"
    more: tuple[str, ...] = ()
    http_port: int = field(default_factory=free_port)
    mqtt_port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None
    # What Python runs as the `edgekit` command.
    program: tuple[str, ...] = ("-m", "edgekit")

    @property
    def state(self) -> Path:
        return self.folder / "fleet"

    def command(self, *more: str) -> list[str]:
        addresses = ["--http", f"127.0.0.1:{self.http_port}", "--mqtt", f"127.0.0.1:{self.mqtt_port}"]
        start = [sys.executable, *self.program, "fleet", "up", "--state", str(self.state)]
        return [*start, *addresses, "--broker", self.broker, "--tick", "0.1", *self.more, *more]

    def spawn(self) -> "subprocess.Popen[str]":
        self.process = subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def start(self) -> None:
        process = self.spawn()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready"):
                return
        pytest.fail("the service did not start:\n" + "".join(lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill_broker(self) -> bool:
        """SIGKILL the broker's process, found as the service's only child."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        return len(children) == 1

    def client(self) -> Client:
        return Client(find(str(self.state)))

    def simulated(self, count: int, *more: str) -> "subprocess.Popen[str]":
        """`edgekit fleet simulate` with so many devices, which answers as JSON."""
        command = [sys.executable, *self.program, "fleet", "--fleet", str(self.state), "simulate", "--json"]
        return subprocess.Popen([*command, "--devices", str(count), *more], stdout=subprocess.PIPE, text=True)


DEPLOYMENT = "digits"


def make_device_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr_of(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A certificate request as a device makes it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pinned(file: EnrolmentFile) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cadata=file.ca) if file.ca else True


@dataclass
class Behaviour:
    """How a bundle of one version does on the device."""

    infer_ms: float = 2.0
    errors: int = 0
    requests: int = 50
    fails_selftest: bool = False


@dataclass
class FakeDevice:
    """Follows orders at once, in each deployment that its file names, and reports windows every `window_s`; `behaviours`
    is by version.
    """

    file: EnrolmentFile
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    profile: str = "x86-64-v3"
    window_s: float = 0.2
    incarnation: int = 1
    nonce: str = "0123456789abcdef"
    sends_telemetry: bool = True
    # Its own name, where the file is a batch's.
    serial: str = ""
    key: ec.EllipticCurvePrivateKey = field(default_factory=make_device_key)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.acked: set[int] = set()
        self.orders: list[Order] = []
        self.running: dict[str, OrderedBundle] = {}
        self.states = {name: DeploymentReport(AgentState.IDLE) for name in self.file.deployments}
        self.refused = ""
        self._followed = orders.Followed()
        self._seq = 0
        self._reported_seq = 0
        self._stop = threading.Event()
        self._client: mqtt.Client | None = None
        self.connections = 0

    @property
    def name(self) -> str:
        return self.serial or self.file.device

    @property
    def boot(self) -> Boot:
        return Boot(self.enrolment, self.incarnation, self.nonce)

    def enrol(self) -> None:
        response = self.ask_to_enrol()
        response.raise_for_status()
        self.answer = msgspec.json.decode(response.content, type=EnrolAnswer)
        self.enrolment, self.credential = self.answer.enrolment, self.answer.credential
        self._identity = orders.Identity(
            self.file.fleet, self.name, self.enrolment, (self.profile,), self.file.deployments
        )

    def ask_to_enrol(self) -> httpx.Response:
        request = EnrolRequest(
            self.name, self.file.token, csr_of(self.key, self.name), self.profile, "0.1.0", self.fingerprint
        )
        content = msgspec.json.encode(request)
        return httpx.post(self.file.enrol_url, content=content, trust_env=False, verify=pinned(self.file))

    def tls(self) -> ssl.SSLContext | bool:
        """Pinned by the enrolment file, with the device's certificate."""
        context = pinned(self.file)
        if isinstance(context, ssl.SSLContext):
            with tempfile.NamedTemporaryFile(suffix=".pem") as both:
                both.write(key_pem(self.key) + self.answer.certificate.encode())
                both.flush()
                context.load_cert_chain(both.name)
        return context

    def renew(self, key: ec.EllipticCurvePrivateKey | None = None) -> httpx.Response:
        """Over TLS with the certificate, for a new key unless told otherwise."""
        content = msgspec.json.encode(
            RenewRequest(csr_of(key or self.key, self.name), fingerprint=self.fingerprint)
        )
        return httpx.post(renew_url(self.file.enrol_url), content=content, trust_env=False, verify=self.tls())

    def connect(self) -> None:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, protocol=mqtt.MQTTv5)
        will = encode(Status(online=False, boot=self.boot))
        client.will_set(topics.of(self.name, topics.STATUS), will, qos=1, retain=True)
        if self.file.broker.tls:
            context = self.tls()
            assert isinstance(context, ssl.SSLContext)
            client.tls_set_context(context)
        client.on_connect = lambda *_: self._connected()
        client.on_message = lambda _c, _u, message: self._received(message)
        client.reconnect_delay_set(1, 1)
        client.connect_async(self.file.broker.host, self.file.broker.port, keepalive=10)
        self._client = client
        client.loop_start()
        threading.Thread(target=self._telemetry, daemon=True).start()

    def close(self, *, politely: bool = True) -> None:
        self._stop.set()
        if self._client is None:
            return
        if politely:
            self._client.disconnect()
        else:
            sock = self._client.socket()
            assert sock is not None
            sock.shutdown(2)
        self._client.loop_stop()

    def fetch(self, sha256: str, suffix: str = "", **headers: str) -> httpx.Response:
        authorization = {"Authorization": f"Bearer {self.credential}", **headers}
        url = f"{self.file.artifact_url}/{sha256}{suffix}"
        return httpx.get(url, headers=authorization, trust_env=False, verify=pinned(self.file))

    def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> None:
        assert self._client is not None
        self._client.publish(topics.of(self.name, leaf), payload, qos=1, retain=retain)

    def report(self, windows: tuple[DeploymentWindow, ...], seq: int | None = None) -> int:
        if seq is None:
            self._seq += 1
            seq = self._seq
        report = Report(
            device=self.name,
            boot=self.boot,
            seq=seq,
            started=datetime.now(UTC),
            length_s=self.window_s,
            clock_ok=True,
            deployments=windows,
        )
        self.publish(topics.TELEMETRY, encode(report))
        return seq

    def say(self) -> None:
        self._reported_seq += 1
        reported = Reported(
            device=self.name,
            boot=self.boot,
            seq=self._reported_seq,
            order_counter=self._followed.counter,
            deployments=self.states,
            profile=self.profile,
            isa=("avx2",),
            engines={"onnxruntime": "1.22.0"},
            agent_version="0.1.0",
            bundle_format=1,
            free_bytes=10**9,
            refused=self.refused,
        )
        self.publish(topics.REPORTED, encode(reported), retain=True)

    def _connected(self) -> None:
        assert self._client is not None
        self.connections += 1
        self._client.subscribe(
            [(topics.of(self.name, topics.DESIRED), 1), (topics.of(self.name, topics.ACK), 0)]
        )
        self.publish(topics.STATUS, encode(Status(online=True, boot=self.boot)), retain=True)
        self.say()

    def _received(self, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith(topics.ACK):
            self.acked |= set(decode(bytes(message.payload), Ack).seqs)
        else:
            self._order(bytes(message.payload))

    def _order(self, data: bytes) -> None:
        payload = dsse.verify(data, dsse.ORDER_TYPE, self.file.order_keys)
        order = decode(payload, Order)
        try:
            followed = orders.accept(order, payload, self._identity, self._followed, datetime.now(UTC))
        except OrderRefusedError as error:
            self.refused = str(error)
            self.say()
            return
        if followed is None:
            return
        self._followed, self.refused = followed, ""
        self.orders.append(order)
        for name in self.states:
            self._follow(name, order.deployments.get(name))

    def _follow(self, name: str, wanted: OrderedBundle | None) -> None:
        runs = self.running.get(name)
        if wanted is None:
            self.running.pop(name, None)
            self.states[name] = DeploymentReport(AgentState.IDLE)
        elif runs is not None and wanted.sha256 == runs.sha256:
            self._at_rest(name, wanted)
        else:
            version = wanted.target.split("/")[1]
            current = runs.sha256 if runs else None
            self.states[name] = DeploymentReport(AgentState.FETCH, current, current, wanted.sha256)
            self.say()
            content = self.fetch(wanted.sha256).content
            assert (len(content), hashlib.sha256(content).hexdigest()) == (wanted.length, wanted.sha256)
            if self.behaviours.get(version, Behaviour()).fails_selftest:
                reason = "self-test: other outputs than the golden ones"
                self.states[name] = DeploymentReport(
                    AgentState.FAILED, current, current, wanted.sha256, reason=reason
                )
            else:
                self._at_rest(name, wanted)
        self.say()

    def _at_rest(self, name: str, wanted: OrderedBundle) -> None:
        self.running[name] = wanted
        digest = wanted.sha256
        model, version, *_ = wanted.target.split("/")
        self.states[name] = DeploymentReport(AgentState.IDLE, digest, digest, digest, model, version)

    def _telemetry(self) -> None:
        while not self._stop.wait(self.window_s):
            if self.sends_telemetry:
                self.report(self.windows())

    def windows(self) -> tuple[DeploymentWindow, ...]:
        return tuple(self._window(name, runs) for name, runs in list(self.running.items()))

    def _window(self, name: str, runs: OrderedBundle) -> DeploymentWindow:
        behaviour = self.behaviours.get(runs.target.split("/")[1], Behaviour())
        times = sketch.of([behaviour.infer_ms * (0.9 + 0.2 * i / 50) for i in range(behaviour.requests)])
        return DeploymentWindow(
            name,
            runs.sha256,
            behaviour.requests,
            behaviour.errors,
            infer_ms=times,
            request_ms=times,
        )
