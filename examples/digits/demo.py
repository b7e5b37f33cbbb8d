"""The whole of EdgeKit on one machine: train, build, start a fleet, and roll five releases out to real agents.

Everything runs as a user would run it: the `edgekit` command, real processes, HTTP and MQTT on loopback. Nothing is
staged; what goes wrong goes wrong inside a bundle:

1. `hasty`, barely trained, goes out in two stages and completes,
2. `small`, trained to the end, replaces it,
3. `heavy`, built in float and without a latency budget, passes its self-test and is stopped by a gate on latency at its first
   stage, then rolled back,
4. `small` again but with a wrong normalization is refused by the devices' own self-test,
5. `retrained`, trained on samples that the devices brought back after their inputs had drifted, gets right again what
   `small` no longer did (`drifting.py`).

The fleet is too small for a control group, so the gates here are absolute. Ends with exit code 0 only if every
expectation held.  Run:  python demo.py [--folder demo-run] [--agents 4]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import drifting
from agents import DemoAgent, Traffic, free_port
from digits import evaluation
from misnormalize import misnormalize
from rich.table import Table
from saying import console, edgekit, expect, fail, stop

HERE = Path(__file__).parent
PROFILE = "x86-64-v3"
TARGETS = (PROFILE, "raspberry-pi-5", "intel-core-ultra-npu")
# The median, which a busy machine moves least: these boards share two cores with everything else here. What is good
# takes a fraction of this even so, and what is far heavier several times as much even alone.
LATENCY_GATE = "latency_p50 <= 5ms min 30 requests"
# One device proves no less with these few requests; a release that fails each twentieth one is what it finds.
ERROR_GATE = "error_rate < 5% min 30 requests"
SOAK = "6s"
PATIENCE_S = 120


class Demo:
    def __init__(self, folder: Path, agents: int, stack: ExitStack) -> None:
        self.folder = folder
        self.profile = PROFILE
        self.agents_wanted = agents
        self.stack = stack
        self.fleet = folder / "fleet"
        self.agents: list[DemoAgent] = []

    # -- building ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        console.rule("1  train on real handwritten digits")
        subprocess.run([sys.executable, HERE / "digits.py"], check=True)

    def build(self) -> None:
        console.rule("2  build for three kinds of board")
        self.build_one("1.0.0", "hasty", (PROFILE,), "--recipe", "onnxruntime/*")
        self.build_one("2.0.0", "small", TARGETS)
        self.build_one(
            "3.0.0", "heavy", (PROFILE,), "--calibration", f"{HERE / 'digits.py'}:a_few_for_calibration",
            "--evaluation", f"{HERE / 'digits.py'}:a_few_for_evaluation", "--max-accuracy-drop", "0.05",
            "--recipe", "onnxruntime/fp32",
        )  # fmt: skip
        good = self.bundle("2.0.0")
        misnormalize(good, self.bundle("4.0.0"), version="4.0.0")
        console.print(
            f"4.0.0 is 2.0.0 with its normalization off by a factor of eight: {self.bundle('4.0.0').name}"
        )

    def build_one(self, version: str, source: str, targets: tuple[str, ...], *more: str | Path) -> None:
        chosen = [word for target in targets for word in ("--target", target)]
        edgekit(
            "build", f"{HERE / 'digits.py'}:{source}", "--project", HERE / "edgekit.toml", "--version", version,
            "--out", self.folder / "dist", "--json", self.folder / f"build-{version}.json", *chosen, *more,
        )  # fmt: skip
        result = json.loads((self.folder / f"build-{version}.json").read_text())
        built = {bundle["profile"] for bundle in result["bundles"]}
        expect(set(targets) <= built, f"{version} ({source}): bundles for {', '.join(targets)}")

    def bundle(self, version: str) -> Path:
        return self.folder / "dist" / f"digits-{version}-{PROFILE}.edgekit"

    # -- the fleet -----------------------------------------------------------------------------------------------

    def start_fleet(self) -> None:
        console.rule("3  start the broker and the fleet service")
        http, mqtt = free_port(), free_port()
        command = [
            "fleet",
            "up",
            "--state",
            str(self.fleet),
            "--http",
            f"127.0.0.1:{http}",
            "--mqtt",
            f"127.0.0.1:{mqtt}",
        ]
        console.print(f"[bold]$ edgekit {' '.join(command)} &[/]")
        log = self.stack.enter_context((self.folder / "fleet.log").open("w"))
        process = subprocess.Popen([sys.executable, "-m", "edgekit", *command], stdout=log, stderr=log)
        self.stack.callback(stop, process)
        self.wait(lambda: self._fleet_answers(process), "the fleet service answers")

    def _fleet_answers(self, process: "subprocess.Popen[bytes]") -> bool:
        if process.poll() is not None:
            fail(f"the fleet service ended: {(self.folder / 'fleet.log').read_text()[-2000:]}")
        if not (self.fleet / "client.toml").is_file():
            return False
        words = [sys.executable, "-m", "edgekit", "fleet", "--fleet", str(self.fleet), "devices", "--json"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def call(self, *arguments: str | Path, quiet: bool = False) -> str:
        return edgekit("fleet", "--fleet", self.fleet, *arguments, quiet=quiet)

    def ask(self, *arguments: str | Path) -> Any:
        return json.loads(self.call(*arguments, "--json", quiet=True))

    def start_agents(self) -> None:
        console.rule(f"4  enrol and start {self.agents_wanted} agents")
        for number in range(1, self.agents_wanted + 1):
            name = f"board-{number}"
            enrolment = self.folder / f"{name}.json"
            self.call(
                "enroll",
                name,
                "--label",
                "site=lab",
                "--deployment",
                "digits",
                "--out",
                enrolment,
                quiet=number > 1,
            )
            agent = DemoAgent(name, self.folder / name, enrolment, PROFILE, self.folder / f"{name}.log")
            agent.start()
            self.stack.callback(stop, agent.process)
            self.agents.append(agent)
        self.wait(lambda: sum(device["online"] for device in self.ask("devices")) == len(self.agents),
                  f"{len(self.agents)} agents are online")  # fmt: skip

    # -- releases ------------------------------------------------------------------------------------------------

    def roll_out(self, version: str, title: str) -> dict[str, Any]:
        """Publish, start, wait for the end; the rollout's last status."""
        console.rule(title)
        self.call("publish", self.bundle(version))
        started = self.ask(
            "rollout", "start", f"digits@{version}", "--to", "site=lab", "--stages", "1,100%", "--soak", SOAK,
            "--gate", ERROR_GATE, "--gate", LATENCY_GATE, "--holdback", "0", "--probation", "2s", "--deadline", "90s",
        )  # fmt: skip
        identifier = str(started["rollout"]["id"])
        shown = ""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status: dict[str, Any] = self.ask("rollout", "status", identifier)
            moved = [member for member in status["members"] if member["state"] != "pending"]
            devices = ", ".join(f"{member['device']} {member['state']}" for member in moved)
            line = f"  {status['status']}, stage {status['stage']} · {devices or 'nobody ordered yet'}"
            if line != shown:
                console.print(line, markup=False)
                shown = line
            if status["status"] in ("completed", "rolled_back", "aborted", "paused"):
                self.call("rollout", "status", identifier)
                return status
            if time.monotonic() > deadline:
                fail(f"the rollout of {version} did not end within {PATIENCE_S} s; see {self.folder}")
            time.sleep(0.5)

    def run_releases(self) -> None:
        traffic = Traffic(self.agents, list(evaluation()))
        self.stack.callback(traffic.stop)
        traffic.start()
        first = self.roll_out("1.0.0", "5  release 1, barely trained, goes out in stages")
        expect(first["status"] == "completed", "release 1 completed")
        self.expect_all_run("1.0.0")
        before = self.classify(traffic, "1.0.0")
        second = self.roll_out("2.0.0", "6  release 2, trained to the end, replaces it")
        expect(second["status"] == "completed", "release 2 completed")
        self.expect_all_run("2.0.0")
        after = self.classify(traffic, "2.0.0")
        expect(after > before, f"digits got right through the agents: {before:.1%} before, {after:.1%} after")
        third = self.roll_out("3.0.0", "7  release 3, far too slow, is stopped by a gate")
        expect(third["status"] == "rolled_back", f"release 3 was rolled back: {third['reason']}")
        expect("latency" in third["reason"], "the gate that stopped it was the one on latency")
        touched = [member["device"] for member in third["members"] if member["state"] != "pending"]
        expect(
            len(touched) == 1, f"it reached one device, {', '.join(touched)}, and never left its first stage"
        )
        self.expect_all_run("2.0.0")
        fourth = self.roll_out("4.0.0", "8  release 4, wrongly normalized, is refused by the device itself")
        expect(fourth["status"] in ("rolled_back", "paused"), f"release 4 was stopped: {fourth['reason']}")
        self.expect_all_run("2.0.0")
        drifting.act(self, traffic)
        expect(traffic.failures == 0, f"none of {traffic.answered} requests was lost through all of it")

    def classify(self, traffic: Traffic, version: str) -> float:
        """Accuracy of a few hundred answers given by one release."""
        wanted = 300
        traffic.reset()
        self.wait(lambda: traffic.counted >= wanted, f"{wanted} digits classified over HTTP by {version}")
        return traffic.accuracy

    def expect_all_run(self, version: str) -> None:
        def versions() -> list[str]:
            return [device["deployments"]["digits"]["version"] for device in self.ask("devices")]

        self.wait(
            lambda: versions() == [version] * len(self.agents),
            f"every agent has loaded and committed {version}",
        )

    def show_end(self) -> None:
        console.rule("11  the end state")
        self.call("devices")
        self.call("releases")
        self.call("rollout", "list")
        table = Table(title="telemetry that arrived")
        for heading in ("device", "requests", "errors", "p50 ms", "p95 ms"):
            table.add_column(heading, justify="left" if heading == "device" else "right")
        devices = self.ask("devices")
        for device in devices:
            seen = device["telemetry"]
            table.add_row(device["device"], str(seen["requests"]), str(seen["errors"]),
                          f"{seen['infer_ms_p50']:.2f}", f"{seen['infer_ms_p95']:.2f}")  # fmt: skip
        console.print(table)
        expect(
            all(device["telemetry"]["requests"] > 0 for device in devices),
            "telemetry of every agent is in the database",
        )

    def wait(self, condition: Callable[[], bool], message: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                fail(f"waited {patience_s} s for: {message}; logs are in {self.folder}")
            time.sleep(0.3)
        console.print(f"  [green]✓[/] {message}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo-run"), help="where everything is kept (made anew)"
    )
    parser.add_argument("--agents", type=int, default=4)
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    if folder.exists() and not (folder / ".edgekit-demo").exists():
        fail(f"{folder} exists and was not made by this demo; give another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".edgekit-demo").touch()
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            demo = Demo(folder, chosen.agents, stack)
            demo.train()
            demo.build()
            demo.start_fleet()
            demo.start_agents()
            demo.run_releases()
            demo.show_end()
    except KeyboardInterrupt:
        console.print("[red]interrupted[/]; every process of the demo was stopped")
        sys.exit(130)
    console.print(f"[bold green]The demo did what it promised[/] in {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
