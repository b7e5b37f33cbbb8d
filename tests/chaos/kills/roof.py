"""One device on a roof, in real processes: its agent and workers, a broker, an artifact server, a small disk, and a
client that never stops asking. `FAULTS` is what happens there.
"""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[2]


def _loaded(name: str, path: Path) -> Any:
    """A conftest of the agent's own tests: bundles, brokers and the fleet's side are made here as they are there."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


made = _loaded("chaos_bundles", TESTS / "device_agent" / "conftest.py")
live = _loaded("chaos_live", TESTS / "device_agent" / "live" / "conftest.py")

PATIENCE_S = 90.0
GOOD = 6
IMAGE = made.digit_images(1)[0]


@dataclass(frozen=True)
class Answer:
    """What the client got: a version and the likeliest digit, or nothing."""

    asked: float
    took_s: float
    version: str = ""
    digit: str = ""
    status: int = 0


class Client(threading.Thread):
    """Asks for one prediction after another, each on a connection of its own, and keeps what came of it."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self._port = port
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.answers.append(self._ask())

    def _ask(self) -> Answer:
        began = time.monotonic()
        try:
            got = made.Client(self._port).post("/predict", {"input": IMAGE.tolist()})
        except (OSError, made.http.client.HTTPException):
            return Answer(began, time.monotonic() - began)
        took_s = time.monotonic() - began
        if got.status != 200:
            return Answer(began, took_s, status=got.status)
        digit = got.json["outputs"]["logits"][0]["label"]
        return Answer(began, took_s, got.json["version"], digit, got.status)

    def end(self) -> None:
        self._ended.set()
        self.join(30)

    def silences(self) -> list[tuple[float, float]]:
        """From when to when nothing was answered, each longer than half a second."""
        good = [(answer.asked, answer.asked + answer.took_s) for answer in self.answers if answer.version]
        return [(last, begin) for (_, last), (begin, _) in itertools.pairwise(good) if begin - last > 0.5]


class Roof:
    """The device and all that is round it. `random` decides every detail, so that a seed tells the whole story."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.story: list[str] = []
        self._begun: list[float] = []
        self.folder = folder
        self.disk = Disk(folder / "disk")
        self.broker = made.IotcoreBroker(folder, made.free_port())
        self.broker.start()
        self.fleet = live.Fleet(self.broker, live.Authority())
        (folder / "bundles").mkdir()
        self.good = [self._bundle(f"{number}.0.0", number) for number in range(1, GOOD + 1)]
        # Its golden data were made with another scale: the self-test fails.
        self.bad = self._bundle("66.0.0", 66, scale=0.5)
        self.ordered = self.last_good = self.good[0]
        self.agent = live.AgentProcess(
            self.disk.folder / "state", made.free_port(), "--enrolment", str(self.fleet.enrolment(folder)),
            "--profile", made.PROFILE,
        )  # fmt: skip
        self.agent.environment = {"PYTHONFAULTHANDLER": "1"}
        self.agent.log_path = folder / "agent.log"
        self.client = Client(self.agent.port)

    def _bundle(self, version: str, seed: int, **more: Any) -> Any:
        return made.build(self.folder / "bundles", version=version, seed=seed, sturdy=True, **more)

    def begin(self) -> None:
        self.agent.start()
        self.order(self.good[0])
        self.settle()
        self.client.start()

    def close(self) -> None:
        self.client.end()
        self.agent.kill_tree()
        self.fleet.close()
        self.broker.stop()
        self.disk.close()

    # -- what a person does --------------------------------------------------------------------------------------

    def order(self, built: Any) -> None:
        self.ordered = built
        if built is not self.bad:
            self.last_good = built
        self.fleet.order(self.fleet.publish(built))

    def settle(self) -> None:
        """Wait until the device has come to what is ordered. Raises: AssertionError."""
        self.wait_for(self._has_settled, f"{self.ordered.manifest.version} is settled")

    def _has_settled(self) -> bool:
        said = self.fleet.deployment()
        if said is None or said.ordered != self.ordered.sha256 or not self.fleet.statuses[-1].online:
            return False
        if self.ordered is self.bad:
            return bool(said.state == "failed" and said.committed is not None)
        return bool(said.state == "idle" and said.digest == said.committed == self.ordered.sha256)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Raises: AssertionError when patience ends, or the agent by itself."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.agent.process.poll() is not None:
                raise AssertionError(f"the agent ended by itself, with {self.agent.process.returncode}")
            assert time.monotonic() < deadline, (
                f"waited for: {what}; the device says {self.fleet.deployment()}"
            )
            time.sleep(0.05)

    # -- what happens to it --------------------------------------------------------------------------------------

    def happen(self, name: str) -> None:
        self.story.append(name)
        self._begun.append(time.monotonic())
        FAULTS[name][1](self)
        time.sleep(self.random.choice((0.0, 0.1, 0.5, 1.5)))

    def silences(self) -> list[tuple[str, float]]:
        """Each fault, and for how many seconds in all nothing was answered from when it began to the next."""
        ends = [*self._begun[1:], math.inf]
        silent = self.client.silences()
        return [
            (name, sum(end - begin for begin, end in silent if since - 0.1 <= begin < until - 0.1))
            for name, since, until in zip(self.story, self._begun, ends, strict=True)
        ]

    def signal_child(self, module: str, number: int) -> None:
        for child in self.agent.children(module):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    def restart(self, number: int, *, tree: bool) -> None:
        if tree:
            self.agent.kill_tree()
        else:
            self.agent.process.send_signal(number)
            self.agent.process.wait(60)
        time.sleep(self.random.choice((0.0, 0.3)))
        self.agent.start()

    def pause(self, most_s: float) -> None:
        time.sleep(self.random.uniform(0.1, most_s))


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.is_real = os.geteuid() == 0
        if self.is_real:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", folder], check=True)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        filler = self.folder / "filler"
        with filler.open("ab", buffering=0) as sink, contextlib.suppress(OSError):
            while True:
                sink.write(bytes(1 << 16))
        yield
        filler.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """As far as one can be made so: a file that is being written keeps it writable, and the turn is lost."""
        changed = self.is_real and self._remount("ro")
        yield
        if changed:
            self._remount("rw")

    def _remount(self, how: str) -> bool:
        words = ["mount", "-o", f"remount,{how}", str(self.folder)]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def close(self) -> None:
        if self.is_real:
            subprocess.run(["umount", "--lazy", self.folder], check=True)


# -- the faults --------------------------------------------------------------------------------------------------


def _order(roof: Roof) -> None:
    roof.order(roof.random.choice(roof.good))


def _order_bad(roof: Roof) -> None:
    roof.order(roof.bad)


def _order_again(roof: Roof) -> None:
    roof.order(roof.ordered)


def _kill_worker(roof: Roof) -> None:
    roof.signal_child("device_agent.worker", signal.SIGKILL)


def _stop_worker(roof: Roof) -> None:
    roof.signal_child("device_agent.worker", signal.SIGSTOP)


def _kill_test(roof: Roof) -> None:
    roof.signal_child("device_agent.update.selftest", signal.SIGKILL)


def _kill_agent(roof: Roof) -> None:
    roof.restart(signal.SIGKILL, tree=False)


def _cut_power(roof: Roof) -> None:
    roof.restart(signal.SIGKILL, tree=True)


def _end_agent(roof: Roof) -> None:
    roof.restart(signal.SIGTERM, tree=False)


def _suspend(roof: Roof) -> None:
    os.killpg(roof.agent.process.pid, signal.SIGSTOP)
    roof.pause(3)
    os.killpg(roof.agent.process.pid, signal.SIGCONT)


def _lose_broker(roof: Roof) -> None:
    roof.broker.stop()
    roof.pause(2)
    roof.broker.start()


def _lie(roof: Roof) -> None:
    page = b"<html>guest network</html>"
    roof.fleet.lies = [roof.random.choice(((404, b""), (401, b""), (200, page), (500, b""), (200, b"")))]
    _order(roof)


def _cut_download(roof: Roof) -> None:
    roof.fleet.cut_after = 1024 * roof.random.randrange(1, 4)
    _order(roof)


def _slow_server(roof: Roof) -> None:
    roof.fleet.chunk_delay_s = 0.2
    _order(roof)
    roof.pause(2)
    roof.fleet.chunk_delay_s = 0.0


def _fill_disk(roof: Roof) -> None:
    with roof.disk.full():
        roof.random.choice((_order, _kill_worker, _order_again, _lose_broker))(roof)
        roof.pause(2)


def _freeze_disk(roof: Roof) -> None:
    with roof.disk.read_only():
        roof.random.choice((_order, _kill_worker, _order_again))(roof)
        roof.pause(2)


def _bad_requests(roof: Roof) -> None:
    for body in (b"", b"{", b'{"input": [[1]]}', b'{"input": "x"}', b"\xff" * 100, b'{"input": null}'):
        with contextlib.suppress(OSError, made.http.client.HTTPException):
            made.Client(roof.agent.port).post("/predict", body)


# How often each happens, and what it is.
FAULTS: dict[str, tuple[int, Callable[[Roof], None]]] = {
    "order another release": (6, _order),
    "order a release whose self-test fails": (2, _order_bad),
    "order the same again": (1, _order_again),
    "kill the worker": (5, _kill_worker),
    "stop the worker": (1, _stop_worker),
    "kill the self-test": (2, _kill_test),
    "kill the agent": (4, _kill_agent),
    "cut the power": (4, _cut_power),
    "end the agent": (2, _end_agent),
    "suspend the device": (2, _suspend),
    "lose the broker": (2, _lose_broker),
    "a server that lies": (2, _lie),
    "a download that is cut": (2, _cut_download),
    "a slow server": (1, _slow_server),
    "a full disk": (3, _fill_disk),
    "a disk that turns read-only": (2, _freeze_disk),
    "malformed requests": (2, _bad_requests),
}


def expected_digit(version: str) -> str:
    """What a release of this version answers, by the model's formula."""
    seed = int(version.partition(".")[0])
    weights = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
    return str(int(np.argmax((IMAGE * np.float32(0.0625)).reshape(1, 64) @ weights)))


def told(roof: Roof) -> str:
    """The end of a story that failed, for whoever replays it, with where each of the agent's threads is."""
    free = os.statvfs(roof.disk.folder).f_bavail * 4096 >> 20
    roof.agent.process.send_signal(signal.SIGABRT)
    roof.agent.process.wait(10)
    return json.dumps(
        {"faults": roof.story, "free_mib": free, "log": roof.agent.log_path.read_text()[-8000:]}, indent=1
    )
