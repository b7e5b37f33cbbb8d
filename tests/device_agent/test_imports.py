"""What the agent's processes load, and that the wheel's agent extra is enough to run it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEVER = {"torch", "onnx", "nncf", "litert_torch", "sqlalchemy", "fastapi", "uvicorn"}
ENGINES = {"numpy", "onnxruntime", "openvino", "ai_edge_litert"}


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["device_agent.supervisor", "device_agent.cli"])
def test_the_supervisor_loads_neither_numpy_nor_an_engine(module):
    assert not (NEVER | ENGINES) & loaded_by(f"import {module}")


def test_the_worker_loads_no_build_tool_and_no_link():
    loaded = loaded_by("import device_agent.worker")
    assert "numpy" in loaded
    assert not (NEVER | {"paho", "cryptography"}) & loaded


@pytest.mark.parametrize("module", ["device_agent.sources.process", "device_agent.sources.folder"])
def test_a_source_loads_no_engine_and_no_numpy_until_it_needs_it(module):
    assert not (NEVER | ENGINES | {"cv2", "sounddevice", "tuf"}) & loaded_by(f"import {module}")


def test_only_the_link_and_the_brokers_of_sources_speak_mqtt():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "device_agent").rglob("*.py")
        if "import paho" in path.read_text() or "from paho" in path.read_text()
    }
    assert users == {"device_agent/link.py", "device_agent/sources/broker.py"}


@pytest.mark.slow
def test_the_agent_runs_from_the_wheel_with_nothing_but_its_extra(tmp_path):
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(uv).exists():
        pytest.skip("uv is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}

    def run(*words):
        return subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
        )

    built = run(uv, "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT)
    if built.returncode != 0 and "resolve" in built.stderr:
        pytest.skip(f"no package registry can be reached: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    bare = tmp_path / "bare"
    assert run(uv, "venv", "--python", sys.executable, bare).returncode == 0
    python = bare / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    pinned = ["-c", constraints] if constraints.is_file() else []
    installed = run(uv, "pip", "install", "--python", python, *pinned, f"{wheel}[agent,onnxruntime]")
    if installed.returncode != 0:
        pytest.skip(f"no package registry can be reached: {installed.stderr.strip().splitlines()[-1]}")
    listed = {
        package["name"]
        for package in json.loads(run(uv, "pip", "list", "--python", python, "--format", "json").stdout)
    }
    assert not listed & {
        "torch",
        "onnx",
        "nncf",
        "openvino",
        "litert-torch",
        "sqlalchemy",
        "fastapi",
        "uvicorn",
    }
    doctor = run(bare / "bin" / "edgekit", "agent", "doctor", "--state", tmp_path / "state", "--json")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    checks = {check["name"]: check for check in json.loads(doctor.stdout)}
    assert checks["engines"]["found"].startswith("onnxruntime ")
    refused = run(bare / "bin" / "edgekit", "agent", "run", "--state", tmp_path / "state")
    assert refused.returncode == 2
    assert "has not joined a fleet yet" in refused.stderr
