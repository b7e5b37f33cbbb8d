"""Real agents of a real fleet: bundles they can run, the agent as a process, and what an operator types."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]


def _loaded(name: str, path: Path) -> Any:
    """A conftest of the agent's own tests: bundles and agents are made here as they are there."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


made = _loaded("security_bundles", _TESTS / "device_agent" / "conftest.py")
live = _loaded("security_live", _TESTS / "device_agent" / "live" / "conftest.py")

IMAGE = made.digit_images(1)[0].tolist()
wait_until = made.wait_until


class Operator:
    """The command on the machine of whoever runs the fleet."""

    def __init__(self, home: Path, before: Sequence[str] = ()) -> None:
        self._before = list(before)
        self._home = home

    def line(self, *words: str | Path) -> list[str]:
        """The whole command."""
        command = [*self._before, sys.executable, "-m", "edgekit", "fleet", "--fleet", self._home, *words]
        return list(map(str, command))

    def types(self, *words: str | Path) -> str:
        done = subprocess.run(self.line(*words), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout

    def devices(self) -> dict[str, Any]:
        return {each["device"]: each for each in json.loads(self.types("devices", "--json"))}

    def rolls_out(self, release: str, to: str, *more: str) -> str:
        """The new rollout's id."""
        plan = self.types(
            "rollout", "start", release, "--to", to, "--soak", "2s", "--probation", "1s", "--json",
            "--gate", "error_rate < 20% min 5 requests", *more,
        )  # fmt: skip
        return str(json.loads(plan)["rollout"]["id"])

    def status(self, rollout: str) -> Any:
        return json.loads(self.types("rollout", "status", rollout, "--json"))


class Asker(threading.Thread):
    """A user of a board: from the first answer on, whatever is no right answer is kept in `failures`.

    `enter` is called first, in the thread that asks.
    """

    def __init__(self, connect: Callable[[], Any], enter: Callable[[], None] = lambda: None) -> None:
        super().__init__(daemon=True)
        self._connect = connect
        self._enter = enter
        self._ended = threading.Event()
        self.answers = 0
        self.failures: list[str] = []
        # The version that answered last; "" before the first.
        self.version = ""
        self.start()

    def run(self) -> None:
        self._enter()
        while not self._ended.wait(0.05):
            try:
                answer = self._connect().post("/predict", {"input": IMAGE})
            except (OSError, made.http.client.HTTPException) as error:
                self._failed(repr(error))
                continue
            if answer.status == 200:
                self.answers += 1
                self.version = str(answer.json["version"])
            else:
                self._failed(f"{answer.status} {answer.body!r}")

    def _failed(self, what: str) -> None:
        if self.version:
            self.failures.append(what)

    def end(self) -> None:
        self._ended.set()
        self.join(30)
