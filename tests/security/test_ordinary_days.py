"""An ordinary day of a fleet with TLS and real agents: boards are assigned, joined, written anew, exchanged, moved,
tried again, taken out and deleted while rollouts are under way. One fleet goes through all of it, in this order.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_support import Asker, Operator, live, made, wait_until
from tls_support import TlsFleet, make_fleet

from edgekit.wire.states import FleetState
from fleet import api

pytestmark = [pytest.mark.broker, pytest.mark.slow]
PATIENCE_S = 90
# Behind the others in the order of the first rollout.
NEWCOMER = "newcomer"


class Day:
    """One fleet, its operator, and its boards by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tls").mkdir()
        self.fleet: TlsFleet = make_fleet(folder / "tls")
        self.operator = Operator(self.fleet.service.state)
        self.client = self.fleet.service.client()
        self.agents: list[Any] = []
        self.boards: dict[str, Any] = {}
        self.askers: list[Asker] = []

    def publish(self, number: int) -> None:
        built = made.build(self.folder, version=f"{number}.0.0", seed=number)
        self.operator.types("publish", built.path)

    def join(self, name: str, file: Path) -> None:
        """A board with an empty card and this enrolment file."""
        state = self.folder / f"state-{len(self.agents)}"
        agent = live.AgentProcess(
            state, made.free_port(), "--enrolment", str(file), "--profile", made.PROFILE
        )
        self.agents.append(agent.start())
        self.boards[name] = agent
        self.askers.append(Asker(lambda: made.Client(agent.port)))
        self.wait(lambda: self.has_joined(name), f"{name} has joined")

    def enroll(self, name: str, site: str = "lab") -> None:
        file = self.folder / f"{name}-{len(self.agents)}.json"
        self.operator.types(
            "enroll", name, "--label", f"site={site}", "--deployment", "digits", "--out", file
        )
        self.join(name, file)

    def replaced(self, name: str) -> Path:
        file = self.folder / f"{name}-{len(self.agents)}.json"
        self.operator.types("device", "replace", name, "--out", file)
        return file

    def seen(self, name: str) -> api.DeviceView:
        return self.client.explain(name).device

    def has_joined(self, name: str) -> bool:
        return any(one.online and one.agent_version for one in self.client.devices() if one.device == name)

    def version(self, name: str) -> str:
        return self.seen(name).deployments["digits"].version

    def state(self, rollout: str, name: str) -> str:
        return next((m.state for m in self.client.rollout(rollout).members if m.device == name), "")

    def roll_out(self, release: str, to: str, *more: str) -> str:
        gates = "--on-violation", "pause", "--gate", "install_failures < 90%"
        words = "--probation", "1s", "--soak", "1d", *gates, *more
        self.operator.types("rollout", "start", release, "--to", to, *words)
        return self.client.rollouts()[0].id

    def wait(self, condition: Any, what: str) -> None:
        try:
            wait_until(condition, what, PATIENCE_S)
        except AssertionError as error:
            logs = "\n".join(f"--- {name}\n{board.log[-3000:]}" for name, board in self.boards.items())
            raise AssertionError(f"{error}\n{logs}\n{self.client.rollouts()[:1]}") from error

    def log(self, action: str) -> list[Any]:
        return [entry for entry in self.client.audit(None, 200) if entry.action == action]

    def close(self) -> None:
        for asker in self.askers:
            asker.end()
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                agent.kill_tree()
        self.fleet.service.stop()


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    begun = Day(tmp_path_factory.mktemp("day"))
    try:
        for number in (1, 2, 3):
            begun.publish(number)
        begun.enroll("one")
        begun.enroll("two")
        yield begun
    finally:
        begun.close()


def canary_of(day: Day, rollout: str) -> str:
    moved = [m.device for m in day.client.rollout(rollout).members if m.stage is not None]
    assert len(moved) == 1
    return moved[0]


@pytest.mark.proof
def test_a_release_is_assigned_without_a_rollout(day: Day) -> None:
    to = "digits@1.0.0", "--to", "site=lab", "--probation", "1s"
    assert "nothing was assigned" in day.operator.types("assign", *to, "--dry-run")
    assert "assigned as a1" in day.operator.types("assign", *to)
    for name in ("one", "two"):
        day.wait(lambda name=name: day.version(name) == "1.0.0", f"{name} runs what is assigned")
    assert "digits@1.0.0" in day.operator.types("assignments")
    [entry] = day.log("assignment.add")
    assert '"moves":2' in entry.after


@pytest.mark.proof
def test_a_board_that_joins_in_the_middle_of_a_rollout_gets_its_assignment_first(day: Day) -> None:
    rollout = day.roll_out("digits@2.0.0", "site=lab", "--stages", "1,100%")
    canary = canary_of(day, rollout)
    day.wait(lambda: day.state(rollout, canary) == FleetState.SUCCEEDED, "the canary arrived")
    assert f"rollout {rollout} has it until that ends" in day.operator.types("device", "explain", canary)
    day.enroll(NEWCOMER)
    day.wait(lambda: day.version(NEWCOMER) == "1.0.0", "it has what is assigned")
    day.wait(lambda: day.state(rollout, NEWCOMER) == FleetState.PENDING, "and then is in the rollout")
    [late] = [m for m in day.client.rollout(rollout).members if m.device == NEWCOMER]
    assert (late.stage, late.previous) == (None, "digits@1.0.0")


@pytest.mark.proof
def test_a_card_written_anew_in_the_middle_of_a_rollout_gets_the_same_again(day: Day) -> None:
    rollout = day.client.rollouts()[0].id
    canary = canary_of(day, rollout)
    board = day.boards[canary]
    board.kill_tree()
    shutil.rmtree(board.state)
    day.join(canary, day.replaced(canary))
    day.wait(lambda: day.version(canary) == "2.0.0", "it is a canary again")
    assert day.client.rollout(rollout).status == "running"
    assert day.state(rollout, canary) == FleetState.SUCCEEDED
    assert day.seen(canary).labels["site"] == "lab", "the file had it"


@pytest.mark.proof
def test_an_older_board_that_keeps_coming_is_told_from_the_one_in_its_place(day: Day) -> None:
    canary = canary_of(day, day.client.rollouts()[0].id)
    name = next(name for name in ("one", "two") if name != canary)
    old = day.boards[name]
    day.join(name, day.replaced(name))
    day.wait(lambda: day.version(name) == "1.0.0", "the new board runs what the old one did")
    day.wait(lambda: day.seen(name).former_seen, "the old one is marked")
    assert old.process.poll() is None
    assert "with the identity of enrolment 1 (this one is 2)" in day.operator.types("device", "explain", name)
    assert "an older board comes too" in day.operator.types("devices")
    assert [entry.subject for entry in day.log("device.former")] == [name]
    # It comes over WebSockets, where mosquitto 2.0.11 looks at no list of revocations (docs/network.md).
    old.kill_tree()
    day.wait(lambda: day.seen(name).online, "the new one is alone, and online")


@pytest.mark.proof
def test_a_relabelled_board_leaves_the_rollout_after_a_freeze_and_follows_its_new_group(day: Day) -> None:
    rollout = day.client.rollouts()[0].id
    canary = canary_of(day, rollout)
    day.operator.types("assign", "digits@3.0.0", "--to", "site=attic", "--probation", "1s")
    day.operator.types("freeze", "--reason", "friday")
    day.operator.types("device", "label", canary, "site=attic", "floor=3")
    assert day.state(rollout, canary) == FleetState.SUCCEEDED
    day.operator.types("unfreeze")
    day.wait(lambda: day.version(canary) == "3.0.0", "it follows the attic's assignment")
    assert day.state(rollout, canary) == ""
    day.wait(lambda: any(m.stage is not None for m in day.client.rollout(rollout).members), "another is one")
    day.operator.types("device", "label", canary, "floor-")
    assert [entry.after for entry in day.log("device.label")] == [
        '{"site":"attic"}',
        '{"site":"attic","floor":"3"}',
    ]
    assert [(e.action, e.before, e.after) for e in day.log("fleet.unfreeze")] == [
        ("fleet.unfreeze", "true", "false")
    ]


@pytest.mark.proof
def test_an_abort_when_all_are_updated_keeps_what_is_there(day: Day) -> None:
    day.operator.types("rollout", "abort", day.client.rollouts()[0].id)
    day.wait(lambda: day.client.rollouts()[0].status == "aborted", "the first is over")
    rollout = day.roll_out("digits@2.0.0", "site=lab", "--stages", "100%", "--deployment", "digits")
    names = [m.device for m in day.client.rollout(rollout).members]
    day.wait(lambda: day.client.rollout(rollout).counts == {"succeeded": len(names)}, "all are updated")
    day.operator.types("rollout", "abort", rollout)
    day.wait(lambda: day.client.rollout(rollout).status == "aborted", "it is over")
    assert {name: day.version(name) for name in names} == dict.fromkeys(names, "2.0.0")


@pytest.mark.proof
def test_a_board_that_hung_and_missed_its_time_is_tried_again(day: Day) -> None:
    day.publish(4)
    board = day.boards[NEWCOMER].process.pid
    os.kill(board, signal.SIGSTOP)
    rollout = day.roll_out("digits@4.0.0", f"device={NEWCOMER}", "--stages", "100%", "--deadline", "3s")
    day.wait(lambda: day.state(rollout, NEWCOMER) == FleetState.TIMED_OUT, "it is given up")
    day.wait(lambda: day.client.rollout(rollout).status == "paused", "the rollout waits for a person")
    assert f"{NEWCOMER} try again" in day.operator.types("rollout", "retry", rollout, NEWCOMER)
    os.kill(board, signal.SIGCONT)
    day.wait(lambda: day.state(rollout, NEWCOMER) == FleetState.SUCCEEDED, "it runs the release")
    assert day.version(NEWCOMER) == "4.0.0"
    assert "tries again" in day.operator.types("device", "retry", NEWCOMER)
    [entry] = day.log("rollout.retry")
    assert '"state":"timed_out"' in entry.before
    assert [entry.subject for entry in day.log("device.retry")] == [NEWCOMER]


@pytest.mark.proof
def test_boards_are_taken_out_and_deleted_and_the_name_is_free(day: Day) -> None:
    before = day.boards[NEWCOMER]
    day.operator.types("device", "decommission", "one", "--reason", "sold")
    day.operator.types("device", "delete", NEWCOMER, "--reason", "scrapped")
    assert NEWCOMER not in day.operator.devices()
    assert "one" not in day.operator.devices()
    before.kill_tree()
    day.enroll(NEWCOMER, site="roof")
    assert day.seen(NEWCOMER).labels["site"] == "roof"
    [entry] = day.log("device.delete")
    assert (entry.detail, '"enrolment":1' in entry.before) == ("scrapped", True)
    assert day.log("device.enrol")[0].after.startswith('{"enrolment":2')
    assert not day.client.audit_verdict().problems
