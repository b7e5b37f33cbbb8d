"""Where a device belongs and what it gets there, and who is tried again: tables."""

from datetime import UTC, datetime

import msgspec
import pytest

from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState, FleetState
from fleet.rules import gates, placing, retry, stages, windows
from fleet.rules.machine import advance, start
from fleet.rules.members import Member, Word, hear
from fleet.rules.moving import ordered
from fleet.rules.pace import Pace
from fleet.rules.placing import Assignment, Assignments, Given, Has, Standing, standing
from fleet.rules.rollout import Move, Ordered, Rollout, Spec, Status

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW, OLD = "a" * 64, "b" * 64
GIVEN = Assignments(
    [
        Assignment(4, "digits", "site=attic", "digits", "3"),
        Assignment(3, "faces", "all", "faces", "9"),
        Assignment(2, "digits", "site=lab", "digits", "2"),
        Assignment(1, "digits", "all", "digits", "1"),
    ]
)


@pytest.mark.parametrize(
    ("labels", "deployment", "holds"),
    [
        ({"site": "attic"}, "digits", 4),
        ({"site": "lab"}, "digits", 2),
        ({"site": "roof"}, "digits", 1),
        ({}, "faces", 3),
        ({"site": "lab"}, "words", None),
    ],
)
def test_the_newest_assignment_that_matches_holds(
    labels: dict[str, str], deployment: str, holds: int | None
) -> None:
    found = GIVEN.holding(labels, deployment, [deployment])
    assert (found.id if found is not None else None) == holds


@pytest.mark.parametrize(
    ("has", "newest", "holds", "with_it"),
    [
        (("detector", "reader"), (), 8, [9]),
        # One that lacks a deployment goes on with what was assigned before.
        (("detector",), (), 1, []),
        # A person assigned another reader since: the detector is still what it was.
        (("detector", "reader"), (Assignment(10, "reader", "all", "reader", "4"),), 8, []),
        (("detector", "reader"), (Assignment(10, "detector", "all", "detector", "4"),), 10, []),
    ],
)
def test_what_one_rollout_left_holds_together(
    has: tuple[str, ...], newest: tuple[Assignment, ...], holds: int, with_it: list[int]
) -> None:
    left = [
        Assignment(number, name, "all", name, "2", rollout=7)
        for number, name in ((9, "reader"), (8, "detector"))
    ]
    found = Assignments([*newest, *left, Assignment(1, "detector", "all", "detector", "1", rollout=3)])
    holding = found.holding({}, "detector", has)
    assert holding is not None
    assert holding.id == holds
    assert [other.id for other in found.together(holding, {}, has)] == with_it


@pytest.mark.parametrize(
    ("has", "given", "is_marked", "changes"),
    [
        (None, None, True, False),
        (None, Given(NEW, 5), False, True),
        (None, Given(None, 5), True, False),
        # It has what it has since the assignment was made, or from before that.
        (Has(OLD, 5), Given(NEW, 5), False, False),
        (Has(OLD, 5), Given(NEW, 5), True, True),
        (Has(OLD, 1), Given(NEW, 5), False, True),
        (Has(OLD, 1), Given(None, 5), True, False),
        (Has(NEW, 1), Given(NEW, 5), True, False),
        (Has(OLD, 1), None, True, False),
        # What it has was assigned to it, and is assigned nowhere any more.
        (Has(OLD, 9, is_withdrawn=True), Given(NEW, 5), False, True),
        (Has(NEW, 9, is_withdrawn=True), Given(NEW, 5), False, False),
        (Has(OLD, 9, is_withdrawn=True), Given(None, 5), False, False),
        (Has(OLD, 9, is_withdrawn=True), None, False, True),
    ],
)
def test_what_a_device_gets_where_no_rollout_has_the_say(
    has: Has | None, given: Given | None, is_marked: bool, changes: bool
) -> None:
    assert placing.changes(has, given, is_marked=is_marked) == changes


@pytest.mark.parametrize(
    ("because", "is_withdrawn"),
    [
        ("assignment digits@2", False),
        ("assignment digits@9", True),
        ("kept digits@9", False),
        ("rollout r1", False),
    ],
)
def test_what_was_assigned_is_withdrawn_once_nobody_is_assigned_it(because: str, is_withdrawn: bool) -> None:
    assert GIVEN.withdrew("digits", because) == is_withdrawn


@pytest.mark.parametrize(
    ("zone", "hour", "is_open"),
    [("", 0, False), ("", 9, True), ("Asia/Tokyo", 0, True), ("Asia/Tokyo", 9, False)],
)
def test_a_rollouts_assignment_keeps_its_windows_by_the_devices_clock(
    zone: str, hour: int, is_open: bool
) -> None:
    pace = Pace(windows=(windows.parse("09:00-10:00"),), zone="UTC")
    assert placing.is_open(pace, zone, T0.replace(hour=hour)) == is_open
    assert placing.is_open(Pace(), zone, T0)


@pytest.mark.parametrize(
    ("has", "report", "rests"),
    [
        (None, None, True),
        (OLD, None, False),
        (OLD, DeploymentReport(AgentState.IDLE, OLD, OLD), True),
        (OLD, DeploymentReport(AgentState.PROBATION, OLD, None), False),
        (OLD, DeploymentReport(AgentState.IDLE), False),
        (OLD, DeploymentReport(AgentState.FETCH), False),
        (OLD, DeploymentReport(AgentState.IDLE, reason="self-test failed"), True),
        (OLD, DeploymentReport(AgentState.FAILED, NEW, NEW), True),
    ],
)
def test_who_joins_a_rollout_has_come_to_rest_before(
    has: str | None, report: DeploymentReport | None, rests: bool
) -> None:
    assert placing.is_at_rest(has, report) == rests


def member(device: str = "d", **more: object) -> Member:
    made = Member(device, "p", stages.key("r1", device), NEW, OLD, "old@1", online_since=T0)
    return msgspec.structs.replace(made, **more)


WAITS, MOVED = member(), member(order_counter=7, stage=0)


@pytest.mark.parametrize(
    ("who", "status", "is_selected", "has_deployment", "chain", "becomes"),
    [
        (WAITS, Status.RUNNING, True, True, ["p"], Standing.STAYS),
        (MOVED, Status.RUNNING, True, True, ["special", "p"], Standing.STAYS),
        (WAITS, Status.RUNNING, False, True, ["p"], Standing.LEAVES),
        (MOVED, Status.PAUSED, False, True, ["p"], Standing.LEAVES),
        (MOVED, Status.RUNNING, True, False, ["p"], Standing.LEAVES),
        (WAITS, Status.RUNNING, True, True, ["q"], Standing.LEAVES),
        (MOVED, Status.RUNNING, True, True, ["q"], Standing.EXCHANGED),
        (MOVED, Status.ROLLING_BACK, False, True, ["p"], Standing.STAYS),
        (MOVED, Status.ROLLING_BACK, True, True, ["q"], Standing.EXCHANGED),
        (MOVED, Status.ABORTING, True, False, ["p"], Standing.LEAVES),
    ],
)
def test_what_becomes_of_a_member_whose_device_has_changed(
    who: Member, status: Status, is_selected: bool, has_deployment: bool, chain: list[str], becomes: Standing
) -> None:
    found = standing(who, status, is_selected=is_selected, has_deployment=has_deployment, chain=chain)
    assert found is becomes


def test_labels_are_set_and_taken_away_and_the_others_stay() -> None:
    before = {"site": "lab", "floor": "2"}
    assert placing.relabelled(before, {"site": "attic"}, ("floor",)) == {"site": "attic"}
    assert placing.relabelled(before, {"room": "7"}, ()) == {**before, "room": "7"}


def rollout(*states: FleetState) -> Rollout:
    spec = Spec(
        "m", "2", "m", "all", stages.parse("100%", len(states)), (gates.parse("error_rate < 1%"),),
        soak_s=60.0, on_violation="rollback", deadline_s=300.0, finish_by_s=1e6,
    )  # fmt: skip
    names = [f"d{n}" for n in range(len(states))]
    opened, effects = start(Rollout(1, spec, {name: member(name) for name in names}, T0), T0)
    for effect in effects:
        assert isinstance(effect, Move)
        opened, _ = advance(opened, Ordered(effect.device, 7), T0)
    stood = {
        name: msgspec.structs.replace(opened.members[name], state=state, reason="no space", notified_at=T0)
        for name, state in zip(names, states, strict=True)
    }
    return msgspec.structs.replace(opened, members=stood, soak_from=T0)


def test_only_who_failed_is_tried_again_and_stands_as_if_just_told() -> None:
    world = rollout(FleetState.FAILED, FleetState.SUCCEEDED, FleetState.TIMED_OUT, FleetState.FETCHING)
    assert retry.failed(world) == ["d0", "d2"]
    after, moves = retry.again(world, ["d0", "d1"])
    assert moves == [Move("d0", NEW)]
    assert after.soak_from is None, "the stage soaks anew"
    after = ordered(after, {"d0": 8}, T0)
    tried = after.members["d0"]
    assert (tried.state, tried.reason, tried.notified_at, tried.order_counter) == (
        FleetState.PENDING, "", None, 8,
    )  # fmt: skip
    assert {name: after.members[name] for name in ("d1", "d2", "d3")} == {
        name: world.members[name] for name in ("d1", "d2", "d3")
    }


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.COMPLETED, Status.ROLLING_BACK])
def test_a_rollout_that_is_over_or_turns_back_tries_nobody_again(status: Status) -> None:
    world = msgspec.structs.replace(rollout(FleetState.FAILED), status=status)
    after, moves = retry.again(world, ["d0"])
    is_forward = status in {Status.RUNNING, Status.PAUSED}
    assert (bool(moves), after is not world) == (is_forward, is_forward)


def test_the_refusal_of_the_order_before_is_no_answer_to_the_retry() -> None:
    after, _ = retry.again(rollout(FleetState.REJECTED), ["d0"])
    told = ordered(after, {"d0": 8}, T0).members["d0"]
    word = Word("d0", is_online=True, seen=(1, 1, 1), order_counter=6, refused="no space")
    assert hear(told, word, "m", T0).state is FleetState.PENDING
