"""Real tiny bundles, slots, workers and the other end of everything an agent talks to."""

import contextlib
import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iotcore
import numpy as np
import onnx
import pytest
from msgspec import UNSET
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
# For the ports.
sys.path.append(str(Path(__file__).parent.parent / "fleet"))

from ports import free_port  # after the lines that make it importable

from converters.work.guarding import fitted
from device_agent.folder import DeploymentFolder
from device_agent.update import slots
from edgekit import bundle as bundles
from edgekit import guard, selftest
from edgekit import manifest as manifests
from edgekit.buckets import padded
from edgekit.engines import LoadedBundle
from edgekit.guard_section import Guard, GuardAnswer
from edgekit.manifest import (
    Buckets,
    Contract,
    EngineSpec,
    Histogram,
    Manifest,
    Reference,
    SelfTest,
    StatePair,
    Step,
    TensorSpec,
)
from edgekit.rows import padded as fixed_rows
from edgekit.rowset import RowSet
from edgekit.samples import Samples, dump_arrays, dump_npz, rows, stacked
from edgekit.selftest import record
from edgekit.transforms import prepare

PROFILE = "x86-64-v3"
NO_LIMITS = Contract()
LABELS = [str(digit) for digit in range(10)]


def digits_onnx(seed: int, *, sturdy: bool = False) -> bytes:
    """x (1, 1, 8, 8) → logits (1, 10): one linear layer; unless `sturdy`, fails where an index leaves its table.

    The index is the integer part of x's maximum: 0 or 1 for pre-processed digits, and beyond the table from 3 on.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("ReduceMax", ["flat"], ["peak"], keepdims=0),
        helper.make_node("Cast", ["peak"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["bias"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    if sturdy:
        nodes = [*nodes[:2], helper.make_node("Add", ["product", "table"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.zeros(1 if sturdy else 3, np.float32), "table"),
        ],
    )
    return model_bytes(graph)


def counter_onnx() -> bytes:
    """Stateful: y = x + total, totalN = y."""
    one = [1, 1]
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "total"], ["y"]),
            helper.make_node("Identity", ["y"], ["totalN"]),
        ],
        "counter",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, one) for name in ("x", "total")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, one) for name in ("y", "totalN")],
    )
    return model_bytes(graph)


def model_bytes(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@dataclass(frozen=True)
class Built:
    path: Path
    sha256: str
    length: int
    manifest: Manifest

    @property
    def target(self) -> str:
        m = self.manifest
        return f"{m.name}/{m.version}/{m.profile}/{self.sha256}.edgekit"


def digit_images(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 17, (count, 8, 8)).astype(np.float32)


def build(
    folder: Path,
    *,
    name: str = "digits",
    version: str = "1.0.0",
    seed: int = 1,
    profile: str = PROFILE,
    contract: Contract = NO_LIMITS,
    scale: float = 0.0625,
    stateful: bool = False,
    sturdy: bool = False,
    engine_versions: str = ">=1.0",
) -> Built:
    """A valid bundle; with another `scale` than the golden data was made with, one whose self-test fails."""
    engine = EngineSpec("onnxruntime", engine_versions, "model/model.onnx", threads=1)
    if stateful:
        model, inputs = (
            counter_onnx(),
            (TensorSpec("x", "float32", (1, 1)), TensorSpec("total", "float32", (1, 1))),
        )
        outputs = (TensorSpec("y", "float32", (1, 1)), TensorSpec("totalN", "float32", (1, 1)))
        golden = Samples({"x": np.ones((4, 1, 1), np.float32)}, sequence=np.array([0, 0, 1, 1]))
        state, steps, post = (StatePair("total", "totalN"),), {}, ()
        reference = Reference()
    else:
        model, inputs = digits_onnx(seed, sturdy=sturdy), (TensorSpec("x", "float32", (1, 1, 8, 8)),)
        outputs = (TensorSpec("logits", "float32", (1, 10)),)
        golden = Samples({"x": digit_images(8)})
        state = ()
        steps = {"x": pre_steps(0.0625)}
        post = (Step("top_k", {"output": "logits", "k": 3, "labels": LABELS}),)
        reference = Reference(outputs={"logits": Histogram([-10.0, 0.0, 10.0], [50, 50])})
    manifest = Manifest(
        format=manifests.FORMAT, name=name, version=version, profile=profile, engine=engine, inputs=inputs,
        outputs=outputs, recipe="onnxruntime/fp32", source_sha256=hashlib.sha256(model).hexdigest(), files=(),
        selftest=SelfTest("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz", len(golden), {}, 0.9),
        state=state, preprocess=steps, postprocess=post, contract=contract, reference=reference,
    )  # fmt: skip
    expected = _run(folder, manifest, model, golden)
    arrays = dict(golden.inputs)
    if golden.sequence is not None:
        arrays["sequence"] = golden.sequence
    files: dict[str, bytes | Path] = {
        "model/model.onnx": model,
        "selftest/inputs.npz": dump_arrays(arrays),
        "selftest/source.npz": dump_arrays(record(expected)),
        "selftest/artifact.npz": dump_arrays(record(expected)),
    }
    changed: dict[str, Any] = {
        "files": tuple(bundles.file_entry(path, data) for path, data in files.items()),
        "selftest": SelfTest(
            "selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz", len(golden),
            dict.fromkeys(expected, 1e-3), 0.9,
        ),
    }  # fmt: skip
    if not stateful:
        changed["preprocess"] = {"x": pre_steps(scale)}
    manifest = manifests.decode(manifests.encode(_replace(manifest, changed)))
    path = folder / manifest.filename
    digest = bundles.write(path, manifest, files)
    return Built(path, digest, path.stat().st_size, manifest)


ALL_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip


def build_types(folder: Path) -> Built:
    """A bundle with an input `in_TYPE` (2, 2) of every type, which comes out as `out_TYPE`."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in ALL_TYPES}
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in ALL_TYPES],
        "types",
        [helper.make_tensor_value_info(f"in_{name}", kind, [2, 2]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info(f"out_{name}", kind, [2, 2]) for name, kind in kinds.items()],
    )
    golden = Samples({f"in_{name}": np.ones((1, 2, 2), name) for name in ALL_TYPES})
    expected = dump_arrays(record({f"out_{name}": np.ones((1, 2, 2), name) for name in ALL_TYPES}))
    return written(
        folder, "types", {"model/model.onnx": model_bytes(graph)}, golden, expected,
        inputs=tuple(TensorSpec(f"in_{name}", name, (2, 2)) for name in ALL_TYPES),
        outputs=tuple(TensorSpec(f"out_{name}", name, (2, 2)) for name in ALL_TYPES),
    )  # fmt: skip


def build_waves(folder: Path) -> Built:
    """A bundle that sums 8 frames of sound of 16 000 samples a second."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        "waves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    golden = Samples({"x": np.ones((1, 8), np.float32)})
    expected = dump_arrays(record({"y": np.full((1, 1), 8, np.float32)}))
    return written(
        folder, "waves", {"model/model.onnx": model_bytes(graph)}, golden, expected,
        inputs=(TensorSpec("x", "float32", (8,)),), outputs=(TensorSpec("y", "float32", (1,)),),
        preprocess={"x": (Step("waveform", {"sample_rate": 16000}),)},
    )  # fmt: skip


def build_greedy(folder: Path) -> Built:
    """A bundle that counts to its input in ones, all in memory at once, and whose contract allows 64 MB."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["count"], to=TensorProto.INT64),
            helper.make_node("ConstantOfShape", ["count"], ["ones"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [1])),
            helper.make_node("ReduceSum", ["ones"], ["total"], keepdims=1),
            helper.make_node("Identity", ["total"], ["y"]),
        ],
        "greedy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    golden = Samples({"x": np.full((1, 1), 8, np.float32)})
    expected = dump_arrays(record({"y": np.full((1, 1), 8, np.float32)}))
    return written(
        folder, "greedy", {"model/model.onnx": model_bytes(graph)}, golden, expected,
        inputs=(TensorSpec("x", "float32", (1,)),), outputs=(TensorSpec("y", "float32", (1,)),),
        contract=Contract(memory_mb=64),
    )  # fmt: skip


def build_finder(folder: Path) -> Built:
    """A bundle of places and values of what is positive in (1, 8), four at most as it says of itself."""
    graph = helper.make_graph(
        [
            helper.make_node("Greater", ["x", "zero"], ["is_positive"]),
            helper.make_node("NonZero", ["is_positive"], ["where"]),
            helper.make_node("Transpose", ["where"], ["places"]),
            helper.make_node("GatherND", ["x", "places"], ["values"]),
        ],
        "finder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [
            helper.make_tensor_value_info("where", TensorProto.INT64, [2, None]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, [None]),
        ],
        [helper.make_tensor("zero", TensorProto.FLOAT, [], [0])],
    )
    sets = (RowSet({"where": 1, "values": 0}, 4, (0.0, 0.0, 0.1)),)
    golden = Samples({"x": np.where(np.arange(8) < np.arange(5)[:, None, None], 0.5, -1).astype(np.float32)})
    found = [
        fixed_rows(sets, {"where": np.array(np.nonzero(x > 0)), "values": x[x > 0]})
        for x in golden.inputs["x"]
    ]
    expected = record({name: stacked([one[name] for one in found]) for name in sets[0].axes}, sets=sets)
    return written(
        folder, "finder", {"model/model.onnx": model_bytes(graph)}, golden, dump_arrays(expected),
        inputs=(TensorSpec("x", "float32", (1, 8)),),
        outputs=(TensorSpec("where", "int64", (2, 4)), TensorSpec("values", "float32", (4,))), sets=sets,
    )  # fmt: skip


def written(
    folder: Path, name: str, models: Mapping[str, bytes], golden: Samples, expected: bytes, **more: Any
) -> Built:
    """A bundle of a model and its golden data."""
    paths = ("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")
    files: dict[str, bytes | Path] = {
        **models, paths[0]: dump_npz(golden), paths[1]: expected, paths[2]: expected
    }  # fmt: skip
    manifest = Manifest(
        format=manifests.FORMAT, name=name, version="1", profile=PROFILE,
        engine=EngineSpec("onnxruntime", ">=1", next(iter(models)), threads=1),
        recipe="onnxruntime/fp32", source_sha256="0" * 64,
        files=tuple(bundles.file_entry(path, data) for path, data in files.items()),
        selftest=SelfTest(
            *paths, samples=len(golden), tolerance={spec.name: 1e-3 for spec in more["outputs"]}, agreement=1,
            found_again=(1.0,) if "sets" in more else UNSET,
        ), **more,
    )  # fmt: skip
    path = folder / manifest.filename
    digest = bundles.write(path, manifest, files)
    return Built(path, digest, path.stat().st_size, manifest)


def build_guarded(folder: Path, answer: GuardAnswer = "flag", **wanted: Any) -> Built:
    """As `build`, with a guard fitted on more of the golden inputs' kind."""
    plain_one = build(folder, **wanted)
    bundle = bundles.read(plain_one.path)
    manifest, extracted = bundle.manifest, folder / f"extracted-{plain_one.sha256[:12]}"
    bundle.extract(extracted)
    fit = [prepare(manifest.admitted, manifest.preprocess, {"x": each}) for each in digit_images(200, seed=9)]
    familiar = fitted(fit, manifest.admitted, 8)
    golden = selftest.golden_inputs(manifest, extracted)
    plain, turned = guard.distances(familiar, manifest.admitted, manifest.preprocess, golden)
    files = {entry.path: bundle.read(entry.path) for entry in manifest.files}
    files["guard/statistics.npz"] = dump_arrays(guard.dump(familiar, plain, turned))
    limit = 1.3 * max(plain + turned)
    section = Guard("guard/statistics.npz", ("x",), limit, 0.01, 0, 0, answer)
    changed = {
        "format": manifests.GUARD_FORMAT,
        "guard": section,
        "files": tuple(bundles.file_entry(name, data) for name, data in sorted(files.items())),
    }
    manifest = _replace(manifest, changed)
    path = folder / f"{answer}-{manifest.filename}"
    digest = bundles.write(path, manifest, files)
    return Built(path, digest, path.stat().st_size, manifest)


def build_lines(folder: Path) -> Built:
    """A bundle that doubles lines of up to 8 numbers, in buckets of 4 and 8."""
    models = {f"model/{size}.onnx": doubler_onnx(size) for size in (4, 8)}
    buckets = Buckets({"x": 1}, (4, 8), tuple(models))
    golden = Samples({"x": stacked([np.full((1, count), count, np.float32) for count in (2, 4, 5, 8)])})
    ready = [padded(buckets, row)["x"] for row in rows(golden.inputs)]
    expected = dump_arrays(record({"y": stacked([x + x for x in ready])}))
    paths = ("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")
    files: dict[str, bytes | Path] = {
        **models,
        paths[0]: dump_npz(golden),
        paths[1]: expected,
        paths[2]: expected,
    }
    manifest = Manifest(
        format=manifests.FORMAT, name="lines", version="1", profile=PROFILE,
        engine=EngineSpec("onnxruntime", ">=1", "model/8.onnx", threads=1),
        inputs=(TensorSpec("x", "float32", (1, 8)),), outputs=(TensorSpec("y", "float32", (1, None)),),
        recipe="onnxruntime/fp32", source_sha256="0" * 64,
        files=tuple(bundles.file_entry(path, data) for path, data in files.items()),
        selftest=SelfTest(*paths, samples=4, tolerance={"y": 1e-3}, agreement=1), buckets=buckets,
    )  # fmt: skip
    path = folder / manifest.filename
    digest = bundles.write(path, manifest, files)
    return Built(path, digest, path.stat().st_size, manifest)


def doubler_onnx(size: int) -> bytes:
    return model_bytes(
        helper.make_graph(
            [helper.make_node("Add", ["x", "x"], ["y"])],
            "doubler",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size])],
        )
    )


def pre_steps(scale: float) -> tuple[Step, ...]:
    return (
        Step("cast", {"dtype": "float32"}),
        Step("scale", {"factor": scale}),
        Step("reshape", {"shape": [1, 1, 8, 8]}),
    )


def _replace(manifest: Manifest, changed: Mapping[str, Any]) -> Manifest:
    import msgspec

    return msgspec.structs.replace(manifest, **changed)


def _run(folder: Path, manifest: Manifest, model: bytes, golden: Samples) -> dict[str, np.ndarray]:
    scratch = folder / "scratch"
    (scratch / "model").mkdir(parents=True, exist_ok=True)
    (scratch / "model" / "model.onnx").write_bytes(model)
    loaded = LoadedBundle(manifest, scratch)
    outputs, _ = selftest.run_samples(
        loaded.run, manifest.inputs, manifest.state, manifest.preprocess, golden
    )
    return outputs


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Built]:
    folder = tmp_path / "bundles"
    folder.mkdir()
    return lambda **wanted: build(folder, **wanted)


@pytest.fixture
def first(make_bundle: Callable[..., Built]) -> Built:
    return make_bundle(version="1.0.0", seed=1)


@pytest.fixture
def second(make_bundle: Callable[..., Built]) -> Built:
    return make_bundle(version="2.0.0", seed=2)


def staged(folder: DeploymentFolder, built: Built, name: slots.SlotName = "A") -> Path:
    """A slot as the updater leaves it."""
    folder.root.mkdir(parents=True, exist_ok=True)
    slots.stage(folder, name, bundles.read(built.path), built.target)
    return folder.slot(name)


@pytest.fixture
def stage() -> Callable[..., Path]:
    return staged


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        if isinstance(value, bytes):
            return self.ask("POST", path, value, headers)
        return self.ask(
            "POST", path, json.dumps(value).encode(), {"Content-Type": "application/json", **headers}
        )

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.connection.request(method, path, body, named)
        response = self.connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def predict(agent: Any) -> str | int:
    """The version that answers at an agent's port, or the status of its refusal."""
    answer = Client(agent.port).post("/predict", {"input": digit_images(1)[0].tolist()})
    return str(answer.json.get("version")) if answer.status == 200 else answer.status


def wait_until(condition: Callable[[], Any], message: str, patience_s: float = 40.0) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if value := condition():
                return value
        time.sleep(0.05)
    raise AssertionError(f"waited {patience_s:.0f} s for: {message}")


class Tools:
    """The helpers above for test modules, which cannot import a conftest."""

    Client = Client
    Built = Built
    Built = Built
    build = staticmethod(build)
    build_greedy = staticmethod(build_greedy)
    build_guarded = staticmethod(build_guarded)
    build_finder = staticmethod(build_finder)
    build_lines = staticmethod(build_lines)
    build_types = staticmethod(build_types)
    build_waves = staticmethod(build_waves)
    staged = staticmethod(staged)
    digit_images = staticmethod(digit_images)
    free_port = staticmethod(free_port)
    predict = staticmethod(predict)
    wait_until = staticmethod(wait_until)


@pytest.fixture
def tools() -> type[Tools]:
    return Tools


class WorkerHost:
    """A worker process and a listener that hands it every connection, as the supervisor does."""

    def __init__(self, slot: Path, deployment: str = "digits") -> None:
        import threading

        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "device_agent.worker", "--parent", str(os.getpid()),
             "--channel", str(theirs.fileno()), "--deployment", deployment, "--deployments", deployment, "--slot", slot, "--cache", slot.parent / "cache"],
            pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        self.told: queue.Queue[dict[str, Any]] | None = None
        self.first = self.receive()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        self.first_mb = self.peak_mb() if self.first["type"] == "ready" else 0.0

    def end_what_is_handed_back(self) -> None:
        """From now on, close connections whose request is not the worker's, as soon as it hands them back."""
        import threading

        self.told = queue.Queue()

        def listen() -> None:
            self.ours.settimeout(None)
            with contextlib.suppress(OSError):
                while packet := self.ours.recv(1 << 18):  # descriptors that nobody takes are closed
                    if packet[:1] == b"J":
                        self.told.put(json.loads(packet[1:]))

        threading.Thread(target=listen, daemon=True).start()

    def receive(self) -> dict[str, Any]:
        if self.told is not None:
            return self.told.get(timeout=30)
        self.ours.settimeout(30)
        packet = self.ours.recv(1 << 18)
        return json.loads(packet[1:]) if packet[:1] == b"J" else {"type": "connection"}

    def count(self) -> dict[str, Any]:
        """What was counted since the last call."""
        self.ours.send(b'J{"type":"snapshot"}')
        return self.receive()["window"]

    def serves(self) -> bool:
        """Whether a good request is answered, which is then taken out of the counts."""
        answer = Client(self.port).post("/predict", {"input": digit_images(1)[0].tolist()})
        self.count()
        return answer.status == 200

    def peak_mb(self) -> float:
        """The most memory that its process had resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                socket.send_fds(self.ours, [b"C"], [client.fileno()])
                client.close()

    def close(self) -> None:
        self.listener.close()
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_RDWR)
        self.ours.close()
        self.process.wait(10)


@pytest.fixture
def host_worker() -> Iterator[Callable[..., WorkerHost]]:
    hosts: list[WorkerHost] = []

    def start(slot: Path, deployment: str = "digits") -> WorkerHost:
        hosts.append(WorkerHost(slot, deployment))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


@pytest.fixture(scope="module")
def module_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerHost]:
    """One worker with the digits bundle for all tests of a module."""
    folder = tmp_path_factory.mktemp("worker")
    host = WorkerHost(staged(DeploymentFolder(folder / "d"), build(folder, sturdy=True)))
    host.end_what_is_handed_back()
    yield host
    host.close()


@dataclass
class FrontHost:
    """The agent's front with one real worker, in processes of their own."""

    process: "subprocess.Popen[bytes]"
    http: list[str]
    front: int
    worker: int

    @property
    def port(self) -> int:
        return int(self.http[0].rpartition(":")[2])

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)


def start_front(slot: Path, *words: str | Path, http: tuple[str, ...] = ("127.0.0.1:0",)) -> FrontHost:
    asked = [word for address in http for word in ("--http", address)]
    script = Path(__file__).with_name("hostile") / "front_host.py"
    process = subprocess.Popen(
        [sys.executable, script, "--slot", slot, *asked, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    return FrontHost(process, **json.loads(process.stdout.readline()))


@pytest.fixture
def host_front() -> Iterator[Callable[..., FrontHost]]:
    hosts: list[FrontHost] = []

    def start(*words: Any, **how: Any) -> FrontHost:
        hosts.append(start_front(*words, **how))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


@pytest.fixture(scope="module")
def module_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontHost]:
    """A front and one worker with the digits bundle for all tests of a module."""
    folder = tmp_path_factory.mktemp("front")
    host = start_front(staged(DeploymentFolder(folder / "d"), build(folder, sturdy=True)))
    yield host
    host.close()


IOTCORE = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
"""


class IotcoreBroker:
    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._config = folder / f"iotcore-{port}.toml"
        self._config.write_text(IOTCORE.format(port=port))
        self._broker: iotcore.Broker | None = None

    def start(self) -> None:
        self._broker = iotcore.Broker(config_path=str(self._config)).start()

    def stop(self) -> None:
        if self._broker is not None:
            self._broker.stop()
            self._broker = None


class MosquittoBroker:
    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._config = folder / f"mosquitto-{port}.conf"
        self._config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._process = subprocess.Popen([program, "-c", self._config], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture(scope="session")
def broker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broker")


@pytest.fixture(scope="session")
def broker(broker_folder: Path) -> Iterator[IotcoreBroker]:
    started = IotcoreBroker(broker_folder, free_port())
    started.start()
    yield started
    started.stop()


@pytest.fixture
def brokers() -> dict[str, type]:
    return {"iotcore": IotcoreBroker, "mosquitto": MosquittoBroker}
