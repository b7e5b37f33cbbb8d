"""Five hundred hostile clients do their worst at a real front and worker, and four honest ones are served."""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from device_agent.folder import DeploymentFolder

HERE = Path(__file__).parent
HOSTILE = 500
LEAST_S = 15.0
REQUESTS = 50
# Bodies at once (64 MB), what one of them is read into (64 MB), responses that nobody reads (32 MB).
WORKER_MB = 160
FRONT_MB = 32


def peak_mb(pid: int) -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


@pytest.fixture
def served(tmp_path, tools, host_front):
    return host_front(tools.staged(DeploymentFolder(tmp_path / "d"), tools.build(tmp_path, sturdy=True)))


@pytest.fixture
def crowd(served):
    process = subprocess.Popen(
        [sys.executable, HERE / "crowd.py", str(served.port), str(HOSTILE), str(16 << 20)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


class Honest(threading.Thread):
    """One kept-alive connection, `REQUESTS` requests and at least `LEAST_S` seconds of them."""

    def __init__(self, client, image):
        super().__init__(daemon=True)
        self.client, self.image = client, image
        self.answers = 0
        self.failures = []

    def run(self):
        began = time.monotonic()
        while self.answers < REQUESTS or time.monotonic() - began < LEAST_S:
            try:
                answer = self.client.post("/predict", {"input": self.image})
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return
            self.answers += 1
            if answer.status != 200:
                self.failures.append(f"{answer.status} {answer.body!r}")
            time.sleep(0.02)


@pytest.mark.proof
@pytest.mark.slow
def test_memory_is_bounded_and_no_honest_request_fails(served, tools, crowd):
    before = {"front": peak_mb(served.front), "worker": peak_mb(served.worker)}
    image = tools.digit_images(1)[0].tolist()
    honest = [Honest(tools.Client(served.port), image) for _ in range(4)]
    for each in honest:
        each.start()
    for each in honest:
        each.join(300)
    after = {"front": peak_mb(served.front), "worker": peak_mb(served.worker)}
    crowd.stdin.close()
    connected = json.loads(crowd.stdout.readline())
    print(
        f"connections by kind {connected}; peak MB {before} -> {after}; honest answers {[each.answers for each in honest]}"
    )
    assert [each.failures for each in honest] == [[]] * 4
    assert all(each.answers >= REQUESTS for each in honest)
    assert after["worker"] - before["worker"] < WORKER_MB
    assert after["front"] - before["front"] < FRONT_MB
    # Who is cut comes back: each kind was met again and again.
    assert all(count > 1 for count in connected.values())
