"""A whole agent on an emulated ARM64 CPU: it joins, updates, serves and reports to a fleet that runs natively.

Supervisor, workers, self-tests and the TUF client are all arm64 programs under qemu's user mode, with an arm64 Python, numpy
and engine; the fleet and its broker are this machine's. Uses the emulator of the user's cache, and skips where none is set up.
"""

import http.client
import json
import os
import time
from pathlib import Path

import pytest
from desk import Desk
from ports import free_port

from converters.emulation import setup

pytestmark = pytest.mark.proof
CPU = "cortex-a76"
DEVICE = "pi-emulated"
# A profile whose bundles have no bound on latency: emulated times say nothing of a board.
PROFILE = "generic-arm64"
# An emulated start imports numpy and an engine in a minute on a busy machine.
PATIENCE_S = 600
# Where the user's emulator lies, before a test is given a cache of its own.
MACHINE = setup.installed()


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path / "edgekit")
    made.environment["EDGEKIT_FLEET"] = "fleet-state"
    try:
        yield made
    finally:
        made.stop_all()


@pytest.fixture
def python(tmp_path):
    """An arm64 Python that what it starts finds again: a program of this machine that runs it under qemu."""
    if MACHINE is None or not (MACHINE.folder / "site" / "paho").is_dir():
        pytest.skip("no emulator with what an agent needs is set up; run: edgekit emulator setup")
    root = MACHINE.folder / "root"
    program = tmp_path / "arm64" / "python"
    program.parent.mkdir()
    words = (
        f'"{MACHINE.qemu}" -L "{root}" -cpu {CPU} -0 "{program}" "{root}/usr/bin/python{MACHINE.meta.python}"'
    )
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return program


def device(desk):
    (found,) = json.loads(desk.run("edgekit fleet devices --json"))
    return found


def release(desk, version):
    desk.run(
        f"edgekit build --project examples/digits --target {PROFILE} --recipe onnxruntime/static-int8"
        f" --version {version} && edgekit fleet publish dist/digits-{version}-{PROFILE}.edgekit"
    )


def roll_out(desk, version, number):
    desk.run(
        f"edgekit fleet rollout start digits@{version} --to device={DEVICE} --stages 100% --soak 1s"
        " --gate 'install_failures < 1%'"
    )
    said = desk.run(
        f"edgekit fleet rollout watch r{number} --timeout {PATIENCE_S}",
        codes=(0, 3, 5),
        timeout_s=PATIENCE_S + 60,
    )
    assert "completed" in said, said + (desk.folder.parent / "agent.log").read_text()[-3000:]


def predict(desk):
    host, _, port = desk.agent.partition(":")
    image, label = desk.digits[0]
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request(
        "POST", "/predict", json.dumps({"input": image.tolist()}), {"Content-Type": "application/json"}
    )
    answer = json.loads(connection.getresponse().read())
    assert answer["label"] == str(label)
    return answer["version"]


def programs(pid):
    """Of every process of the emulated agent: how it was started."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        for task in Path(f"/proc/{one}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    return found


@pytest.mark.timeout(2400)  # two builds and an emulated engine, beside whatever else runs
def test_an_emulated_board_joins_updates_serves_and_reports(desk, python, record_property):
    took, began = {}, time.monotonic()

    def lap(what):
        took[what] = round(time.monotonic() - began, 1)
        record_property(what, took[what])

    desk.train()
    client = desk.folder / "fleet-state/client.toml"
    desk.start(
        "fleet",
        f"edgekit fleet up --state fleet-state --http 127.0.0.1:{free_port()} --mqtt 127.0.0.1:{free_port()}",
        lambda: client.is_file() and '"' in desk.run("edgekit fleet status --json", codes=(0, 5)),
    )
    release(desk, "1.0.0")
    desk.run(f"edgekit fleet enroll {DEVICE} --deployment digits --out device.json")
    lap("built, published, enrolled")

    native = {key: value for key, value in desk.environment.items() if not key.startswith(("PYTHON", "LD_"))}
    desk.environment, kept = (
        native | {"PYTHONPATH": os.pathsep.join((str(desk.folder), str(MACHINE.folder / "site")))},
        desk.environment,
    )
    desk.start(
        "agent",
        f"{python} -m edgekit agent run --enrolment device.json --state state --http {desk.agent} --window 5"
        f" --profile {PROFILE}",
        lambda: True,
    )
    desk.environment = kept
    desk.wait(lambda: device(desk)["online"], "the emulated board is online", timeout_s=PATIENCE_S)
    lap("joined")
    roll_out(desk, "1.0.0", 1)
    assert predict(desk) == "1.0.0"
    lap("first release")
    release(desk, "1.1.0")
    roll_out(desk, "1.1.0", 2)
    assert predict(desk) == "1.1.0"
    lap("second release")

    running = programs(desk.running["agent"].pid)
    assert len(running) >= 2
    assert all("qemu" in words for words in running)
    assert desk.stop("agent") == 0
    lap("stopped")
