"""A shadow from the operator's word to the end: a fleet, its boards, and what anybody can see of it meanwhile."""

import json
from typing import Any

import pytest
from agent_support import Asker, made
from field_support import Board, Field

pytestmark = [pytest.mark.slow, pytest.mark.proof]


def shadow_of(board: Board) -> Any:
    """What the board's own status says of it."""
    return board.shown["reported"]["deployments"]["digits"].get("shadow")


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

    stopped = json.loads(field.operator.types("shadow", "stop", "h1", "--json"))
    assert stopped["status"] == "stopped"
    for board in boards:
        field.wait(
            lambda board=board: not list((board.agent.state / "shadows").rglob("*.onnx")),
            "its files are gone",
        )
        assert board.agent.children("device_agent.shadow.process") == []
        field.wait(lambda board=board: not shadow_of(board), "none is told of")
        assert board.runs("1.0.0")
    for user in users:
        user.end()
        assert user.failures == []
        assert (user.version, user.answers > 50) == ("1.0.0", True)
    assert field.client.shadow("h1").compared >= seen.compared
