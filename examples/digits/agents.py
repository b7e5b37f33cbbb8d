"""The demo's agents as processes, and callers that classify digits through them without a pause."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

# Half a second where a device in the field takes a minute: thirty windows, which drift takes, are a matter of seconds.
WINDOW_S = "0.5"
Sample = tuple[dict[str, np.ndarray], int]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DemoAgent:
    """One `edgekit agent run` with its own state folder and port."""

    def __init__(self, name: str, state: Path, enrolment: Path, profile: str, log: Path) -> None:
        self.name = name
        self.port = free_port()
        self._words = [
            sys.executable, "-m", "edgekit", "agent", "run", "--enrolment", str(enrolment), "--state", str(state),
            "--http", f"127.0.0.1:{self.port}", "--profile", profile, "--window", WINDOW_S,
        ]  # fmt: skip
        self._log = log
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log)


class Traffic:
    """One steady caller per agent: labelled digits in, answers counted.

    Until an agent has answered once it has no model, and its refusals are no failures; from then on each one is.
    Callers begin at different samples, so that agents do not meet the same at the same time.
    """

    PAUSE_S = 0.04

    def __init__(self, agents: list[DemoAgent], samples: list[Sample]) -> None:
        self._samples = samples
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._call, args=(agent, at / len(agents)), daemon=True)
            for at, agent in enumerate(agents)
        ]
        self.counted = self.right = self.answered = self.failures = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)

    def switch(self, samples: list[Sample]) -> None:
        """Other digits from now on, counted anew."""
        with self._lock:
            self._samples = samples
            self.counted = self.right = 0

    def reset(self) -> None:
        """Count accuracy anew."""
        with self._lock:
            self.counted = self.right = 0

    @property
    def accuracy(self) -> float:
        with self._lock:
            return self.right / max(1, self.counted)

    def _call(self, agent: DemoAgent, begins: float) -> None:
        position = 0
        has_answered = False
        while not self._stopping.is_set():
            samples = self._samples
            inputs, label = samples[(round(begins * len(samples)) + position) % len(samples)]
            position += 1
            answer = _predict(agent.port, inputs["x"])
            with self._lock:
                if answer is None:
                    self.failures += has_answered
                else:
                    has_answered = True
                    self.answered += 1
                    if samples is self._samples:
                        self.counted += 1
                        self.right += answer == label
            time.sleep(self.PAUSE_S)


def _predict(port: int, image: np.ndarray) -> int | None:
    """The digit that the agent reads, or None if it did not answer properly."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        body = json.dumps({"input": image.tolist()})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        return int(answer["label"]) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return None
    finally:
        connection.close()
