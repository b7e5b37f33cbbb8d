"""What an agent takes of a board, by engine: disk, memory, processor at rest, and time to the first answer.

For each engine an environment of its own with what the README has a device install, a bundle built for that engine, a real
fleet service, and an agent in that environment that gets the bundle rolled out. Then it is stopped and started again: from
the start of its process to the first right answer over HTTP is `start s`. PSS and CPU are those of the whole tree of the
agent's processes, over `--window` seconds in which nothing is asked of it, with a report each 60 s as usual.

Run:  python bench/agent/footprint.py [ENGINE…] [--window 60] [--json FILE]

Needs uv and a package index. Start-up depends on the machine and its disk's cache; disk and memory hardly do.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import overhead
from overhead import ROOT, edgekit
from serving import descendants, pss_mb

from edgekit import bundle
from edgekit.detect import cpu_name
from edgekit.manifest import Manifest

# Engine → the recipe that its bundle is built by, and the extra that a device installs.
ENGINES = {
    "onnxruntime": ("onnxruntime/static-int8", "onnxruntime"),
    "openvino": ("openvino/static-int8", "openvino"),
    "litert": ("litert/static-int8", "litert"),
    "tflite-runtime": ("litert/static-int8", "tflite"),
}
STARTS = 3
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """Megabytes, per cent of one processor, seconds."""

    engine: str
    disk_mb: float
    engine_disk_mb: float
    pss_mb: float
    supervisor_pss_mb: float
    idle_cpu_percent: float
    start_s: float


def environment(folder: Path, extra: str) -> Path:
    """A virtual environment with the agent and one engine; its Python."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    # tflite-runtime's numpy is older than the one of the constraints.
    pins = [] if extra == "tflite" else ["-c", ROOT / "constraints.txt"]
    words = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        folder / "bin/python",
        *pins,
        f"{ROOT}[agent,{extra}]",
    ]
    subprocess.run(words, check=True)
    return folder / "bin" / "python"


def disk_mb(*folders: Path) -> float:
    """What files take on disk, in blocks."""
    files = (
        path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )
    return sum(path.stat().st_blocks for path in files) * 512 / 1e6


def without_engine_mb(folder: Path) -> float:
    """The agent's own share: what it would take without an engine and numpy."""
    site = next(folder.glob("lib/python*/site-packages"))
    heavy = ("onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "numpy")
    return disk_mb(site) - disk_mb(*(path for path in site.iterdir() if path.name.startswith(heavy)))


class Running:
    """An agent of an environment, on a state folder that is kept."""

    def __init__(self, python: Path, folder: Path, enrolment: Path, profile: str) -> None:
        self.port = overhead.free_port()
        self.words = [python, "-m", "edgekit", "agent", "run", "--enrolment", enrolment, "--state", folder / "state",
                      "--http", f"127.0.0.1:{self.port}", "--profile", profile]  # fmt: skip
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        # Nothing of this checkout: what was installed is what runs.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.words, stdout=log, stderr=log, env=kept, cwd="/")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def answers(self, body: bytes) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def cpu_s(self) -> float:
        total = 0
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
        return total / TICKS


def started_s(agent: Running, body: bytes) -> float:
    """From the process's start to the first answer."""
    agent.start()
    began = time.monotonic()
    while not agent.answers(body):
        if time.monotonic() - began > overhead.PATIENCE_S:
            raise SystemExit(f"no answer; {agent.log} says why")
        time.sleep(0.01)
    return time.monotonic() - began


def measured(stack: ExitStack, folder: Path, engine: str, window_s: float) -> Row:
    recipe, extra = ENGINES[engine]
    path = overhead.build(folder / "dist", "--recipe", recipe)
    manifest = bundle.read(path).manifest
    python = environment(folder / "environment", extra)
    agent, body = rolled_out(stack, folder, path, manifest, python)
    agent.stop()
    times = []
    for _ in range(STARTS):
        times.append(started_s(agent, body))
        if len(times) < STARTS:
            agent.stop()
    # What a start leaves to do is done by then.
    time.sleep(5)
    before = agent.cpu_s()
    time.sleep(window_s)
    cpu = (agent.cpu_s() - before) / window_s * 100
    tree, alone = pss_mb(agent.process.pid), pss_alone_mb(agent.process.pid)
    agent.stop()
    total, own = disk_mb(folder / "environment"), without_engine_mb(folder / "environment")
    return Row(engine, total, total - own, tree, alone, cpu, sorted(times)[STARTS // 2])


def pss_alone_mb(pid: int) -> float:
    return pss_mb(pid) - sum(pss_mb(child) for child in children(pid))


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def rolled_out(
    stack: ExitStack, folder: Path, path: Path, manifest: Manifest, python: Path
) -> tuple[Running, bytes]:
    """A fleet of one agent that has committed the bundle, and a request that it answers."""
    fleet, enrolment = folder / "fleet", folder / "board.json"
    with (folder / "fleet.log").open("w") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "edgekit", "fleet", "up", "--state", fleet, "--http",
             f"127.0.0.1:{overhead.free_port()}", "--mqtt", f"127.0.0.1:{overhead.free_port()}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    stack.callback(service.wait)
    stack.callback(service.terminate)
    overhead.wait((fleet / "client.toml").is_file)
    to_fleet = ("fleet", "--fleet", fleet)
    edgekit(*to_fleet, "enroll", "board", "--deployment", manifest.name, "--out", enrolment)
    agent = Running(python, folder, enrolment, manifest.profile)
    agent.start()
    stack.callback(agent.stop)
    edgekit(*to_fleet, "publish", path)
    overhead.wait(
        lambda: [one["online"] for one in json.loads(edgekit(*to_fleet, "devices", "--json"))] == [True]
    )
    edgekit(*to_fleet, "rollout", "start", f"{manifest.name}@{manifest.version}", "--to", "device=board",
            "--stages", "100%", "--soak", "1s", "--gate", "install_failures < 1%")  # fmt: skip
    body = json.dumps({"input": [[0.0] * 8] * 8}).encode()
    overhead.wait(lambda: agent.answers(body))
    edgekit(*to_fleet, "rollout", "watch", "r1", "--timeout", "180")
    return agent, body


def show(rows: list[Row], window_s: float) -> None:
    print(
        f"\n{cpu_name()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {window_s:g} s at rest"
    )
    print(
        "| engine | disk MB | of it engine and numpy | PSS MB | of it supervisor | CPU at rest % | start s |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.engine} | {row.disk_mb:.0f} | {row.engine_disk_mb:.0f} | {row.pss_mb:.0f} |"
            f" {row.supervisor_pss_mb:.0f} | {row.idle_cpu_percent:.2f} | {row.start_s:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="*", choices=[*ENGINES, []], help="by default all")
    parser.add_argument("--window", type=float, default=60.0, help="seconds at rest")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    for engine in chosen.engines or ENGINES:
        with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="edgekit-footprint-") as folder:
            rows.append(measured(stack, Path(folder), engine, chosen.window))
            show(rows[-1:], chosen.window)
    show(rows, chosen.window)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
