"""Every install line of the README, in a fresh environment, by pip, as printed.

This is the one place where tests download: what they check is that a package registry can serve what the README says.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import readme

from edgekit.distribution import DISTRIBUTION, PROVIDERS, engine_extras

LINES = readme.installs(readme.text())
# Gigabytes: pip settles and names the whole set, and installs nothing. CI installs the same set for all other tests.
HEAVY = ("litert-convert", "tensorflow")
UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|ReadTimeoutError"
)
# Fresh environments of what others install too, or of much to download: with make proofs.
AGAIN = (
    "pkcs11",
    "oidc",
    "postgres",
    "audio",
    "camera",
    "microphone",
    "images",
    "litert",
    "tflite",
    "openvino",
    "onnxruntime",
)
# Extra → what must work once it is installed: a line of Python.
PROMISES = {
    "agent": "import device_agent.supervisor, device_agent.worker",
    "images": "from PIL import Image",
    "audio": "import soundfile",
    "camera": "import cv2; assert 'FFMPEG:                      YES' in cv2.getBuildInformation()",
    "microphone": "import sounddevice, soundfile",
    "fleet": "import fleet.server.service; from iotcore import Broker",
    "postgres": "import psycopg",
    "pkcs11": "import pkcs11",
    "oidc": "import fleet.server.oidc",
    "onnxruntime": "from edgekit.engines import _trial; _trial.attempt('onnxruntime')",
    "openvino": "from edgekit.engines import _trial; _trial.attempt('openvino')",
    "litert": "from edgekit.engines import _trial; _trial.attempt('litert'); import ai_edge_litert",
    "tflite": "from edgekit.engines import _trial; _trial.attempt('litert'); import tflite_runtime",
}


@dataclass(frozen=True)
class Place:
    """A fresh virtual environment."""

    folder: Path

    def run(self, *words: str | Path, cwd: Path = readme.ROOT) -> "subprocess.CompletedProcess[str]":
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        kept["PIP_NO_COMPILE"] = (
            "1"  # takes longer than all downloads, and changes nothing that is checked here
        )
        program, *rest = map(str, words)
        return subprocess.run(
            [str(self.folder / "bin" / program), *rest],
            capture_output=True, text=True, check=False, cwd=cwd, env=kept, timeout=540,
        )  # fmt: skip

    def install(self, line: str, *more: str) -> None:
        """Run the README's line. Skips where no registry can be reached, which says nothing about the line."""
        done = self.run(*shlex.split(line), "--quiet", *more)
        if done.returncode != 0 and UNREACHABLE.search(done.stderr):
            pytest.skip("no package registry can be reached")
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    return Place(tmp_path / "venv")


def extras(line: str) -> list[str]:
    (named,) = re.findall(r"\.\[([\w,-]+)\]", line)
    return str(named).split(",")


def is_heavy(line: str) -> bool:
    return not set(HEAVY).isdisjoint(extras(line))


def marked(line: str) -> object:
    return line if set(AGAIN).isdisjoint(extras(line)) else pytest.param(line, marks=pytest.mark.proof)


def test_the_readme_has_a_line_for_every_extra() -> None:
    import tomllib

    project = tomllib.loads((readme.ROOT / "pyproject.toml").read_text())["project"]
    shown = {extra for line in LINES for extra in extras(line)}
    assert shown == set(project["optional-dependencies"]) - {"dev"}
    assert {name for line in LINES if not is_heavy(line) for name in extras(line)} == set(PROMISES)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if is_heavy(line)])
def test_pip_finds_the_tested_set_of_a_large_line(line: str, place: Place, tmp_path: Path) -> None:
    place.install(line, "--dry-run", "--report", str(tmp_path / "report.json"))
    chosen = {
        canonical(entry["metadata"]["name"]): entry["metadata"]["version"].partition("+")[0]
        for entry in json.loads((tmp_path / "report.json").read_text())["install"]
    }
    lines = (readme.ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if "==" in line]
    pinned = {canonical(name): version.strip() for name, _, version in pins}
    assert chosen.pop(DISTRIBUTION)
    assert {name: pinned.get(name) for name in chosen} == chosen


@pytest.mark.slow
@pytest.mark.parametrize("line", [marked(line) for line in LINES if not is_heavy(line)])
def test_a_line_installs_what_it_promises(line: str, place: Place, tmp_path: Path) -> None:
    if "tflite" in extras(line) and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime has no build for this Python")
    place.install(line)
    checked = place.run("pip", "check")
    assert checked.returncode == 0, checked.stdout
    for extra in extras(line):
        done = place.run("python", "-c", PROMISES[extra], cwd=tmp_path)
        assert done.returncode == 0, f"{extra}: {done.stderr}"
    helped = place.run("edgekit", "--help", cwd=tmp_path)
    assert helped.returncode == 0, helped.stderr
    if "agent" in extras(line):
        the_doctor_finds_just_its_engine(place, tmp_path, line)
    if "fleet" in extras(line):
        assert place.run("edgekit", "fleet", "up", "--help", cwd=tmp_path).returncode == 0
    what_is_missing_is_named_and_can_be_resolved(place, tmp_path, line)


def the_doctor_finds_just_its_engine(place: Place, folder: Path, line: str) -> None:
    done = place.run("edgekit", "agent", "doctor", "--state", "state", "--json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (engines,) = (check for check in json.loads(done.stdout) if check["name"] == "engines")
    expected = [name for name, modules in PROVIDERS.items() if set(modules.values()) & set(extras(line))]
    assert engines["state"] == "good"
    assert [found.split()[0] for found in engines["found"].split(", ")] == expected


def what_is_missing_is_named_and_can_be_resolved(place: Place, folder: Path, line: str) -> None:
    """An error's advice is a command that pip takes where EdgeKit is installed from this checkout."""
    absent = "openvino" if "openvino" not in extras(line) else "onnxruntime"
    code = f"from edgekit import engines; engines.get({absent!r})"
    done = place.run("python", "-c", code, cwd=folder)
    assert f"{absent} is not installed here; {engine_extras(absent)}" in done.stderr
    if "images" not in extras(line):
        return
    advised = shlex.split(engine_extras(absent))
    resolved = place.run(*advised, "--quiet", "--dry-run", "--report", folder / "advice.json", cwd=folder)
    assert resolved.returncode == 0, resolved.stderr
    names = {
        entry["metadata"]["name"] for entry in json.loads((folder / "advice.json").read_text())["install"]
    }
    assert absent in names
    assert "edgekit" not in names


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
