"""What an operator asks of a board that is there, of one that is not, and of one that dies in the middle of it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from agent_support import made
from field_support import Board, Field

from fleet.client import onboard

pytestmark = [pytest.mark.slow, pytest.mark.proof]


def serving(field: Field) -> tuple[Board, list[str]]:
    """A board, and the digests of what it serves, of another release for it, and of one for another profile."""
    built = [
        made.build(field.folder, version="1.0.0", seed=1),
        made.build(field.folder, version="2.0.0", seed=2),
        made.build(field.folder, version="3.0.0", seed=3, profile="raspberry-pi-5"),
    ]
    for one in built:
        field.publish(one)
    board = field.board("north")
    field.operator.types("enroll", "ghost", "--deployment", "digits", "--out", field.folder / "ghost.json")
    field.operator.types("assign", "digits@1.0.0", "--to", "site=field", "--probation", "1s")
    field.wait(lambda: board.runs("1.0.0"), "it serves")
    return board, [one.sha256 for one in built]


@pytest.mark.timeout(1800)
def test_a_board_is_asked_told_apart_and_dies_in_the_middle(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, (own, other, foreign) = serving(field)
    ask = ("device", "command")
    measure = (*ask, "measure", "north", own[:8], other[:8], "--deployment", "digits", "--budget", "1")
    done = json.loads(field.operator.types(*measure, "--wait", "--json"))
    assert (done["state"], done["created_by"]) == ("done", "token:admin")
    bundles = done["payload"]["bundles"]
    assert [(one["test"]["sha256"], one["serves"]) for one in bundles] == [
        (own, False),
        (other, False),
        (own, True),
    ]
    assert all(one["test"]["passed"] and one["p50_ms"] > 0 for one in bundles)

    assert "is for profile raspberry-pi-5" in field.refuses(*ask, "measure", "north", foreign[:8], "--wait")
    assert "is no digest" in field.refuses(*ask, "measure", "north", "abc", code=2)
    assert "is no digest" in field.refuses(*ask, "clear-refused", "north", "abc", code=2)
    assert "no bundle whose" in field.refuses(*ask, "measure", "north", "0123456")
    assert "no deployment 'faces'" in field.refuses(
        *ask, "self-test", "north", "--deployment", "faces", "--wait"
    )
    assert "no device 'nobody'" in field.refuses(*ask, "self-test", "nobody")
    assert "nobody would hear it" in field.refuses(*ask, "self-test", "ghost")
    assert board.runs("1.0.0")

    monkeypatch.setattr(onboard, "GONE_S", 1.0)
    with ThreadPoolExecutor(1) as build:
        waits = build.submit(onboard.on_boards, field.client, ["north"], [own, other], 1.0)

        def newest() -> Any:
            return next(iter(field.client.commands("north")))

        field.wait(lambda: (newest().kind, newest().state) == ("measure", "running"), "it measures")
        asked = newest().id
        board.agent.kill_tree()
        with pytest.raises(onboard.NotMeasuredError, match="north: the board did not answer in time"):
            waits.result(120)
    assert not board.view.online
    with pytest.raises(onboard.NotMeasuredError, match="north: the board is offline"):
        onboard.on_boards(field.client, ["north"], [own], 1.0)
    told = field.refuses(*ask, "self-test", "north", "--expires", "2s", "--wait")
    assert "the device was not heard until it expired" in told
    board.agent.start()
    field.wait(lambda: field.client.command_of("north", asked).is_over, "what was under way is told")
    found = field.client.command_of("north", asked)
    assert (found.state, found.reason) == ("failed", "the agent ended while it was under way")
    field.wait(lambda: board.runs("1.0.0") and board.view.online, "it serves again")
    assert not list((board.agent.state / "measuring").rglob("*.onnx")), "nothing of it lies about"
    assert board.agent.children("device_agent.commands.timing") == []
    assert field.operator.types(*ask, "self-test", "north", "--wait").count("passed") == 1
