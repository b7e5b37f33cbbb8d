"""One device in this process: the real agent with its real storage, order book, reconciler and fetch, on a folder.

What is not real: the broker (`FakeLink`), the look at the publisher's metadata (all is signed; tests/tuf cuts the power
there), worker processes (`FakeWorker` hashes its slot, as a real one does before it
loads it) and the self-test (the slot must be whole). The artifact server and its HTTP are real. No engine runs, so a
whole update takes some milliseconds, and thousands of starts can be tried.
"""

import asyncio
import base64
import errno
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent import durable, process, record, start, storage, supervisor, workers
from device_agent.channel import Ready
from device_agent.config import Settings
from device_agent.durable import Operation
from device_agent.folder import DeploymentFolder, StateFolder
from device_agent.hardware import Hardware
from device_agent.listen import listen
from device_agent.probe import Platform
from device_agent.process import StartError
from device_agent.storage import Storage
from device_agent.supervisor import Agent
from device_agent.tuf import lookup
from device_agent.tuf.question import Answer, Listed, Question
from device_agent.update import fetch, jobs, machine, reconciler, selftest, slots
from device_agent.update.events import Cause
from device_agent.update.selftest import Verdict
from edgekit.errors import BundleError
from edgekit.trust import dsse
from edgekit.wire import messages, topics
from edgekit.wire.enrolment import FORMAT, BrokerAddress, EnrolAnswer, EnrolmentFile, EnrolRequest
from edgekit.wire.messages import Ack, DeploymentWindow, Order, OrderedBundle, OrderOptions, Report, Reported

PROFILE = "x86-64-v3"
HERE = Path(__file__).parent
PLATFORM = Platform((PROFILE,), overlap=True, isa=("avx2",), engines={"onnxruntime": "1"})


def _loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("device_agent_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Bundles are made as the agent's own tests make them.
real = _loaded(HERE.parents[1] / "device_agent" / "conftest.py")
Authority = importlib.import_module("tls_authority").Authority
# Versions that end with one of these are bad.
FAILS_SELFTEST, FAILS_PROBATION = "-untrue", "-broken"


class Mark(NamedTuple):
    """Something left this device at this point of the trace, and is held against it from then on."""

    what: tuple[str, ...]
    value: Any


class Fleet:
    """Artifacts and enrolment over real HTTP, and the retained order."""

    def __init__(self) -> None:
        self.order_key = Ed25519PrivateKey.generate()
        self.authority = Authority()
        self.artifacts: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.counter = 100
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        handler = type("Handler", (_Handler,), {"fleet": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def enrolment(self, folder: Path) -> Path:
        address = f"127.0.0.1:{self.http.server_port}"
        file = EnrolmentFile(
            format=FORMAT, fleet="lab", device="board", token="token", enrol_url=f"http://{address}/enrol",
            artifact_url=f"http://{address}/artifacts", allowed_hosts=("127.0.0.1",),
            broker=BrokerAddress("127.0.0.1", 1), order_keys={"orders": _public(self.order_key)},
            tuf_root="{}", metadata_url=f"http://{address}/tuf", deployments=("digits",),
        )  # fmt: skip
        path = folder / "enrolment.json"
        path.write_bytes(msgspec.json.encode(file))
        return path

    def publish(self, folder: Path, version: str) -> OrderedBundle:
        """A real bundle of `version`; its self-test really fails where the version says so."""
        seed = sum(version.encode())
        scale = 0.5 if version.endswith(FAILS_SELFTEST) else 0.0625
        built = real.build(folder, version=version, seed=seed, profile=PROFILE, scale=scale)
        path, sha256 = built.path, built.sha256
        data = path.read_bytes()
        self.artifacts[sha256] = data
        self.versions[sha256] = version
        return OrderedBundle(f"digits/{version}/{PROFILE}/{sha256}.edgekit", sha256, len(data))

    def order(self, bundle: OrderedBundle | None) -> "Retained":
        self.counter += 1
        now = datetime.now(UTC)
        order = Order(
            "lab", "board", 7, {"digits": bundle} if bundle else {}, self.counter, now, now + timedelta(days=30),
            OrderOptions(probation_s=0.0, probation_requests=1),
        )  # fmt: skip
        envelope = _sign(messages.encode(order), dsse.ORDER_TYPE, "orders", self.order_key)
        return Retained(self.counter, envelope, bundle)

    async def signed(self, question: Question) -> Answer:
        return Answer(
            {
                path: Listed(len(self.artifacts[digest]), digest)
                for path in question.paths
                if (digest := path.rpartition("/")[2].removesuffix(".edgekit")) in self.artifacts
            }
        )

    def is_bad(self, digest: str) -> bool:
        return self.versions[digest].endswith((FAILS_SELFTEST, FAILS_PROBATION))


class Retained(NamedTuple):
    """The newest order, as the broker keeps it."""

    counter: int
    envelope: bytes
    bundle: OrderedBundle | None


class _Handler(BaseHTTPRequestHandler):
    fleet: Fleet

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = msgspec.json.decode(body, type=EnrolRequest)
        chain = self.fleet.authority.device(asked.csr, asked.device)
        end = datetime.now(UTC) + timedelta(days=90)
        self._answer(200, msgspec.json.encode(EnrolAnswer("board", 7, chain, end, "credential")))

    def do_GET(self) -> None:
        data = self.fleet.artifacts[self.path.rpartition("/")[2]]
        wanted = self.headers.get("Range")
        first = int(wanted[len("bytes=") : -1]) if wanted else 0
        span = f"bytes {first}-{len(data) - 1}/{len(data)}"
        part = data[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.fleet.cut_after is not None and len(part) > 1000:
            part, self.fleet.cut_after = part[: self.fleet.cut_after], None
        if self.fleet.stall_after is not None and len(part) > 1000:
            count, self.fleet.stall_after = self.fleet.stall_after, None
            self.wfile.write(part[:count])
            self.connection.recv(1)
            self.close_connection = True
            return
        self.wfile.write(part)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _sign(payload: bytes, payload_type: str, keyid: str, key: Ed25519PrivateKey) -> bytes:
    signature = base64.b64encode(key.sign(dsse.pae(payload_type, payload))).decode()
    signed = [{"keyid": keyid, "sig": signature}]
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": signed,
    }
    return json.dumps(envelope).encode()


class Site(NamedTuple):
    """Where in the agent an operation comes from, and in which of its threads."""

    place: str
    thread: int


class World:
    """What a device in this process meets: the fleet, its retained order, and who listens to what the device says."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.retained: Retained | None = None
        self.trace: list[Operation | Mark] = []
        self.sites: list[tuple[int, Site]] = []
        # The storage thread, the thread of a job and the event loop all leave their traces.
        self._lock = threading.Lock()
        self.fault: Callable[[Operation], None] = lambda _operation: None
        self.is_recording = self.is_dead = False
        self.link: FakeLink | None = None
        self.reported: Reported | None = None
        self.served: list[str] = []

    def record(self, operation: Operation) -> None:
        if self.is_dead:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.is_recording:
            site = _site()
            with self._lock:
                self.sites.append((len(self.trace), Site(site, threading.get_ident())))
                self.trace.append(operation)
        self.fault(operation)

    def mark(self, *what: str, value: Any) -> None:
        if self.is_recording:
            with self._lock:
                self.trace.append(Mark(what, value))

    def order(self, bundle: OrderedBundle | None) -> None:
        self.retained = self.fleet.order(bundle)
        self.mark("order", value=self.retained)
        if self.link is not None:
            self.link.deliver(self.retained)

    def heard(self, leaf: str, payload: bytes) -> Ack | None:
        if leaf == topics.REPORTED:
            self.reported = messages.decode(payload, Reported)
            self.mark("boot", value=self.reported.boot)
            self.mark("accepted", value=self.reported.order_counter)
            for said in self.reported.deployments.values():
                self.mark("committed", value=said.committed)
                self.mark("step", value=said.state.value)
        elif leaf == topics.TELEMETRY:
            report = messages.decode(payload, Report)
            return Ack(report.boot, (report.seq,))
        return None


def _site() -> str:
    """Where in the agent the operation comes from: the line that called `durable`, and the function there."""
    frame = sys._getframe(2)
    within = ""
    while Path(frame.f_code.co_filename).name in ("durable.py", "contextlib.py") and frame.f_back is not None:
        if Path(frame.f_code.co_filename).name == "durable.py" and not frame.f_code.co_name.startswith("_"):
            within = frame.f_code.co_name
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name} → {within}"


class FakeLink:
    """A broker that is always there, keeps the order, and a fleet that acknowledges at once."""

    world: World

    def __init__(self, _broker: object, _access: object, _device: str, _boot: object, hooks: Any) -> None:
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self.is_up = False

    def start(self) -> None:
        self.is_up = True
        self.world.link = self
        self._loop.call_soon(self._hooks.up)
        if self.world.retained is not None:
            self.deliver(self.world.retained)

    def deliver(self, retained: Retained) -> None:
        self._loop.call_soon(self._hooks.message, topics.DESIRED, retained.envelope)

    def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> bool:
        ack = self.world.heard(leaf, payload) if self.is_up else None
        if ack is not None:
            self._loop.call_soon(self._hooks.message, topics.ACK, messages.encode(ack))
        return self.is_up

    async def stop(self) -> None:
        self.is_up = False
        self.world.link = None


class FakeWorker:
    """Serves a slot whose every file still has its hash."""

    pid = 0
    why = "it was told to"

    def __init__(self, _served: object, place: Any, counted: Any) -> None:
        self.slot, self.generation = place.slot, place.generation
        self.ready: Ready | None = None
        self.ended = asyncio.Event()
        self._digest = place.digest
        self._counted = counted

    async def start(self) -> Ready:
        try:
            mark, manifest = slots.load_checked(self.slot)
        except BundleError as error:
            raise StartError(str(error), Cause.LOST) from error
        if mark.sha256 != self._digest:
            raise StartError("its slot holds another bundle", Cause.LOST)
        self.ready = Ready(mark.sha256, manifest.name, manifest.version)
        return self.ready

    def tick(self) -> None:
        assert self.ready is not None
        errors = 10 if self.ready.version.endswith(FAILS_PROBATION) else 0
        self._counted(self, DeploymentWindow("digits", self.ready.digest, requests=20, errors=errors))

    async def drain(self) -> None:
        self.ended.set()

    async def kill(self) -> None:
        self.ended.set()


async def _fake_selftest(
    folder: DeploymentFolder, name: slots.SlotName, _running: slots.SlotName | None, **_how: object
) -> Verdict:
    slot = folder.slot(name)
    _mark, manifest = slots.load_checked(slot)
    if manifest.version.endswith(FAILS_SELFTEST):
        return Verdict(passed=False, reason="the outputs differ")
    return Verdict(passed=True, reason="")


QUICK = {
    (supervisor, "TICK_S"): 0.002,
    (machine, "FIRST_PAUSE_S"): 0.001,
    (machine, "LONGEST_PAUSE_S"): 0.01,
    (machine, "FIRST_POSTPONEMENT_S"): 0.01,
    (machine, "LONGEST_POSTPONEMENT_S"): 0.1,
    (workers, "FIRST_BACKOFF_S"): 0.001,
    (workers, "LONGEST_BACKOFF_S"): 0.01,
    (workers, "POINT_AGAIN_S"): 0.02,
    (reconciler, "LOOK_AGAIN_S"): 0.02,
    (storage, "FIRST_PROBE_S"): 0.002,
    (storage, "LONGEST_PROBE_S"): 0.02,
    # So that a bundle of some kB is received in several parts, each synced.
    (fetch, "CHUNK_BYTES"): 512,
    (fetch, "SYNC_BYTES"): 1536,
}


@contextmanager
def this_process(world: World, runtime: Path) -> Iterator[None]:
    """Agents made meanwhile meet `world`, and what they do to disks is recorded there."""
    with pytest.MonkeyPatch.context() as patch, durable.watched(world.record):
        patch.setenv("EDGEKIT_RUNTIME_DIR", str(runtime))
        for (module, name), value in QUICK.items():
            patch.setattr(module, name, value)
        patch.setattr(supervisor, "Link", type("Link", (FakeLink,), {"world": world}))
        patch.setattr(workers, "WorkerProcess", FakeWorker)
        patch.setattr(process, "WorkerProcess", FakeWorker)
        patch.setattr(selftest, "run", _fake_selftest)
        patch.setattr(lookup, "in_child", world.fleet.signed)
        assert jobs.selftest is selftest
        _mark_what_is_promised(patch, world)
        yield


def _mark_what_is_promised(patch: pytest.MonkeyPatch, world: World) -> None:
    save, sync, point = record.Record.save, fetch.Part._sync, slots.point
    take_over = workers.Workers._take_over

    def saved(self: Any, value: Any) -> None:
        save(self, value)
        world.mark("record", self.paths[0].name, value=self._generation)

    def took_over(self: Any, worker: Any) -> None:
        take_over(self, worker)
        world.served.append(worker.ready.digest)

    def pointed(folder: Any, name: str) -> None:
        # A worker takes over as soon as this has returned.
        point(folder, name)
        world.mark("serves", value=name)

    def synced(self: Any, sink: Any) -> None:
        sync(self, sink)
        world.mark("fetched", self.path.name[:64], value=self.synced)

    patch.setattr(record.Record, "save", saved)
    patch.setattr(workers.Workers, "_take_over", took_over)
    patch.setattr(fetch.Part, "_sync", synced)
    patch.setattr(slots, "point", pointed)


class Device:
    """A running agent on `root`."""

    def __init__(self, world: World, root: Path, enrolment: Path) -> None:
        self.world = world
        self._settings = Settings(
            StateFolder(root), ("127.0.0.1:0",), None, enrolment, profile=None, window_s=0.004, log_json=False
        )
        self._stopping = asyncio.Event()
        self.agent: Agent
        self._task: asyncio.Task[None]

    async def start(self) -> "Device":
        world = self.world
        world.reported, world.served = None, []
        self._lock = self._settings.state.lock()
        self.storage = Storage(self._settings.state.root)
        known = await start.who_am_i(self._settings, PLATFORM, self.storage, Hardware())
        listeners = listen(self._settings.http)
        who = await self.storage.do(lambda: start.credentials_of(self._settings, known.identity))
        self.agent = await Agent.made(self._settings, PLATFORM, who, listeners, self.storage)
        self._task = asyncio.create_task(self.agent.run(self._stopping))
        return self

    async def stop(self) -> None:
        self._stopping.set()
        await self._task
        await self.storage.close()
        os.close(self._lock)

    async def until(self, condition: Any, what: str, patience_s: float = 20.0) -> None:
        """Wait for something that is certain to come soon; how soon depends on the machine."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while not condition():
            if self._task.done():
                self._task.result()
                raise AssertionError("the agent ended by itself")
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"never came: {what}; says {self.world.reported}")
            await asyncio.sleep(0.002)

    def is_settled(self) -> bool:
        """Whether the device says that it has done what the retained order asks, or why not."""
        reported, retained = self.world.reported, self.world.retained
        if reported is None or retained is None or reported.order_counter != retained.counter:
            return False
        said = reported.deployments["digits"]
        if retained.bundle is None:
            return (said.state.value, said.digest, said.committed) == ("idle", None, None)
        wanted = retained.bundle.sha256
        if said.ordered != wanted:
            return False
        if self.world.fleet.is_bad(wanted):
            return said.state.value in ("failed", "rollback") and said.digest == said.committed != wanted
        return (said.state.value, said.digest, said.committed) == ("idle", wanted, wanted)
