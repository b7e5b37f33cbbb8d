"""A fleet and its boards, all real processes, and what an operator, a client and a neighbour of a board do."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent_support import Operator, live, made, wait_until
from fleet_support import Service

from fleet import api


class Board:
    """An agent that has joined, as its fleet and its clients see it."""

    def __init__(self, name: str, agent: Any, client: Any) -> None:
        self.name, self.agent, self._client = name, agent, client

    @property
    def view(self) -> api.DeviceView:
        found = self._client.explain(self.name).device
        assert isinstance(found, api.DeviceView)
        return found

    @property
    def deployment(self) -> Any:
        return self.view.deployments["digits"]

    @property
    def shown(self) -> Any:
        """What its own status says."""
        words = [
            sys.executable,
            "-m",
            "edgekit",
            "agent",
            "status",
            "--state",
            str(self.agent.state),
            "--json",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def runs(self, version: str, name: str = "digits") -> bool:
        found = self.view.deployments.get(name)
        return found is not None and (found.version, found.state) == (version, "idle")

    def follows(self, counter: int) -> bool:
        """Whether it has followed an order of this number or a later one, and the newest."""
        return counter <= self.view.order_counter == self.view.reported_counter

    def post(self, image: Any) -> Any:
        return made.Client(self.agent.port).post("/predict", {"input": image})

    def agentfile(self, text: str) -> None:
        self.agent.state.mkdir(parents=True, exist_ok=True)
        (self.agent.state / "agent.toml").write_text(text)

    def condition(self, code: str) -> str:
        return next((one.detail for one in self.view.conditions if one.code == code), "")


class Field:
    """A fleet with its operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.service = Service(folder)
        self.service.start()
        self.operator = Operator(self.service.state)
        self.client = self.service.client()
        self.boards: list[Board] = []

    def publish(self, built: Any) -> None:
        self.operator.types("publish", built.path)

    def board(
        self,
        name: str,
        *words: str,
        agentfile: str = "",
        profile: str = made.PROFILE,
        deployments: Sequence[str] = ("digits",),
    ) -> Board:
        """It joins with the label site=field; `agentfile` is its `agent.toml`."""
        file = self.folder / f"{name}.json"
        wanted = [word for each in deployments for word in ("--deployment", each)]
        self.operator.types("enroll", name, "--label", "site=field", *wanted, "--out", file)
        agent = live.AgentProcess(
            self.folder / name, made.free_port(), "--enrolment", str(file), "--profile", profile, *words
        )
        board = Board(name, agent, self.client)
        self.boards.append(board)
        if agentfile:
            board.agentfile(agentfile)
        agent.start()
        self.wait(lambda: board.view.online, f"{name} joins")
        return board

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = 180.0) -> None:
        wait_until(condition, what, timeout_s)

    def refuses(self, *words: str, code: int = 5) -> str:
        """What a command of the fleet that must fail says."""
        done = subprocess.run(
            self.operator.line(*words), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr

    @property
    def logs(self) -> str:
        return "\n".join(f"--- {board.name}\n{board.agent.log[-6000:]}" for board in self.boards)

    def close(self) -> None:
        for board in self.boards:
            with contextlib.suppress(ProcessLookupError):
                board.agent.kill_tree()
        self.client.close()
        self.service.stop()
