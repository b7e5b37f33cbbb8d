"""A real fleet, a real board and a real build: what is estimated becomes measured, and a wrong pick is put right."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from fleet_support import Service, free_port, wait_until
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from edgekit import evidence

TARGET = "raspberry-pi-5"


def edgekit(service: Service, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *words],
        env={**os.environ, "EDGEKIT_FLEET": str(service.state)},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == code, (
        f"{words}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def write_model(path: Path) -> None:
    """Wide layers: eight bits are clearly faster than floats wherever it runs."""
    rng, sizes, nodes, weights, last = np.random.default_rng(0), [64, 1024, 1024, 1024, 1024, 10], [], [], "x"
    for number, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        made = (rng.normal(size=(rows, columns)) * np.sqrt(2 / rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(made, f"w{number}"))
        out = "logits" if columns == 10 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [out]))
        if columns != 10:
            nodes.append(helper.make_node("Relu", [out], [f"r{number}"]))
        last = f"r{number}"
    ends = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, w])] for n, w in (("x", 64), ("logits", 10))
    )
    graph = helper.make_graph(nodes, "wide", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def mispicked(dist: Path, out: Path, wrong: str) -> Path:
    """The same bundles, as a build would leave them that had picked another."""
    for path in [*dist.glob("*.edgekit"), *dist.glob("alternates/*/*.edgekit")]:
        told = evidence.decode(evidence.beside(path).read_bytes())
        candidates = tuple(
            replace(one, status="picked" if one.recipe == wrong else "alternate")
            if one.status in ("picked", "alternate")
            else one
            for one in told.predicate.candidates
        )
        recipe = told.predicate.recipe
        folder = out if recipe == wrong else out / "alternates" / recipe.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
        told = replace(told, predicate=replace(told.predicate, candidates=candidates))
        evidence.beside(folder / path.name).write_bytes(evidence.encode(told))
    return out


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_a_build_and_a_release_are_measured_by_a_real_board(running: Service, tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    inputs = np.random.default_rng(1).normal(size=(128, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=inputs)
    data, file = str(tmp_path / "data.npz"), tmp_path / "lab-07.json"
    build = (
        "build", str(tmp_path / "model.onnx"), "--name", "digits", "--version", "1.0.0", "--shape", "x=1,64",
        "--calibration", data, "--evaluation", data, "--metric", "cosine", "--max-accuracy-drop", "0.05",
        "--target", TARGET, "--recipe", "onnxruntime/*", "--out", str(tmp_path / "dist"), "--jobs", "0",
        "--cache", str(tmp_path / "cache"), "--on-device", "lab-07",
    )  # fmt: skip
    edgekit(running, "fleet", "enroll", "lab-07", "--deployment", "digits", "--out", str(file))
    assert "latency estimated" in edgekit(running, *build, "--json", str(tmp_path / "result.json"))
    [sheet] = json.loads((tmp_path / "result.json").read_text())["profiles"]
    assert "nobody would hear it" in " ".join(sheet["notes"])
    agent = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "agent", "run", "--enrolment", str(file), "--state", str(tmp_path / "agent"),
         "--http", f"127.0.0.1:{free_port()}", "--profile", TARGET, "--window", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        with running.client() as client:
            wait_until(lambda: client.explain("lab-07").device.online, "the board is online", timeout_s=120)
        assert "measured on lab-07" in edgekit(running, *build, "--json", str(tmp_path / "result.json"))
        rows = json.loads((tmp_path / "result.json").read_text())["bundles"]
        assert {row["latency_ms"]["on"]["device"] for row in rows} == {"lab-07"}
        [picked] = [row for row in rows if not row["alternate"]]
        assert (
            picked["latency_ms"]["p50"] == min(row["latency_ms"]["p50"] for row in rows)
            or "int8" in picked["recipe"]
        )
        with running.client() as client:
            assert client.releases() == []
        wrong = mispicked(tmp_path / "dist", tmp_path / "wrong", "onnxruntime/fp32")
        edgekit(running, "fleet", "publish", str(wrong))
        tune = ("fleet", "tune", "digits@1.0.0", "--profile", TARGET, "--on", "online=yes", "--json")
        done = json.loads(edgekit(running, *tune))
        assert "int8" in done["recipes"][done["picked"]]
        assert done["ratios"][done["picked"]][2] < 1
        with running.client() as client:
            assert client.bundle("digits", "1.0.0", TARGET).sha256 == done["picked"]
            told = evidence.decode(client.statement(done["picked"]), sha256=done["picked"]).predicate
        assert (told.latency_p50_ms.how, told.latency_p50_ms.on.device) == ("measured", "lab-07")
        assert "exit" not in edgekit(
            running, "fleet", "device", "command", "log-level", "lab-07", "debug", "--wait"
        )
        edgekit(running, "fleet", "device", "command", "self-test", "lab-07", "--wait", code=5)
    finally:
        agent.terminate()
        agent.wait(30)


@pytest.mark.proof
def test_virtual_devices_answer_commands(running: Service) -> None:
    simulation = running.simulated(1, "--duration", "120s")
    try:
        with running.client() as client:
            wait_until(lambda: any(one.online for one in client.devices()), "it is there", timeout_s=90)
            [device] = [one.device for one in client.devices()]
        assert "done" in edgekit(running, "fleet", "device", "command", "restart", device, "--wait")
        edgekit(running, "fleet", "device", "command", "self-test", device, "--wait", code=5)
    finally:
        simulation.terminate()
        simulation.wait(30)
