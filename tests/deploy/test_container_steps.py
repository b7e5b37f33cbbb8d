"""deploy/container/agent.Containerfile without a container engine: each step done on this machine, in folders of the test's.

What a `COPY --from` and `FROM` would do is nothing here: both stages have one file system. What pip brings is what it would
bring into the image on this architecture.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from composed import ROOT

pytestmark = pytest.mark.proof
FILE = ROOT / "deploy" / "container" / "agent.Containerfile"


def steps():
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    return [
        tuple(line.split(maxsplit=1)) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()
    ]


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_what_the_file_says_makes_an_agent_that_runs(engine, tmp_path):
    source, place = tmp_path / "source", tmp_path / "opt" / "edgekit"
    source.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(Path(sys.executable).resolve())
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "ENGINE": engine}
    environment |= {
        key: value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_", "SSL_", "http"))
    }

    def here(text):
        return text.replace("/opt/edgekit", str(place)).replace("/state", str(tmp_path / "state"))

    entry = []
    for word, value in steps():
        if word == "COPY" and "--from" not in value:
            *names, target = value.split()
            for name in names:
                where = source / (name if target == "./" else target)
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, where)
        elif word == "RUN":
            done = subprocess.run(
                ["/bin/sh", "-ec", here(value)], cwd=source, env=environment, capture_output=True, text=True, check=False
            )  # fmt: skip
            if done.returncode and "No matching distribution" in done.stderr + done.stdout:
                pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
            assert done.returncode == 0, done.stderr[-2000:]
        elif word == "ENV":
            for pair in here(value).split():
                name, _, text = pair.partition("=")
                environment[name] = text.replace("$PATH", environment["PATH"])
        elif word == "ENTRYPOINT":
            entry = json.loads(here(value))
        else:
            assert word in {"FROM", "ARG", "WORKDIR", "COPY", "USER", "HEALTHCHECK", "STOPSIGNAL"}, word
    assert shutil.which(entry[0], path=environment["PATH"]) == str(place / "bin" / "edgekit")
    # Without an enrolment it says what it lacks, from the state folder that the entry point names.
    done = subprocess.run(entry, env=environment | {"EDGEKIT_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True, check=False, cwd="/")  # fmt: skip
    assert done.returncode == 2
    assert f"{tmp_path / 'state'}: this device has not joined a fleet yet" in done.stderr
    listed = subprocess.run([place / "bin/python", "-c", "from edgekit import engines; print(*engines.installed())"], env=environment, capture_output=True, text=True, check=True, cwd="/")  # fmt: skip
    assert listed.stdout.split() == [engine]
