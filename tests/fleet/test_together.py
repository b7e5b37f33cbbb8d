"""Several deployments that move together in one rollout: what devices say, which gates hold, who goes back."""

import pytest
from msgspec.structs import replace
from test_rollout_machine import (
    NEW,
    NEW_N,
    NOTIFIED,
    OLD,
    OLD_N,
    T0,
    advance,
    data,
    order,
    pair,
    rollout,
    seconds,
    start,
)

from edgekit.errors import UsageError
from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState, FleetState
from fleet.rules import gates, retry
from fleet.rules.members import Member, Part, Word, hear
from fleet.rules.rollout import Command, Heard, Move, Status, Tick

TOLD = replace(NOTIFIED, order_counter=7, beside=(Part(NEW_N, OLD_N, "n@1"),))
ARRIVED = replace(TOLD, state=FleetState.SUCCEEDED)
SHOWN = {
    "new": lambda old, new: DeploymentReport(AgentState.IDLE, new, new, new),
    "old": lambda old, new: DeploymentReport(AgentState.IDLE, old, old, old),
    "fetch": lambda old, new: DeploymentReport(AgentState.FETCH, old, old, new),
    "proves": lambda old, new: DeploymentReport(AgentState.PROBATION, new, old, new),
    "fails": lambda old, new: DeploymentReport(AgentState.FAILED, old, old, new, reason="no"),
    "diverges": lambda old, new: DeploymentReport(AgentState.DIVERGED, old, old, new, reason="crash loop"),
}


def spoken(first: str, second: str, counter: int = 7) -> Word:
    reports = {"m": (first, OLD, NEW), "n": (second, OLD_N, NEW_N)}
    shown = {name: SHOWN[how](old, new) for name, (how, old, new) in reports.items() if how}
    return Word("d", is_online=True, seen=(1, 1, 1), order_counter=counter, deployments=shown)


@pytest.mark.parametrize(
    ("before", "first", "second", "state", "reason", "goes_back"),
    [
        (TOLD, "new", "new", FleetState.SUCCEEDED, "", False),
        (TOLD, "new", "old", FleetState.NOTIFIED, "", False),
        (TOLD, "new", "fetch", FleetState.FETCHING, "", False),
        (TOLD, "fetch", "proves", FleetState.FETCHING, "", False),
        (TOLD, "proves", "new", FleetState.PROBATION, "", False),
        (TOLD, "new", "", FleetState.NOTIFIED, "", False),
        (TOLD, "new", "fails", FleetState.FAILED, "n: no", True),
        (TOLD, "fails", "fetch", FleetState.FAILED, "m: no", True),
        (TOLD, "fails", "old", FleetState.FAILED, "m: no", True),
        (ARRIVED, "new", "diverges", FleetState.DIVERGED, "n: crash loop", True),
        (ARRIVED, "old", "new", FleetState.DIVERGED, "m: left the release again", True),
        # Late is late: only half of it would be worse.
        (replace(TOLD, state=FleetState.TIMED_OUT), "fetch", "fetch", FleetState.TIMED_OUT, "", False),
        (replace(TOLD, state=FleetState.TIMED_OUT), "new", "fetch", FleetState.TIMED_OUT, "", True),
        (replace(TOLD, state=FleetState.TIMED_OUT), "new", "new", FleetState.SUCCEEDED, "", False),
    ],
)
def test_a_device_has_arrived_when_all_have_and_failed_when_one_has(  # a table's columns
    before: Member, first: str, second: str, state: FleetState, reason: str, goes_back: bool
) -> None:
    after = hear(before, spoken(first, second), ("m", "n"), T0)
    assert (after.state, after.reason, after.is_leaving) == (state, reason, goes_back)


@pytest.mark.parametrize(("first", "second", "is_back"), [("old", "old", True), ("old", "new", False)])
def test_a_device_is_back_when_all_are(first: str, second: str, is_back: bool) -> None:
    returning = replace(TOLD, is_returning=True)
    after = hear(returning, spoken(first, second), ("m", "n"), T0)
    assert (after.state is FleetState.ROLLED_BACK) == is_back


def test_who_failed_in_one_is_sent_back_at_once_even_while_the_rollout_is_paused_and_can_be_tried_again() -> (
    None
):
    world, effects = start(pair(rollout(4, "100%")), T0)
    world = order(world, effects, T0)
    world, _ = advance(world, Command("pause"), T0)
    word = replace(spoken("new", "fails", counter=1), device="d1")
    world, _ = advance(world, Heard((word,)), T0)
    world, effects = advance(world, Tick(data(world)), T0)
    assert effects == [Move("d1", OLD, (OLD_N,))]
    world = order(world, effects, T0, counter=2)
    assert advance(world, Tick(data(world)), T0)[1] == [], "once"
    again, moves = retry.again(world, ["d1"])
    assert moves == [Move("d1", NEW, (NEW_N,))]
    assert (again.members["d1"].is_returning, again.members["d1"].state) == (False, FleetState.PENDING)
    back = replace(spoken("old", "old", counter=2), device="d1", seen=(1, 1, 2))
    world, _ = advance(world, Heard((back,)), T0)
    assert world.members["d1"].state is FleetState.ROLLED_BACK
    still = replace(back, seen=(1, 1, 3))
    world, _ = advance(world, Heard((still,)), T0)
    assert advance(world, Tick(data(world)), T0)[1] == []


@pytest.mark.parametrize(
    ("first", "second", "blamed"), [(900, 0, "m: error_rate"), (0, 900, "n: error_rate")]
)
def test_a_harm_in_either_is_found_and_blamed_by_name_and_both_go_back(
    first: int, second: int, blamed: str
) -> None:
    world, effects = start(pair(rollout()), T0)
    world = order(world, effects, T0)
    world, back = advance(world, Tick(data(world, errors=first, errors_beside=second)), T0 + seconds(1))
    assert world.status is Status.ROLLING_BACK
    assert world.reason.startswith(blamed)
    moved = {m.device for m in world.members.values() if m.order_counter}
    assert {(move.device, move.wanted) for move in back if isinstance(move, Move)} == {
        (device, (OLD, OLD_N)) for device in moved
    }


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (["error_rate < 1%"], ["m: error_rate < 1%", "n: error_rate < 1%"]),
        (["n: error_rate < 1%"], ["n: error_rate < 1%"]),
        (["error_rate < 1%", "n : error_rate < 5%"], ["m: error_rate < 1%", "n : error_rate < 5%"]),
        (["lost <= 5%"], ["lost <= 5%"]),
        (["metric:sold >= 3"], ["m: metric:sold >= 3", "n: metric:sold >= 3"]),
    ],
)
def test_a_gate_holds_for_each_unless_it_names_one(given: list[str], texts: list[str]) -> None:
    made = gates.of_each([gates.parse(text) for text in given], ("m", "n"))
    assert [gate.text for gate in made] == texts
    assert all(gate.deployment == gate.text[0] for gate in made if ":" in gate.text.replace("metric:", ""))
    assert all(gate.words.startswith(f"{gate.deployment}: ") for gate in made if gate.deployment)


@pytest.mark.parametrize(
    ("text", "told"),
    [("x: error_rate < 1%", "does not move 'x', but m, n"), ("n: lost <= 5%", "counts devices")],
)
def test_a_gate_that_names_what_does_not_move_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        gates.of_each([gates.parse(text)], ("m", "n"))


def test_a_rollout_of_one_keeps_its_gates_as_they_are() -> None:
    one = gates.parse("error_rate < 1%")
    named = gates.parse("raspi-5.cam: error_rate < 1%")
    assert gates.of_each([one], ("m",)) == (one,)
    assert gates.of_each([named], ("raspi-5.cam",))[0].deployment == "raspi-5.cam"
