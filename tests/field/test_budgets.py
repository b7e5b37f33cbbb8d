"""A link with a budget: what waits as it is spent, what never does, and what an operator's word changes."""

import json
import time

import pytest
from agent_support import IMAGE, made
from field_support import Board, Field

pytestmark = [pytest.mark.slow, pytest.mark.proof]

# Reports every half second spend what is left of it within a minute or two.
LEFT = 120_000
WINDOW_S = 0.5


def passed(board: Board) -> int:
    """Bytes of all purposes, as the board's own status says."""
    return sum(sum(one) for one in board.shown["traffic"].values())


def waiting(board: Board) -> int:
    return len(list((board.agent.state / "samples").glob("*.sample")))


@pytest.mark.timeout(1800)
def test_what_can_wait_is_held_back_as_the_budget_is_spent(field: Field) -> None:
    for number in (1, 2):
        field.publish(made.build(field.folder, version=f"{number}.0.0", seed=number))
    board = field.board("north", "--window", str(WINDOW_S))
    field.operator.types("assign", "digits@1.0.0", "--to", "site=field", "--probation", "1s")
    field.wait(lambda: board.runs("1.0.0"), "it serves")
    assert board.agent.stop() == 0
    limit = passed(board) + LEFT
    board.agentfile(f'[budget]\nper_day = "{limit / 1000:.1f}kB"\n')
    board.agent.start()
    field.wait(lambda: board.view.online, "it is back")
    assert passed(board) > limit - LEFT, "what passed before counts"

    wanted = ("--on", "site=field", "--random", "100%", "--most", "400", "--for", "1h", "--json")
    name = json.loads(field.operator.types("samples", "collect", "digits", *wanted))["id"]

    def asked() -> None:
        assert board.post(IMAGE).status == 200

    field.wait(lambda: asked() or list(field.client.samples(name)), "samples come")
    field.wait(lambda: asked() or "held back: samples" in board.condition("budget"), "samples wait", 300)
    asked()
    field.wait(lambda: asked() or waiting(board), "one lies on its disk")
    came = len(list(field.client.samples(name)))
    windows = board.deployment.telemetry.windows
    field.wait(lambda: board.deployment.telemetry.windows > windows + 3, "reports go on")
    assert len(list(field.client.samples(name))) == came
    assert waiting(board)

    field.wait(lambda: "reports (longer windows)" in board.condition("budget"), "reports are thinned", 300)
    windows = _next_window(field, board)
    since = time.monotonic()
    field.wait(lambda: board.deployment.telemetry.windows >= windows + 2, "reports go on")
    assert time.monotonic() - since > 10 * WINDOW_S, "windows are ten times as long"

    while passed(board) < limit - 3000:
        field.operator.types("device", "command", "log-level", "north", "info", "--wait")
    before = board.view.order_counter
    field.operator.types("assign", "digits@2.0.0", "--to", "site=field", "--probation", "1s")
    field.wait(lambda: board.follows(before + 1), "an order is never held back")
    field.wait(lambda: "have passed: it waits" in board.condition("update-waiting"), "the model waits", 300)
    assert board.deployment.version == "1.0.0"
    field.operator.types("device", "command", "log-level", "north", "debug", "--wait")

    field.operator.types("device", "retry", "north", "--despite-budget")
    field.wait(lambda: board.runs("2.0.0"), "an operator's word counts more")
    assert "models" in board.condition("budget")
    assert board.condition("update-waiting") == ""
    assert passed(board) > limit
    assert len(list(field.client.samples(name))) == came, "that was said of models alone"
    assert board.agent.stop() == 0
    board.agentfile("")
    board.agent.start()
    field.wait(lambda: len(list(field.client.samples(name))) > came, "without a budget what waited goes out")


def _next_window(field: Field, board: Board) -> int:
    """How many windows the fleet knows, just after one came."""
    windows = board.deployment.telemetry.windows
    field.wait(lambda: board.deployment.telemetry.windows > windows, "reports go on")
    return int(board.deployment.telemetry.windows)
