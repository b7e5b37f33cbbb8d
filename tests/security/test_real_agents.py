"""A real agent and a real fleet, with TLS from end to end: they were written side by side, and meet here."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_support import Asker, Operator, live, made, wait_until
from tls_support import SHORT_LIVED, TlsFleet, make_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def tls_fleet(tmp_path: Path) -> Iterator[TlsFleet]:
    (tmp_path / "tls").mkdir()
    made = make_fleet(tmp_path / "tls", "-c", SHORT_LIVED.format(minutes=4))
    yield made
    made.service.stop()


@pytest.fixture
def operator(tls_fleet: TlsFleet) -> Operator:
    return Operator(tls_fleet.service.state)


@pytest.fixture
def board(tmp_path: Path, operator: Operator) -> Iterator[Any]:
    """An agent that has joined."""
    file = tmp_path / "board.json"
    operator.types("enroll", "real-1", "--label", "site=real", "--deployment", "digits", "--out", file)
    agent = live.AgentProcess(
        tmp_path / "state", made.free_port(), "--enrolment", str(file), "--profile", made.PROFILE
    )
    agent.start()
    try:
        wait_until(lambda: operator.devices()["real-1"]["online"], "it joins", 60)
        yield agent
    finally:
        # Shown by pytest beside a failure.
        print(agent.log)
        with contextlib.suppress(ProcessLookupError):
            agent.kill_tree()


def test_a_board_joins_serves_what_is_rolled_out_renews_and_is_revoked(
    board: Any, operator: Operator, tls_fleet: TlsFleet, tmp_path: Path
) -> None:
    for number in (1, 2):
        said = operator.types("publish", made.build(tmp_path, version=f"{number}.0.0", seed=1).path)
    assert "delta from" in said
    user = Asker(lambda: made.Client(board.port))
    for number in (1, 2):
        rollout = operator.rolls_out(f"digits@{number}.0.0", "site=real", "--stages", "100%")
        operator.types("rollout", "watch", rollout, "--timeout", "90")
        assert user.version == f"{number}.0.0"
    ways = re.findall(r"fetched .* way=(\w+)", board.log)
    assert ways == ["whole", "delta"]
    operator.types("rollout", "rollback", rollout)
    wait_until(lambda: user.version == "1.0.0", "it is back", 60)
    assert "certificate renewed" in board.log
    ups = board.log.count("link up")
    tls_fleet.kill_broker()
    wait_until(lambda: board.log.count("link up") > ups, "it is online with the new certificate", 60)

    operator.types("device", "revoke", "real-1", "--reason", "stolen")
    wait_until(lambda: not operator.devices()["real-1"]["online"], "it is let go", 30)
    wait_until(lambda: "revoked" in board.log or "without a word" in board.log, "it is told", 60)
    answers = user.answers
    wait_until(lambda: user.answers > answers + 5, "it serves on")
    user.end()
    assert user.failures == []
