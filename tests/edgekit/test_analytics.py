"""No library tells its makers that it was used, whatever way to the web it finds."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not {"openvino", "openvino_telemetry"} <= set(metadata.packages_distributions()),
    reason="OpenVINO with its telemetry is not installed",
)

CI = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "PYTEST_CURRENT_TEST")
# What a process does → whether the listener must hear of it. The first proves that it would.
DONE = {
    "import openvino": True,
    "import sys; sys.argv[1:] = ['--engine', 'openvino']; from device_agent import probe; probe.main()": False,
    "import converters.source.ir_source": False,
    "import os, converters, openvino; assert os.environ['NNCF_CI'], 'NNCF would tell'": False,
}


class Listener:
    """In a proxy's place: counts who comes, and sends all away."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.heard: list[bytes] = []
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self) -> None:
        while True:
            client, _ = self.server.accept()
            with client:
                said = client.recv(1000)
                if said == b"end":
                    return
                self.heard.append(said)

    def end(self) -> None:
        """After everything that came before it was heard."""
        with socket.create_connection(self.server.getsockname()) as last:
            last.sendall(b"end")
        self.thread.join()
        self.server.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    if made.thread.is_alive():
        made.end()


@pytest.mark.parametrize(("code", "is_heard"), DONE.items())
def test_engines_and_quantizers_ask_for_no_connection(
    code: str, is_heard: bool, listener: Listener, tmp_path: Path
) -> None:
    proxies = {f"{kind}_proxy": listener.url for kind in ("http", "https", "all")}
    environment = {name: value for name, value in os.environ.items() if name not in CI}
    environment |= {"HOME": str(tmp_path), **proxies, "no_proxy": ""}
    subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=300
    )
    listener.end()
    assert bool(listener.heard) is is_heard, listener.heard
    assert (tmp_path / "intel").exists() is is_heard
