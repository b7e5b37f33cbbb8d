"""A shadow from the operator's word to the end: a fleet, its boards, and what anybody can see of it meanwhile."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from agent_support import Asker, made
from field_support import Board, Field

pytestmark = [pytest.mark.slow, pytest.mark.proof]


def shadow_of(board: Board) -> Any:
    """What the board's own status says of it."""
    return board.shown["reported"]["deployments"]["digits"].get("shadow")


def shadows_of(board: Board) -> list[int]:
    """Its processes."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"device_agent.shadow.process" in words and any(
                word.startswith(bytes(board.agent.state)) for word in words
            ):
                found.append(int(entry.name))
    return found


# A process at idle priority waits for as long as the machine has anything else to do.
@pytest.mark.timeout(1800)
def test_a_shadow_is_started_seen_and_stopped_and_no_caller_notices(field: Field) -> None:
    for number in (1, 2):
        field.publish(made.build(field.folder, version=f"{number}.0.0", seed=number))
    boards = [field.board(name) for name in ("north", "south")]
    field.operator.types("assign", "digits@1.0.0", "--to", "site=field", "--probation", "1s")
    for board in boards:
        field.wait(lambda board=board: board.runs("1.0.0"), f"{board.name} serves")
    users = [Asker(lambda port=board.agent.port: made.Client(port)) for board in boards]

    started = json.loads(
        field.operator.types(
            "shadow", "start", "digits@2.0.0", "--to", "site=field", "--share", "50%", "--json"
        )
    )
    assert (started["id"], started["status"], started["members"]) == ("h1", "running", 2)

    def compared() -> bool:
        return all(one.compared >= 20 for one in field.client.shadow("h1").devices)

    field.wait(compared, "both compare live inputs", 900)
    seen = field.client.shadow("h1")
    [logits] = seen.outputs
    assert (logits.output, logits.devices) == ("logits", 2)
    assert logits.low <= logits.mean <= logits.high
    assert logits.mean < 0.9, "two networks of random weights do not agree"
    assert seen.latency_ratio is not None
    assert seen.latency_ratio > 0
    assert {one.state for one in seen.devices} == {"running"}
    assert seen.compared == sum(one.compared for one in seen.devices)
    told = field.operator.types("shadow", "status", "h1")
    assert "x the served model's time on the same inputs" in told
    assert all(board.name in told for board in boards)
    for board in boards:
        assert board.runs("1.0.0")
        assert shadow_of(board)["state"] == "running"

    start = ("shadow", "start", "digits@2.0.0", "--to", "site=field")
    assert "shadow stop h1" in field.refuses(*start)
    assert "digits@7.0.0" in field.refuses("shadow", "start", "digits@7.0.0", "--to", "site=field")
    assert "--share" in field.refuses(*start, "--share", "90%", code=2)
    assert "there is no shadow h9" in field.refuses("shadow", "status", "h9")

    before = field.client.shadow("h1").devices[0]
    north = boards[0]
    assert before.device == north.name
    users[0].end()
    assert users[0].failures == []
    assert len(shadows_of(north)) == 1
    os.kill(north.agent.process.pid, signal.SIGKILL)
    field.wait(lambda: not shadows_of(north), "it does not outlive its agent")
    north.agent.process.wait()
    north.agent.start()
    field.wait(lambda: north.view.online and north.runs("1.0.0"), "it is back")
    users[0] = Asker(lambda: made.Client(north.agent.port))
    field.wait(lambda: field.client.shadow("h1").devices[0].compared > before.compared, "it compares on", 900)

    stopped = json.loads(field.operator.types("shadow", "stop", "h1", "--json"))
    assert stopped["status"] == "stopped"
    for board in boards:
        field.wait(
            lambda board=board: not list((board.agent.state / "shadows").rglob("*.onnx")),
            "its files are gone",
        )
        assert shadows_of(board) == []
        field.wait(lambda board=board: not shadow_of(board), "none is told of")
        assert board.runs("1.0.0")
    for user in users:
        assert user.failures == []
        assert user.version == "1.0.0"
    assert field.client.shadow("h1").compared >= seen.compared

    field.operator.types(*start)
    field.wait(lambda: all(shadow_of(board) for board in boards), "the next is heard of")
    field.operator.types("assign", "digits@2.0.0", "--to", "site=field", "--probation", "1s")
    for board in boards:
        field.wait(lambda board=board: board.runs("2.0.0"), f"{board.name} serves it")
    field.wait(lambda: field.client.shadow("h2").status == "served", "so there is nothing to compare")
    for board in boards:
        field.wait(lambda board=board: not shadow_of(board), "and none is told of")
        field.wait(lambda board=board: not shadows_of(board), "or runs")
    for user in users:
        user.end()
        assert user.failures == []
        assert user.version == "2.0.0"
