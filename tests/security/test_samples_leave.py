"""What leaves a device of its inputs: nothing without a policy, and with one only what the route for samples carries.

Real agents, a real fleet and broker; every byte between them is recorded and searched.
"""

import contextlib
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_support import Operator, live, made, wait_until
from fleet_support import Service
from recorded import Recorder

from edgekit.samples import load_npz
from fleet import api

pytestmark = pytest.mark.slow

# An agent that keeps samples without being told to: what must make the search turn.
_ROGUE = """
    import datetime
    import device_agent.samples.keeper as keeper
    from edgekit.wire.samples import SamplePolicy

    end = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    rogue = SamplePolicy("s1", "digits", end, 1000, 2**40, random=1.0)
    keeper.Keeper._in_force = lambda self, now: {"s1": rogue}
    from edgekit.cli import main
    main()
"""


class Board:
    """A real agent behind wires that remember, and a fleet that has assigned it a model."""

    def __init__(self, folder: Path, program: str = "") -> None:
        self.service = Service(folder)
        self.service.start()
        self.operator = Operator(self.service.state)
        self.client = self.service.client()
        self.http, self.mqtt = Recorder(self.service.http_port), Recorder(self.service.mqtt_port)
        file = folder / "board.json"
        self.operator.types("enroll", "b-1", "--label", "site=lab", "--deployment", "digits", "--out", file)
        self._rewire(file)
        self.operator.types("publish", made.build(folder, version="1.0.0", seed=1).path)
        self.operator.types("assign", "digits@1.0.0", "--to", "site=lab", "--probation", "1s")
        self.agent = live.AgentProcess(
            folder / "state", made.free_port(), "--enrolment", str(file), "--profile", made.PROFILE
        )
        if program:
            self.agent._words = ["-c", textwrap.dedent(program), *self.agent._words[2:]]
        self.agent.start()
        self._random = np.random.default_rng(11)
        self.asked: list[np.ndarray] = []
        try:
            wait_until(lambda: self.runs, "it runs", 120)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.agent.log}") from error

    def _rewire(self, file: Path) -> None:
        given = json.loads(file.read_text())
        for name in ("enrol_url", "artifact_url", "metadata_url"):
            given[name] = given[name].replace(str(self.service.http_port), str(self.http.port))
        given["allowed_hosts"] = [f"127.0.0.1:{self.http.port}"]
        given["broker"]["port"] = self.mqtt.port
        file.write_text(json.dumps(given))

    @property
    def runs(self) -> bool:
        found = self.device.deployments["digits"]
        return found.version == "1.0.0" and found.state == "idle"

    @property
    def device(self) -> api.DeviceView:
        return self.client.devices()[0]

    def ask(self, count: int) -> None:
        """Inputs whose every value is of many digits, so that no other byte stream holds one by chance."""
        for _ in range(count):
            image = self._random.uniform(1.0, 15.0, (8, 8))
            assert made.Client(self.agent.port).post("/predict", {"input": image.tolist()}).status == 200
            self.asked.append(image)

    def windows(self) -> int:
        return self.device.telemetry.windows

    def two_windows(self) -> None:
        before = self.windows()
        wait_until(lambda: self.windows() >= before + 2, f"it reports\n{self.agent.log}", 60)

    def leaks(self) -> list[str]:
        """Connections on which the device sent any value of any input, whatever number they are written in."""
        parts = [part for image in self.asked for part in _marks(image)]
        wires = [("http", sent) for sent in self.http.sent()] + [("mqtt", sent) for sent in self.mqtt.sent()]
        return [f"{name}: {sent[:30]!r}" for name, sent in wires if any(part in sent for part in parts)]

    def kept(self) -> list[Path]:
        return list((self.agent.state / "samples").glob("*.sample"))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.agent.kill_tree()
        self.client.close()
        self.service.stop()
        self.http.close()
        self.mqtt.close()


def _marks(image: np.ndarray) -> Iterator[bytes]:
    """A few values in every way in which they might be written: text, doubles, floats, as the model takes them."""
    flat, small = image.ravel(), image.ravel().astype(np.float32)
    for at in range(0, flat.size - 1, 9):
        yield repr(float(flat[at]))[:10].encode()
        yield flat[at].tobytes()
        yield small[at : at + 2].tobytes()
        yield (small[at : at + 2] * np.float32(0.0625)).tobytes()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    found = Board(tmp_path)
    try:
        yield found
    except AssertionError as error:
        raise AssertionError(f"{error}\n{found.agent.log}") from error
    finally:
        found.close()


def test_nothing_of_an_input_leaves_but_samples_by_a_policy(board: Board, tmp_path: Path) -> None:
    board.ask(20)
    board.two_windows()
    assert board.leaks() == []
    assert board.kept() == []

    wanted = ("--on", "site=lab", "--random", "100%", "--for", "1h", "--most", "5", "--json")
    name = json.loads(board.operator.types("samples", "collect", "digits", *wanted))["id"]
    first = len(board.asked)

    def comes() -> bool:
        board.ask(1)
        return board.client.collections()[0].state == "full"

    wait_until(comes, f"samples come\n{board.agent.log}", 60)
    told = board.leaks()
    assert told
    assert all(line.startswith("http: b'PUT /v1/samples/") for line in told)

    out = tmp_path / "samples"
    board.operator.types("samples", "download", name, "--out", out)
    came = load_npz(out / "raw.npz").inputs["x"]
    asked = [image.astype(came.dtype) for image in board.asked[first:]]
    assert len(came) == 5
    assert all(any(np.array_equal(one, image) for image in asked) for one in came)
    index = json.loads((out / "index.json").read_text())
    assert [(one["about"]["device"], one["about"]["reason"]) for one in index] == [("b-1", "random")] * 5

    said = board.device.traffic["samples"]
    files = sum(view.length for view in board.client.samples(name))
    assert files < said.sent < files + 5 * 2000
    assert board.device.traffic["models"].received > 4000
    wait_until(lambda: not board.kept(), f"what waits is deleted\n{board.agent.log}", 60)
    wait_until(lambda: board.device.order_counter == board.device.reported_counter, "it is told the end", 60)
    routes = len(board.leaks())
    board.ask(10)
    board.two_windows()
    assert len(board.leaks()) == routes
    assert board.kept() == []


@pytest.mark.proof
def test_the_search_finds_an_agent_that_samples_without_a_policy(tmp_path: Path) -> None:
    board = Board(tmp_path, _ROGUE)
    try:
        board.ask(5)
        wait_until(lambda: board.ask(1) or board.leaks(), f"the search turns\n{board.agent.log}", 60)
        assert board.client.collections() == []
    finally:
        board.close()
