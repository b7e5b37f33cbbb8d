"""The rollout machine under any order of events, and a table of what single devices' words mean."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgekit.sketch import Sketch, of
from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState, FleetState
from fleet.rules import gates, stages
from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence
from fleet.rules.gates import Outcome
from fleet.rules.machine import advance, start
from fleet.rules.members import BAD, Member, Word, hear, time_out
from fleet.rules.moving import is_allowed
from fleet.rules.rollout import (
    ACTIVE,
    Assign,
    Command,
    Effect,
    Heard,
    Joined,
    Left,
    Move,
    Ordered,
    Rollout,
    Spec,
    Status,
    Tick,
    Unassign,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW, OLD = "a" * 64, "b" * 64
SOAK_S, DEADLINE_S = 60.0, 300.0


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def member(device: str, **more: object) -> Member:
    base = Member(device, "p", stages.key("r1", device), NEW, OLD, "old@1", online_since=T0)
    return msgspec.structs.replace(base, **more)


def spec(cut: str, count: int, **more: object) -> Spec:
    wanted = {
        "soak_s": SOAK_S,
        "on_violation": "rollback",
        "deadline_s": DEADLINE_S,
        "finish_by_s": 1e6,
    } | more
    return Spec(
        "m",
        "2",
        "m",
        "all",
        stages.parse(cut, count),
        (gates.parse("error_rate < 1% min 10 requests"),),
        **wanted,
    )


def rollout(count: int = 10, cut: str = "10%,50%,100%", **more: object) -> Rollout:
    members = {f"d{n}": member(f"d{n}", profile=f"p{n % 2}") for n in range(count)}
    return Rollout(id=1, spec=spec(cut, count, **more), members=members, created_at=T0)


def data(
    world: Rollout, errors: int = 0, requests: int = 1000, silent: frozenset[str] = frozenset()
) -> StageEvidence:
    """What is known after ten minutes; every canary has served `requests` with `errors`, `silent` ones are not heard."""
    sketch = of([1.0] * requests) if requests else Sketch()
    now = 600.0
    moved = sorted(
        (m for m in world.members.values() if m.order_counter), key=lambda m: (m.ordered_at, m.key)
    )
    order = {m.device: at for at, m in enumerate(moved)}
    known = {FleetState.SUCCEEDED: True} | dict.fromkeys(BAD, False)
    return StageEvidence(
        {
            m.device: DeviceEvidence(
                m.device,
                m.profile,
                Arm.CANARY if m.order_counter else Arm.CONTROL,
                at_risk=True,
                windows=5 if m.order_counter else 0,
                warm_windows=4 if m.order_counter else 0,
                requests=requests if m.order_counter else 0,
                errors=errors if m.order_counter else 0,
                sketch=sketch if m.order_counter else Sketch(),
                last_report_at=0.0 if m.device in silent else now,
                notified_at=0.0 if m.notified_at else None,
                installed=known.get(m.state),
                order=order.get(m.device),
                is_excused=m.is_excused,
                is_online=m.is_online,
            )
            for m in world.members.values()
        },
        now=now,
    )


def succeeded(device: str, counter: int, seq: int, digest: str = NEW) -> Word:
    return Word(
        device, is_online=True, seen=(1, 1, seq), order_counter=counter, deployments={"m": at_rest(digest)}
    )


def at_rest(digest: str | None) -> DeploymentReport:
    return DeploymentReport(AgentState.IDLE, digest, digest, digest)


class Machine(RuleBasedStateMachine):
    """Devices that answer as they like, an operator who does as she likes, data that say anything."""

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.counter = 100
        self.seq = 0
        self.told: dict[str, int] = {}
        self.world = rollout(12, "1,25%,100%")
        self.carry_out(*start(self.world, self.now))

    def carry_out(self, changed: Rollout, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Move):
                if effect.sha256 == NEW:
                    assert effect.device in changed.members, "only selected devices are told to move"
                    assert is_allowed(changed, changed.members[effect.device]), "only within the open stage"
                    assert changed.status is Status.RUNNING
                self.counter += 1
                self.told[effect.device] = self.counter
                changed, more = advance(changed, Ordered(effect.device, self.counter), self.now)
                assert not more
        self.world = changed

    def step(self, event: object) -> None:
        self.carry_out(*advance(self.world, event, self.now))  # type: ignore[arg-type]

    @rule(
        pick=st.integers(0, 11),
        how=st.sampled_from(["arrive", "fail", "fetch", "old", "away", "back", "leave"]),
    )
    def a_device_speaks(self, pick: int, how: str) -> None:
        name = f"d{pick}"
        if name not in self.world.members:
            return
        self.seq += 1
        counter = self.told.get(name, 0)
        target = self.world.members[name].target
        reports = {
            "arrive": at_rest(target),
            "fail": DeploymentReport(AgentState.FAILED, OLD, OLD, target, reason="no"),
            "fetch": DeploymentReport(AgentState.FETCH, OLD, OLD, target),
            "old": at_rest(OLD),
            "back": at_rest(OLD),
            "leave": DeploymentReport(AgentState.DIVERGED, OLD, OLD, target, reason="crash loop"),
        }
        if how == "away":
            word = Word(name, is_online=False)
        else:
            word = Word(
                name,
                is_online=True,
                seen=(1, 1, self.seq),
                order_counter=counter,
                deployments={"m": reports[how]},
            )
        before = self.world
        self.step(Heard((word,)))
        after = self.world
        self.step(Heard((word,)))
        assert self.world is after, "a repeat changes nothing"
        if how != "away":
            stale = msgspec.structs.replace(word, seen=(1, 1, self.seq - 1), deployments={"m": at_rest(NEW)})
            self.step(Heard((stale,)))
        assert self.world.members == after.members, "an older word after a newer one changes nothing"
        newly = after.members[name].state is FleetState.SUCCEEDED
        if newly and before.members[name].state is not FleetState.SUCCEEDED:
            assert how == "arrive"
            assert counter > 0

    @rule(passes=st.floats(0, 200), kind=st.sampled_from(["good", "none", "bad"]))
    def time_passes(self, passes: float, kind: str) -> None:
        self.now += seconds(passes)
        seen = {"good": (0, 1000), "none": (0, 0), "bad": (500, 1000)}[kind]
        before = self.world
        self.step(Tick(data(before, errors=seen[0], requests=seen[1])))
        after = self.world
        if after.stage > before.stage or (
            after.status is Status.COMPLETED and before.status is Status.RUNNING
        ):
            assert kind == "good", "missing or bad data never opens a stage"
            assert before.soak_from is not None
            assert self.now >= before.soak_from + seconds(SOAK_S)
            assert any(m.state is FleetState.SUCCEEDED for m in before.members.values())
            assert after.stage - before.stage <= 1

    @rule(verb=st.sampled_from(["pause", "resume", "abort", "rollback"]))
    def the_operator_acts(self, verb: str) -> None:
        self.step(Command(verb))

    @rule(pick=st.integers(100, 110))
    def a_device_joins(self, pick: int) -> None:
        self.step(Joined((member(f"late{pick}"),)))

    @rule(names=st.sets(st.sampled_from([*(f"d{n}" for n in range(12)), "late100", "late101"]), max_size=4))
    def devices_are_taken_out_of_service(self, names: set[str]) -> None:
        self.step(Left(tuple(names)))
        if self.world.status in ACTIVE:
            assert not names & self.world.members.keys()

    @invariant()
    def nobody_runs_ahead_of_the_stage(self) -> None:
        for m in self.world.members.values():
            if m.order_counter:
                assert is_allowed(self.world, m)

    @precondition(lambda self: self.world.status in ACTIVE)
    @rule()
    def it_can_always_be_brought_back(self) -> None:
        """From any state: roll back, let the deadline pass, and it has ended."""
        branch = (self.world, self.now, dict(self.told), self.counter)
        self.step(Command("rollback"))
        self.now += seconds(DEADLINE_S + 1)
        self.step(Tick(StageEvidence()))
        assert self.world.status not in ACTIVE
        self.world, self.now, self.told, self.counter = branch


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def run_stage(world: Rollout, now: datetime, counter: int) -> tuple[Rollout, list[Effect], datetime]:
    """All told devices arrive, the soak passes with good data."""
    words = tuple(
        succeeded(m.device, counter + 1000, int(now.timestamp()))
        for m in world.members.values()
        if m.order_counter
    )
    world, _ = advance(world, Heard(words), now)
    world, _ = advance(world, Tick(data(world)), now)
    now += seconds(SOAK_S)
    world, effects = advance(world, Tick(data(world)), now)
    return world, effects, now


def order(world: Rollout, effects: list[Effect], now: datetime, counter: int = 1) -> Rollout:
    for effect in effects:
        if isinstance(effect, Move):
            world, _ = advance(world, Ordered(effect.device, counter), now)
    return world


def test_a_healthy_rollout_completes_stage_by_stage_and_assigns() -> None:
    world, effects = start(rollout(), T0)
    now, sizes = T0, []
    while world.status is Status.RUNNING:
        sizes.append(len(effects))
        world = order(world, effects, now)
        world, effects, now = run_stage(world, now, 1)
    assert sizes == [2, 4, 4], (
        "ten percent of five is one of each profile, then half of each rounded up, then all"
    )
    assert (world.status, effects) == (Status.COMPLETED, [Assign()])


def test_a_bad_gate_rolls_back_every_device_that_was_told_to_move() -> None:
    world, effects = start(rollout(), T0)
    world = order(world, effects, T0)
    world, back = advance(world, Tick(data(world, errors=900)), T0 + seconds(1))
    assert world.status is Status.ROLLING_BACK
    assert "error_rate" in world.reason
    assert {(e.device, e.sha256) for e in back if isinstance(e, Move)} == {
        (m.device, OLD) for m in world.members.values() if m.order_counter
    }
    world = order(world, back, T0 + seconds(1), counter=2)
    words = tuple(succeeded(e.device, 2, 5, OLD) for e in back if isinstance(e, Move))
    world, _ = advance(world, Heard(words), T0 + seconds(2))
    world, _ = advance(world, Tick(StageEvidence()), T0 + seconds(3))
    assert world.status is Status.ROLLED_BACK
    assert {m.state for m in world.members.values() if m.order_counter} == {FleetState.ROLLED_BACK}


@pytest.mark.parametrize(
    ("on_violation", "status"),
    [("pause", Status.PAUSED), ("abort", Status.ABORTING), ("rollback", Status.ROLLING_BACK)],
)
def test_what_a_violation_does_is_the_operators_choice(on_violation: str, status: Status) -> None:
    world, effects = start(rollout(on_violation=on_violation), T0)
    world, _ = advance(order(world, effects, T0), Tick(data(world)), T0)
    world = order(world, effects, T0)
    assert advance(world, Tick(data(world, errors=900)), T0)[0].status is status


def test_a_stage_without_samples_waits_twice_the_soak_then_pauses() -> None:
    world, effects = start(rollout(), T0)
    world = order(world, effects, T0)
    words = tuple(succeeded(m.device, 1, 1) for m in world.members.values() if m.order_counter)
    world, _ = advance(world, Heard(words), T0)
    for at, status in [
        (0, "running"),
        (SOAK_S, "running"),
        (2 * SOAK_S - 1, "running"),
        (2 * SOAK_S, "paused"),
    ]:
        world, _ = advance(world, Tick(data(world, requests=0)), T0 + seconds(at))
        assert world.status == status, at
    assert "too little data" in world.reason


def test_two_failures_among_the_first_five_pause_even_if_the_rest_would_pass() -> None:
    world, effects = start(rollout(20, "50%,100%"), T0)
    world = order(world, effects, T0)
    first = [e.device for e in effects if isinstance(e, Move)][:2]
    failed = DeploymentReport(AgentState.FAILED, OLD, OLD, NEW, reason="self-test")
    words = tuple(
        Word(d, is_online=True, seen=(1, 1, 1), order_counter=1, deployments={"m": failed}) for d in first
    )
    world, _ = advance(world, Heard(words), T0)
    world, _ = advance(world, Tick(data(world)), T0)
    assert world.status is Status.PAUSED
    assert "2 of the first 5" in world.reason


def test_silent_canaries_are_lost_even_though_the_rest_look_fine() -> None:
    world, effects = start(rollout(40, "50%,100%"), T0)
    world = order(world, effects, T0)
    moved = [e.device for e in effects if isinstance(e, Move)]
    world, _ = advance(world, Heard(tuple(succeeded(d, 1, 1) for d in moved)), T0)
    world, _ = advance(world, Tick(data(world, silent=frozenset(moved[:10]))), T0)
    assert world.status is Status.ROLLING_BACK
    assert "10 of 20 devices lost" in world.reason


def test_control_devices_as_silent_excuse_the_canaries() -> None:
    world, effects = start(rollout(40, "50%,100%"), T0)
    world = order(world, effects, T0)
    moved = [e.device for e in effects if isinstance(e, Move)]
    world, _ = advance(world, Heard(tuple(succeeded(d, 1, 1) for d in moved)), T0)
    stayed = [name for name in world.members if name not in moved]
    outage = data(world, silent=frozenset(moved[:10] + stayed[:10]))
    assert advance(world, Tick(outage), T0)[0].status is Status.RUNNING


def test_those_who_were_silent_when_the_stage_opened_are_nobodys_usual_silence() -> None:
    """7 of 20 canaries killed beside 14 of 40 controls that were dead long before: 35 % beside 35 %, and not the same."""
    world, effects = start(rollout(62, "30%,100%"), T0)
    world = order(world, effects, T0)
    moved = [e.device for e in effects if isinstance(e, Move)]
    world, _ = advance(world, Heard(tuple(succeeded(d, 1, 1) for d in moved)), T0)
    stayed = [name for name in world.members if name not in moved]
    dead = frozenset(stayed[:14])
    seen = data(world, silent=frozenset(moved[:8]) | dead)
    seen = msgspec.structs.replace(
        seen,
        devices={
            name: msgspec.structs.replace(device, at_risk=name not in dead)
            for name, device in seen.devices.items()
        },
    )
    world, _ = advance(world, Tick(seen), T0)
    assert world.status is Status.ROLLING_BACK
    assert "lost" in world.reason


def test_while_the_fleet_itself_was_deaf_nobody_was_silent() -> None:
    world, effects = start(rollout(40, "50%,100%"), T0)
    world = order(world, effects, T0)
    moved = [e.device for e in effects if isinstance(e, Move)]
    world, _ = advance(world, Heard(tuple(succeeded(d, 1, 1) for d in moved)), T0)
    deaf = msgspec.structs.replace(data(world, silent=frozenset(moved)), heard_since=590.0)
    world, _ = advance(world, Tick(deaf), T0)
    assert world.status is Status.RUNNING
    assert all(v.outcome is not Outcome.VIOLATED for v in world.verdicts)


def test_a_paused_rollout_is_judged_and_still_turns_back() -> None:
    world, effects = start(rollout(), T0)
    world, _ = advance(order(world, effects, T0), Command("pause"), T0)
    world, back = advance(world, Tick(data(world, errors=990)), T0 + seconds(1))
    assert world.status is Status.ROLLING_BACK
    assert back


def test_resuming_keeps_what_was_seen_unless_it_is_what_the_operator_overrules() -> None:
    world, effects = start(rollout(on_violation="pause"), T0)
    world = order(world, effects, T0)
    paused, _ = advance(world, Command("pause"), T0)
    resumed, _ = advance(paused, Command("resume"), T0 + seconds(9))
    assert (resumed.judged_from, resumed.spent.resumed) == (T0, 0)
    violated, _ = advance(world, Tick(data(world, errors=900)), T0 + seconds(1))
    assert violated.status is Status.PAUSED
    resumed, _ = advance(violated, Command("resume"), T0 + seconds(9))
    assert (resumed.judged_from, resumed.spent.resumed) == (T0 + seconds(9), 1)


def test_resuming_after_its_time_gives_it_as_long_again() -> None:
    world, effects = start(rollout(finish_by_s=100.0), T0)
    world = order(world, effects, T0)
    words = tuple(succeeded(e.device, 1, 1) for e in effects if isinstance(e, Move))
    world, _ = advance(world, Heard(words), T0)
    world, _ = advance(world, Tick(data(world)), T0 + seconds(101))
    assert (world.status, "not finished within its time" in world.reason) == (Status.PAUSED, True)
    world, _ = advance(world, Command("resume"), T0 + seconds(500))
    world, _ = advance(world, Tick(data(world)), T0 + seconds(501))
    assert world.status is Status.RUNNING


def test_where_the_only_canary_of_a_profile_is_away_the_next_device_stands_in() -> None:
    world = rollout(20, "10%,100%")
    first = min((m for m in world.members.values() if m.profile == "p0"), key=lambda m: m.key)
    away = msgspec.structs.replace(first, online_since=None)
    world = msgspec.structs.replace(world, members=world.members | {first.device: away})
    world, effects = start(world, T0)
    world = order(world, effects, T0)
    world, effects = advance(world, Tick(data(world)), T0 + seconds(1))
    assert [e.device for e in effects if isinstance(e, Move)] == [
        sorted((m for m in world.members.values() if m.profile == "p0"), key=lambda m: m.key)[1].device
    ]
    world = order(world, effects, T0, counter=2)
    assert advance(world, Tick(data(world)), T0 + seconds(2))[1] == []


def test_one_lost_device_of_few_waits_then_pauses_and_can_be_excused() -> None:
    world, effects = start(rollout(4, "100%"), T0)
    world = order(world, effects, T0)
    words = tuple(succeeded(e.device, 1, 1) for e in effects[1:] if isinstance(e, Move))
    world, _ = advance(world, Heard(words), T0)
    stuck = effects[0]
    assert isinstance(stuck, Move)
    heard = Word(
        stuck.device, is_online=True, seen=(1, 1, 1), order_counter=1, deployments={"m": at_rest(OLD)}
    )
    world, _ = advance(world, Heard((heard,)), T0)
    now = T0 + seconds(DEADLINE_S)
    for at in (0.0, 2 * SOAK_S):
        world, _ = advance(world, Tick(data(world)), now + seconds(at))
    assert world.status is Status.PAUSED
    assert "too few to tell a broken device from a broken release" in world.reason
    now += seconds(2 * SOAK_S)
    world, _ = advance(world, Command("resume"), now)
    for at in (0.0, SOAK_S):
        world, _ = advance(world, Tick(data(world)), now + seconds(at))
    assert world.status is Status.COMPLETED


def test_held_devices_follow_in_the_closing_stage_only() -> None:
    world = rollout(10, "100%")
    closing = (*world.spec.stages, stages.Stage(1.0, "held", is_closing=True))
    members = {n: msgspec.structs.replace(m, is_held=n in ("d1", "d2")) for n, m in world.members.items()}
    world = msgspec.structs.replace(
        world, members=members, spec=msgspec.structs.replace(world.spec, stages=closing)
    )
    world, effects = start(world, T0)
    assert {"d1", "d2"}.isdisjoint({e.device for e in effects if isinstance(e, Move)})
    world, effects, _ = run_stage(order(world, effects, T0), T0, 1)
    assert {e.device for e in effects if isinstance(e, Move)} == {"d1", "d2"}


def test_an_abort_leaves_the_committed_ones_where_they_are() -> None:
    world, effects = start(rollout(4, "100%"), T0)
    world = order(world, effects, T0)
    world, _ = advance(world, Heard((succeeded("d0", 1, 1),)), T0)
    world, back = advance(world, Command("abort"), T0)
    assert {e.device for e in back if isinstance(e, Move)} == {"d1", "d2", "d3"}


def test_a_device_out_of_service_counts_for_nothing_and_holds_nobody_up() -> None:
    world, moves = start(rollout(4, "2,100%"), T0)
    first, second = [effect.device for effect in moves if isinstance(effect, Move)]
    for counter, device in enumerate((first, second), 1):
        world, _ = advance(world, Ordered(device, counter), T0)
    fetching = Word(first, is_online=True, seen=(1, 1, 1), order_counter=1)
    world, _ = advance(world, Heard((fetching, succeeded(second, 2, 1))), T0)
    waiting, _ = advance(world, Tick(data(world)), T0 + seconds(1))
    assert waiting.soak_from is None, "it waits for the first"
    world, effects = advance(waiting, Left((first,)), T0 + seconds(2))
    assert (set(world.members) & {first}, effects) == (set(), [])
    assert advance(world, Left((first,)), T0 + seconds(2))[0] is world
    world, _ = advance(world, Tick(data(world)), T0 + seconds(3))
    assert world.soak_from == T0 + seconds(3)
    world, _ = advance(world, Tick(data(world)), T0 + seconds(4 + SOAK_S))
    assert (world.status, world.stage) == (Status.RUNNING, 1)


def test_a_stage_that_lost_all_its_devices_takes_the_next_and_a_rollout_without_any_ends() -> None:
    alike = {name: msgspec.structs.replace(m, profile="p0") for name, m in rollout(2).members.items()}
    world, [move] = start(msgspec.structs.replace(rollout(2, "1,100%"), members=alike), T0)
    assert isinstance(move, Move)
    world, _ = advance(world, Ordered(move.device, 1), T0)
    world, [following] = advance(world, Left((move.device,)), T0 + seconds(1))
    assert isinstance(following, Move)
    assert (following.device != move.device, world.stage) == (True, 0)
    world, _ = advance(world, Ordered(following.device, 2), T0)
    world, effects = advance(world, Left((following.device,)), T0 + seconds(2))
    assert (world.status, effects) == (Status.ABORTED, [])
    assert "out of service" in world.reason


def test_a_completed_rollout_rolled_back_gives_the_assignment_back() -> None:
    world, effects = start(rollout(4, "100%"), T0)
    world, _, now = run_stage(order(world, effects, T0), T0, 1)
    assert world.status is Status.COMPLETED
    world, effects = advance(world, Command("rollback"), now)
    assert Unassign() in effects
    assert len(effects) == 5


TOLD = member("d", order_counter=7, ordered_at=T0, stage=0)
NOTIFIED = msgspec.structs.replace(TOLD, state=FleetState.NOTIFIED, notified_at=T0)
PROVING = msgspec.structs.replace(NOTIFIED, state=FleetState.PROBATION)
ARRIVED = msgspec.structs.replace(NOTIFIED, state=FleetState.SUCCEEDED)
LATE = msgspec.structs.replace(NOTIFIED, state=FleetState.TIMED_OUT)


def report(
    state: AgentState, digest: str | None = OLD, committed: str | None = OLD, reason: str = ""
) -> DeploymentReport:
    return DeploymentReport(state, digest, committed, NEW, reason=reason)


@pytest.mark.parametrize(
    ("before", "counter", "said", "state"),
    [
        (TOLD, 6, report(AgentState.IDLE, NEW, NEW), FleetState.PENDING),
        (TOLD, 7, report(AgentState.IDLE), FleetState.NOTIFIED),
        (TOLD, 7, None, FleetState.NOTIFIED),
        (TOLD, 7, report(AgentState.FETCH), FleetState.FETCHING),
        (TOLD, 7, report(AgentState.SELFTEST), FleetState.STAGED),
        (TOLD, 7, report(AgentState.PROBATION, NEW), FleetState.PROBATION),
        (TOLD, 7, report(AgentState.COMMIT, NEW), FleetState.PROBATION),
        (TOLD, 7, report(AgentState.IDLE, NEW), FleetState.NOTIFIED),
        (TOLD, 7, report(AgentState.IDLE, NEW, NEW), FleetState.SUCCEEDED),
        (TOLD, 8, report(AgentState.IDLE, NEW, NEW), FleetState.SUCCEEDED),
        (NOTIFIED, 7, report(AgentState.FAILED, reason="no"), FleetState.FAILED),
        (NOTIFIED, 7, report(AgentState.IDLE, reason="no"), FleetState.FAILED),
        (PROVING, 7, report(AgentState.IDLE, reason="slow"), FleetState.ROLLED_BACK),
        (PROVING, 7, report(AgentState.ROLLBACK, reason="slow"), FleetState.ROLLED_BACK),
        (ARRIVED, 7, report(AgentState.DIVERGED, reason="crash loop"), FleetState.DIVERGED),
        (ARRIVED, 7, report(AgentState.IDLE, None, NEW), FleetState.SUCCEEDED),
        (ARRIVED, 7, report(AgentState.IDLE, OLD, OLD), FleetState.DIVERGED),
        (LATE, 7, report(AgentState.FETCH), FleetState.TIMED_OUT),
        (LATE, 7, report(AgentState.IDLE, NEW, NEW), FleetState.SUCCEEDED),
    ],
)
def test_what_a_devices_words_mean(
    before: Member, counter: int, said: DeploymentReport | None, state: FleetState
) -> None:
    word = Word(
        "d", is_online=True, seen=(1, 1, 1), order_counter=counter, deployments={"m": said} if said else {}
    )
    assert hear(before, word, "m", T0).state is state


def test_a_refusal_of_before_the_order_is_not_about_the_order() -> None:
    refused = Word("d", is_online=True, seen=(1, 1, 1), order_counter=6, refused="no space")
    assert hear(TOLD, refused, "m", T0).state is FleetState.REJECTED
    earlier = msgspec.structs.replace(TOLD, refused_before="no space")
    assert hear(earlier, refused, "m", T0).state is FleetState.PENDING


@pytest.mark.parametrize(
    ("before", "after_s", "is_late"),
    [
        (NOTIFIED, DEADLINE_S - 1, False),
        (NOTIFIED, DEADLINE_S, True),
        (TOLD, DEADLINE_S, True),
        (msgspec.structs.replace(TOLD, online_since=None), 10 * DEADLINE_S, False),
        (msgspec.structs.replace(TOLD, online_since=T0 + seconds(100)), DEADLINE_S, False),
        (ARRIVED, 10 * DEADLINE_S, False),
        (member("d"), 10 * DEADLINE_S, False),
    ],
)
def test_the_deadline_runs_from_acceptance_and_before_it_only_while_online(
    before: Member, after_s: float, is_late: bool
) -> None:
    after = time_out(before, T0 + seconds(after_s), DEADLINE_S)
    assert (after.state is FleetState.TIMED_OUT) == is_late
    assert is_late or after is before
