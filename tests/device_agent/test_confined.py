"""A process that runs a bundle reaches nothing of the agent's, whatever a bundle makes its engine do."""

import json
import os
import socket
import subprocess
import sys

import pytest

from device_agent import confined, memory
from device_agent.confined import Bounds

needs_landlock = pytest.mark.skipif(confined.version() == 0, reason="this kernel has no Landlock")

# What a bundle that took its engine over would try, each as one expression.
ATTEMPTS = {
    "read the key": "open(state / 'key.json').read()",
    "read the key by another way": "open(state / 'slot/../key.json').read()",
    "read the key by a link": "open(link).read()",
    "list the state folder": "os.listdir(state)",
    "read another model": "open(state / 'other/model').read()",
    "read the token file": "open(token).read()",
    "write its slot": "open(state / 'slot/model', 'w')",
    "write elsewhere": "open(token.parent / 'new', 'w')",
    "remove something": "os.unlink(token.parent / 'common/beside')",
    "execute a program": "os.execv('/bin/true', ['true'])",
    "connect": "socket.create_connection(('127.0.0.1', port), 1)",
    "listen": "socket.create_server(('127.0.0.1', 0))",
    "end the agent": "os.kill(os.getppid(), signal.SIGTERM)",
    "read the agent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "read the agent's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read(1)",
    "raise its own bound": "resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
    "take more memory": "bytearray(3 << 30)",
}
ALLOWED = {
    "read its slot": "open(state / 'slot/model').read()",
    "write its cache": "open(state / 'cache/kernel', 'w').write('x')",
    "connect to a port that it was given": "socket.create_connection(('127.0.0.1', given['ports'][0]), 5)",
    "read what all may read": "open(token.parent / 'common/beside').read()",
    "run an engine": "__import__('onnxruntime').__version__",
}
PROBE = """
import json, os, resource, signal, socket, sys
from pathlib import Path
from device_agent.confined import Bounds, confine
given = json.loads(sys.argv[1])
state, token, link, port = Path(given["state"]), Path(given["token"]), given["link"], given["port"]
confine(Bounds((state, token), (state / "slot",), (state / "cache",), 2 << 30, ports=tuple(given["ports"])))
told = {}
for name, text in given["attempts"].items():
    try:
        eval(text)
        told[name] = ""
    except (OSError, MemoryError, ValueError) as error:
        told[name] = type(error).__name__
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
told["capabilities"] = status["CapEff"].strip() + status["CapPrm"].strip()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each attempt came to: the error's name, or nothing."""
    folder = tmp_path_factory.mktemp("device")
    state = folder / "state"
    for name in ("slot", "cache", "other"):
        (state / name).mkdir(parents=True)
    for path in (state / "slot/model", state / "other/model", state / "key.json"):
        path.write_text("secret")
    (folder / "common").mkdir()
    for name in ("token", "common/beside"):
        (folder / name).write_text("text")
    (folder / "link").symlink_to(state / "key.json")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        given = {
            "state": str(state), "token": str(folder / "token"), "link": str(folder / "link"),
            "port": server.getsockname()[1], "ports": [other.getsockname()[1]], "attempts": ATTEMPTS | ALLOWED,
        }  # fmt: skip
        words = [sys.executable, "-c", PROBE, json.dumps(given)]
        return json.loads(subprocess.run(words, check=True, capture_output=True).stdout)


@needs_landlock
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_confined_process_cannot(told, attempt):
    assert told[attempt]


@pytest.mark.parametrize("need", ALLOWED)
def test_a_confined_process_can(told, need):
    assert told[need] == ""


def test_it_has_no_capability(told):
    assert set(told["capabilities"]) == {"0"}


@needs_landlock
def test_folders_beside_hidden_paths_stay_readable_and_no_file_is_kept_from_being_freed(tmp_path):
    for name in ("a/b/secret", "a/b/other", "a/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    hidden = frozenset({tmp_path / "a/b/secret"})
    (tmp_path / "a/b/log").touch()
    found = set(confined._around(tmp_path, hidden))
    assert found == {tmp_path / "a/b/other", tmp_path / "a/c", tmp_path / "d"}


def test_only_the_agents_own_modules_are_run_confined():
    words = confined.command("http.server", Bounds((), (), (), 1 << 30))
    ended = subprocess.run(words, check=False, capture_output=True)
    assert ended.returncode == 2
    assert b"invalid choice" in ended.stderr


def test_the_watched_bound_is_met_before_the_kernels(tmp_path):
    assert memory.limit(tmp_path) < memory.wall(memory.limit(tmp_path))
    assert memory.resident(os.getpid()) > 1 << 20
    assert memory.resident(2**22 + 1) == 0
