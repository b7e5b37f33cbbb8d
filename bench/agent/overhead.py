"""What an inference through the agent costs over a bare engine call, in one run on one machine.

One real agent, enrolled with a real fleet service, serves the digits bundle; the same bundle is loaded in this process.
Bare calls and HTTP calls (Open Inference Protocol v2 with binary tensors, one kept-alive connection) alternate in
blocks, so that a slow moment of the machine hits both. Prints milliseconds and their ratio; the overhead includes the
caller, which is Python's own HTTP client.

Run:  make bench   (or: python bench/agent/overhead.py BUNDLE, with any stateless bundle)
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgekit import bundle
from edgekit.detect import cpu_name
from edgekit.engines import LoadedBundle
from edgekit.manifest import Manifest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "digits"))
from agents import DemoAgent, free_port  # noqa: E402  # the example's folder is no package

BLOCKS, CALLS = 20, 100
PATIENCE_S = 120


def edgekit(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, words)], check=True, capture_output=True, text=True
    )
    return done.stdout


def build(folder: Path, *words: str) -> Path:
    """The example's bundle, from the build cache where that has it."""
    example = ROOT / "examples" / "digits"
    if not (example / "weights" / "small.pt").is_file():
        subprocess.run([sys.executable, example / "digits.py", "small"], check=True)
    edgekit("build", "--project", example, "--target", "x86-64-v3", "--out", folder, *words)
    return folder / "digits-1.0.0-x86-64-v3.edgekit"


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the agent did not come up in time")
        time.sleep(0.2)


def start(stack: ExitStack, folder: Path, path: Path, manifest: Manifest) -> DemoAgent:
    """A fleet service, one agent, and the bundle rolled out to it."""
    fleet, enrolment = folder / "fleet", folder / "board.json"
    with (folder / "fleet.log").open("w") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "edgekit", "fleet", "up", "--state", fleet, "--http", f"127.0.0.1:{free_port()}",
             "--mqtt", f"127.0.0.1:{free_port()}"], stdout=log, stderr=log,
        )  # fmt: skip
    stack.callback(service.wait)
    stack.callback(service.terminate)
    wait((fleet / "client.toml").is_file)
    edgekit("fleet", "--fleet", fleet, "enroll", "board", "--deployment", manifest.name, "--out", enrolment)
    agent = DemoAgent("board", folder / "board", enrolment, manifest.profile, folder / "agent.log")
    agent.start()
    stack.callback(agent.process.wait)
    stack.callback(agent.process.terminate)
    wait(
        lambda: all(d["online"] for d in json.loads(edgekit("fleet", "--fleet", fleet, "devices", "--json")))
    )
    edgekit("fleet", "--fleet", fleet, "publish", path)
    edgekit("fleet", "--fleet", fleet, "rollout", "start", f"{manifest.name}@{manifest.version}", "--to", "all",
            "--stages", "100%", "--soak", "1s", "--gate", "error_rate < 1%", "--probation", "1s")  # fmt: skip
    wait(lambda: is_ready(agent.port, manifest.name))
    return agent


def is_ready(port: int, name: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", f"/v2/models/{name}/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def binary_request(manifest: Manifest, inputs: dict[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a v2 request ("Binary tensor data extension": JSON head, then raw tensors)."""
    names = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8", "int32": "INT32"}
    head = json.dumps({
        "inputs": [
            {"name": spec.name, "shape": list(inputs[spec.name].shape), "datatype": names[spec.dtype],
             "parameters": {"binary_data_size": inputs[spec.name].nbytes}}
            for spec in manifest.inputs
        ],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    body = head + b"".join(inputs[spec.name].tobytes() for spec in manifest.inputs)
    return body, {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }


def timed(call: Callable[[], None]) -> list[float]:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        path = chosen.bundle or build(folder)
        found = bundle.read(path)
        manifest = found.manifest
        found.extract(folder / "bare")
        model = LoadedBundle(manifest, folder / "bare")
        generator = np.random.default_rng(0)
        inputs = {
            spec.name: generator.random(spec.shape, np.float32).astype(spec.dtype) for spec in manifest.inputs
        }
        agent = start(stack, folder, path, manifest)
        connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=10)
        body, headers = binary_request(manifest, inputs)

        def over_http() -> None:
            connection.request("POST", f"/v2/models/{manifest.name}/infer", body, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise SystemExit(f"the agent answered {response.status}: {answer[:200]!r}")

        def bare() -> None:
            model.run(inputs)

        timed(bare), timed(over_http)  # warm up
        blocks = [(timed(bare), timed(over_http)) for _ in range(BLOCKS)]
        direct = statistics.median(value for block, _ in blocks for value in block)
        served = statistics.median(value for _, block in blocks for value in block)
        gaps = sorted(statistics.median(b) - statistics.median(a) for a, b in blocks)
        print(f"{manifest.title}, {manifest.recipe}, on {cpu_name()}; {BLOCKS} blocks of {CALLS} calls each")
        print(f"bare engine call      p50 {direct:.3f} ms")
        print(f"through the agent     p50 {served:.3f} ms (HTTP, binary tensors, one connection)")
        print(
            f"overhead a call       {statistics.median(gaps):.3f} ms (blocks: {gaps[0]:.3f} to {gaps[-1]:.3f})"
        )
        print(f"ratio                 {served / direct:.1f}x")


if __name__ == "__main__":
    main()
