"""A newcomer's desk: a fresh copy of the checkout, in which command lines run as if typed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from ports import free_port
from readme import ROOT

PROFILE = "x86-64-v3"
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    ".results",
    "__pycache__",
    "dist",
    "demo-run",
    "weights",
    "fleet-state",
)


@dataclass(eq=False)
class Desk:
    """`folder` is a git repository of what the checkout holds, and `edgekit` and `python` are found on PATH.

    Ports are this run's own; `agent` is where the agent serves.
    """

    folder: Path
    agent: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    environment: dict[str, str] = field(default_factory=dict)
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(ROOT, self.folder, ignore=LEFT_OUT)
        programs = self.folder.parent / "bin"
        programs.mkdir()
        for name, words in {"edgekit": "-m edgekit", "python": ""}.items():
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        # Two threads each on two cores that others use too wait for one another more than they compute.
        self.environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        if shutil.which("git"):
            self.run(
                "git init -q . && git add -A && git -c user.name=n -c user.email=n@localhost commit -qm start"
            )

    def run(self, line: str, *, codes: tuple[int, ...] = (0,), timeout_s: float = 500) -> str:
        """What the line prints (both streams); an exit code that is not among `codes` fails the test."""
        done = subprocess.run(
            ["/bin/bash", "-c", line], cwd=self.folder, env=self.environment, timeout=timeout_s, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert done.returncode in codes, f"$ {line}\nended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def start(self, name: str, line: str, ready: Callable[[], bool], *, timeout_s: float = 60) -> None:
        """Run the line beside the others, under `name`, until `ready` and further."""
        log = self.folder.parent / f"{name}.log"
        with log.open("w") as stream:
            self.running[name] = process = subprocess.Popen(
                ["/bin/bash", "-c", f"exec {line}"], cwd=self.folder, env=self.environment, stdout=stream, stderr=stream
            )  # fmt: skip

        def is_ready() -> bool:
            assert process.poll() is None, f"$ {line}\nended:\n{log.read_text()[-4000:]}"
            return ready()

        self.wait(is_ready, line, timeout_s=timeout_s)

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            told = {log.name: log.read_text()[-2000:] for log in self.folder.parent.glob("*.log")}
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}\n{told}"
            time.sleep(0.2)

    def stop(self, name: str) -> int:
        """End it as Ctrl-C would; its exit code."""
        process = self.running.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode

    def stop_all(self) -> None:
        for name in reversed(list(self.running)):
            self.stop(name)

    @property
    def other(self) -> Path:
        """For builds that are not the page's own."""
        return self.folder.parent / "other"

    def bundle(self, version: str = "1.0.0") -> Path:
        return Path("dist") / f"digits-{version}-{PROFILE}.edgekit"

    def train(self) -> None:
        """The one network that the page builds; the demo trains all three."""
        if not (self.folder / "examples/digits/weights/small.pt").is_file():
            self.run("python examples/digits/digits.py small")

    @cached_property
    def digits(self) -> list[tuple[np.ndarray, int]]:
        """Images (8, 8) and labels that the network never saw."""
        code = (
            "import digits, json; print(json.dumps([(x['x'].tolist(), y) for x, y in digits.evaluation()]))"
        )
        words = [sys.executable, "-c", code]
        told = subprocess.run(
            words, cwd=self.folder / "examples/digits", env=self.environment, check=True, capture_output=True, timeout=120
        ).stdout  # fmt: skip
        return [(np.array(image, np.float32), label) for image, label in json.loads(told)]

    def vision(self) -> None:
        """model.onnx, calib.npz and eval.npz of the page's second build: which of three colours a picture has most of."""
        from onnx import TensorProto, helper, numpy_helper

        chance = np.random.default_rng(5)
        kernel = (chance.normal(0, 0.1, (3, 3, 8, 8)) + np.eye(3)[:, :, None, None]).astype(np.float32) / 64
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[32, 32]),
                helper.make_node("GlobalAveragePool", ["c"], ["p"]),
                helper.make_node("Flatten", ["p"], ["y"]),
            ],
            "colours",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
            [numpy_helper.from_array(kernel, "kernel")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
        (self.folder / "model.onnx").write_bytes(model.SerializeToString())
        for name, count in {"calib": 16, "eval": 400}.items():
            labels = np.arange(count) % 3
            blocks = chance.uniform(0, 0.4, size=(count, 3, 7, 7)) + 0.6 * np.eye(3)[labels][:, :, None, None]
            pictures = np.repeat(np.repeat(blocks.astype(np.float32), 32, 2), 32, 3)
            labelled = {"labels": labels} if name == "eval" else {}
            np.savez(self.folder / f"{name}.npz", x=pictures, **labelled)
