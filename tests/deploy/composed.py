"""deploy/compose/compose.yaml, run as plain processes on this machine: its commands, environment, files and secrets.

What a container engine would do is done here, by the file: variables are filled in, paths in a container are replaced by
what is mounted there, names of services by this machine, and `depends_on` is waited for.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fleet_support import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:\?|:-)([^}]*))?\}")


def load(name: str = "compose.yaml") -> dict[str, Any]:
    """The file, with merges done and variables as they stand."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def filled(text: str, variables: Mapping[str, str]) -> str:
    """With its variables, by the rules of the compose specification (12, interpolation)."""

    def value(found: re.Match[str]) -> str:
        name, kind, other = found.groups()
        if name in variables:
            return variables[name]
        assert kind == ":-", f"{name} is required: {other}"
        return other or ""

    return _VARIABLE.sub(value, text)


@dataclass
class Composed:
    """`folder` is what the operator has: a copy of deploy/compose, with its .env, state/ and secrets/."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(FOLDER, self.folder, ignore=shutil.ignore_patterns("state", "secrets", ".env"))
        programs = self.folder.parent / "bin"
        programs.mkdir()
        (programs / "edgekit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgekit "$@"\n')
        (programs / "edgekit").chmod(0o755)
        self.path = f"{programs}:/usr/sbin:{os.environ['PATH']}"

    def read_env(self) -> None:
        """The operator's .env."""
        for line in (self.folder / ".env").read_text().splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                self.variables[name.strip()] = value.strip()

    def service(self, name: str) -> dict[str, Any]:
        return load()["services"][name]

    def here(self, name: str, text: str) -> str:
        """A word of a service's, with its variables and with the paths of this machine."""
        made = filled(text, self.variables)
        for mount in self.service(name).get("volumes", []):
            outside, inside = mount.split(":")[:2]
            made = made.replace(inside, str((self.folder / outside).resolve()))
        secrets = load()["secrets"]
        for secret in self.service(name).get("secrets", []):
            place = (self.folder / secrets[secret]["file"]).resolve()
            made = made.replace(f"/run/secrets/{secret}", str(place))
        return made

    def command(self, name: str) -> list[str]:
        entry = ["edgekit"] if "build" in self.service(name) else []
        return [*entry, *(self.here(name, word) for word in self.service(name)["command"])]

    def environment(self, name: str) -> dict[str, str]:
        given = {
            key: self.here(name, value) for key, value in self.service(name).get("environment", {}).items()
        }
        kept = {key: os.environ[key] for key in ("PYTHONPATH", "EDGEKIT_CACHE") if key in os.environ}
        return {"PATH": self.path, **kept, **given}

    def run(self, name: str) -> str:
        """`docker compose run --rm NAME`."""
        done = subprocess.run(
            self.command(name), env=self.environment(name), cwd="/", capture_output=True, text=True, check=False, timeout=120
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(self.command(name))}\n{done.stdout}{done.stderr}"
        return done.stdout

    def up(self, name: str) -> None:
        log = (self.folder.parent / f"{name}.log").open("w")
        self.running[name] = subprocess.Popen(
            self.command(name),
            env=self.environment(name),
            cwd="/",
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def is_healthy(self, name: str) -> bool:
        kind, *words = (self.here(name, word) for word in self.service(name)["healthcheck"]["test"])
        assert kind == "CMD"
        done = subprocess.run(
            words, env=self.environment(name), cwd="/", capture_output=True, check=False, timeout=60
        )
        return done.returncode == 0

    def log(self, name: str) -> str:
        return (self.folder.parent / f"{name}.log").read_text(errors="replace")

    def stop(self) -> dict[str, int]:
        """`docker compose stop`: SIGTERM, and how each ended."""
        ended = {}
        for name, process in reversed(self.running.items()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                ended[name] = process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                ended[name] = process.wait()
        self.running.clear()
        return ended


def local_variables() -> dict[str, str]:
    """What differs on a machine without a container network: ports that nobody else uses, and no names of services."""
    return {
        "EDGEKIT_HOST": "localhost",
        "EDGEKIT_BROKER": "localhost",
        "EDGEKIT_HTTPS_PORT": str(free_port()),
        "EDGEKIT_MQTTS_PORT": str(free_port()),
    }
