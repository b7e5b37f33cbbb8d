"""The rollout machine under any order of events, and a table of what single devices' words mean."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from edgekit.sketch import Sketch, of
from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState, FleetState
from fleet.rules import gates, stages, windows
from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence
from fleet.rules.gates import Outcome
from fleet.rules.machine import advance, start
from fleet.rules.members import BAD, Member, Part, Word, hear, time_out
from fleet.rules.moving import is_allowed, waits_for
from fleet.rules.pace import Pace, parse_rate
from fleet.rules.rollout import (
    ACTIVE,
    Assign,
    Command,
    Due,
    Effect,
    Heard,
    Joined,
    Left,
    Move,
    Ordered,
    Release,
    Rollout,
    Spec,
    Status,
    Tick,
    Unassign,
    Verb,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW, OLD = "a" * 64, "b" * 64
NEW_N, OLD_N = "c" * 64, "d" * 64
SOAK_S, DEADLINE_S = 60.0, 300.0


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def member(device: str, **more: object) -> Member:
    base = Member(device, "p", stages.key("r1", device), NEW, OLD, "old@1", online_since=T0)
    return replace(base, **more)


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


BESIDE = (Part(NEW_N, OLD_N, "n-old@1"),)


def pair(made: Rollout) -> Rollout:
    """The same rollout of two releases that move together, in the deployments m and n."""
    beside = (Release("n", "3", "n"),)
    gate = gates.of_each(made.spec.gates, ("m", "n"))
    members = {name: replace(m, beside=BESIDE) for name, m in made.members.items()}
    return replace(made, spec=replace(made.spec, beside=beside, gates=gate), members=members)


def data(
    world: Rollout,
    errors: int = 0,
    requests: int = 1000,
    silent: frozenset[str] = frozenset(),
    errors_beside: int | None = None,
) -> StageEvidence:
    """What is known after ten minutes; every canary has served `requests` with `errors`, `silent` ones are not heard. In
    what moves together with the first deployment the same, or with `errors_beside`.
    """
    if world.spec.beside:
        alone = replace(world, spec=replace(world.spec, beside=()))
        own = errors if errors_beside is None else errors_beside
        first, second = (data(alone, e, requests, silent) for e in (errors, own))
        return replace(first, beside={"n": second.devices})
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


def said_by(how: str) -> dict[str, DeploymentReport]:
    """What a device says of both deployments; "… in n" is about the second, while the first has arrived."""
    old = {"m": OLD, "n": OLD_N}
    new = {"m": NEW, "n": NEW_N}
    kind = how.removesuffix(" in n")
    reports = {}
    for name in old:
        state, digest, ordered, reason = {
            "arrive": (AgentState.IDLE, new[name], new[name], ""),
            "fail": (AgentState.FAILED, old[name], new[name], "no"),
            "fetch": (AgentState.FETCH, old[name], new[name], ""),
            "old": (AgentState.IDLE, old[name], old[name], ""),
            "back": (AgentState.IDLE, old[name], old[name], ""),
            "leave": (AgentState.DIVERGED, old[name], new[name], "crash loop"),
        }["arrive" if kind != how and name == "m" else kind]
        reports[name] = DeploymentReport(state, digest, digest, ordered, reason=reason)
    return reports


# Every hour of the first is open for the first twenty minutes, and again from forty on; Kolkata is 5 h 30 min ahead.
WINDOWS = tuple(windows.parse(text) for text in ("00:00-00:20", "00:40-01:00", "05:40-06:00"))
OPEN_MIN = {"": ((0, 15), (40, 55)), "Asia/Kolkata": ((10, 25),)}
PACES = {
    "any": Pace(),
    "rate": Pace(rate=parse_rate("3/min")),
    "at once": Pace(at_once=2),
    "per site": Pace(per_site=1),
    "windows": Pace(windows=WINDOWS),
    "all": Pace(parse_rate("24/min"), 4, 2, WINDOWS),
}
# What the machine's examples did, for whoever runs them by hand.
SEEN: Counter[str] = Counter()


class Machine(RuleBasedStateMachine):
    """Devices that answer as they like, an operator who does as she likes, data that say anything, at any pace.

    What may happen is counted here anew, by other means than the rules'.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.counter = 100
        self.seq = 0
        self.told: dict[str, int] = {}
        self.wanted: dict[str, tuple[str | None, ...]] = {}
        self.forward: list[datetime] = []
        self.committed: set[str] = set()
        # By profile: devices for which another one may have stood in, and all that ever were there.
        self.stood_in: dict[str, set[str]] = {"p0": set(), "p1": set()}
        self.ever: dict[str, set[str]] = {"p0": set(), "p1": set()}
        self.approved: set[int] = set()

    @initialize(
        pace=st.sampled_from(sorted(PACES)),
        cut=st.sampled_from(["1,25%,100%", "1,100%", "100%"]),
        approve=st.sampled_from(["", "1", "all"]),
        count=st.sampled_from([1, 2]),
    )
    def it_starts(self, pace: str, cut: str, approve: str, count: int) -> None:
        SEEN[f"pace {pace}"] += 1
        SEEN[f"{count} deployments"] += 1
        made = rollout(12, cut, pace=PACES[pace])
        made = pair(made) if count == 2 else made
        asked = stages.with_approvals(made.spec.stages, approve)
        where = {
            name: replace(m, site=f"s{n % 3}", zone="Asia/Kolkata" if n % 4 == 0 else "")
            for n, (name, m) in enumerate(made.members.items())
        }
        self.world = replace(made, members=where, spec=replace(made.spec, stages=asked))
        for m in where.values():
            self.ever[m.profile].add(m.device)
        self.carry_out(*start(self.world, self.now))

    def carry_out(self, changed: Rollout, effects: list[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, Move):
                continue
            m = changed.members[effect.device]
            ways = [tuple(p.target for p in m.parts), tuple(p.previous for p in m.parts)]
            assert effect.wanted in ways, "all of them by one order, forward or back"
            self.wanted[effect.device] = effect.wanted
            if effect.sha256 == NEW:
                self.check_forward(changed, effect.device)
            elif changed.status not in (Status.ROLLING_BACK, Status.ABORTING):
                SEEN["sent back alone"] += 1
                assert m.was_sent_back
            self.counter += 1
            self.told[effect.device] = self.counter
            changed, more = advance(changed, Ordered(effect.device, self.counter), self.now)
            again, _ = advance(changed, Ordered(effect.device, self.counter), self.now)
            assert again.members == changed.members, "an order that is noted twice is noted once"
            assert not more
        self.world = changed
        for m in changed.members.values():
            if not m.is_online or m.state in BAD:
                self.stood_in[m.profile].add(m.device)
            if m.state is FleetState.SUCCEEDED:
                assert m.device in self.committed, "no success without a committed report"

    def check_forward(self, changed: Rollout, device: str) -> None:
        SEEN["orders forward"] += 1
        assert device in changed.members, "only selected devices are told to move"
        m = changed.members[device]
        assert is_allowed(changed, m), "only within the open stage"
        assert changed.status is Status.RUNNING
        assert m.profile not in changed.stopped
        pace = changed.spec.pace
        if pace.rate is not None:
            self.forward.append(self.now)
            lately = [at for at in self.forward if at > self.now - seconds(60)]
            assert len(lately) <= pace.rate.count, "never above the rate"
        if pace.at_once or pace.per_site or pace.windows:
            assert m.is_online
        under_way = [
            other
            for other in changed.members.values()
            if other.order_counter
            and other.state not in {FleetState.SUCCEEDED, *BAD}
            and (
                other.is_online
                or self.now < max(other.ordered_at or T0, other.notified_at or T0) + seconds(300)
            )
        ]
        assert pace.at_once is None or len(under_way) < pace.at_once, "never more at once"
        beside = [other for other in under_way if other.site == m.site]
        assert pace.per_site is None or len(beside) < pace.per_site, "never more of a site at once"
        if pace.windows:
            minutes = (self.now - T0).total_seconds() / 60
            assert any(a <= minutes <= b for a, b in OPEN_MIN[m.zone]), "never outside its window"

    def step(self, event: object) -> None:
        SEEN[type(event).__name__] += 1
        self.carry_out(*advance(self.world, event, self.now))  # type: ignore[arg-type]

    @rule(
        pick=st.integers(0, 11),
        how=st.sampled_from(
            [
                "arrive",
                "fail",
                "fetch",
                "old",
                "away",
                "back",
                "leave",
                "fail in n",
                "fetch in n",
                "leave in n",
            ]
        ),
    )
    def a_device_speaks(self, pick: int, how: str) -> None:
        name = f"d{pick}"
        if name not in self.world.members:
            return
        self.seq += 1
        counter = self.told.get(name, 0)
        if not self.world.spec.beside:
            how = how.removesuffix(" in n")
        if how == "away":
            word = Word(name, is_online=False)
        else:
            word = Word(
                name,
                is_online=True,
                seen=(1, 1, self.seq),
                order_counter=counter,
                deployments=said_by(how),
            )
        if how == "arrive" and counter:
            self.committed.add(name)
        before = self.world
        self.step(Heard((word,)))
        after = self.world
        self.step(Heard((word,)))
        assert self.world is after, "a repeat changes nothing"
        if how != "away":
            stale = replace(word, seen=(1, 1, self.seq - 1), deployments={"m": at_rest(NEW)})
            self.step(Heard((stale,)))
        assert self.world.members == after.members, "an older word after a newer one changes nothing"
        newly = after.members[name].state is FleetState.SUCCEEDED
        if newly and before.members[name].state is not FleetState.SUCCEEDED:
            assert how == "arrive"
            assert counter > 0

    @rule(how=st.sampled_from(["away", "fail", "arrive", "fail in n", "leave in n"]), pick=st.integers(0, 3))
    def one_that_was_told_speaks(self, how: str, pick: int) -> None:
        told = sorted(
            (m.order_counter, m.device)
            for m in self.world.members.values()
            if m.order_counter and m.device.startswith("d") and m.state not in BAD
        )
        if told:
            self.a_device_speaks(int(told[pick % len(told)][1][1:]), how)
            self.time_passes(1.0, "good")

    @rule(passes=st.floats(0, 200), kind=st.sampled_from(["good"] * 4 + ["none"] * 3 + ["bad", "bad in n"]))
    def time_passes(self, passes: float, kind: str) -> None:
        self.now += seconds(passes)
        errors, requests, beside = {
            "good": (0, 1000, None), "none": (0, 0, None), "bad": (500, 1000, 0), "bad in n": (0, 1000, 500),
        }[kind]  # fmt: skip
        if kind == "bad in n" and not self.world.spec.beside:
            errors = 500
        before = self.world
        self.step(Tick(data(before, errors=errors, requests=requests, errors_beside=beside)))
        after = self.world
        for m in after.members.values():
            if m.beside and m.state in (FleetState.FAILED, FleetState.ROLLED_BACK, FleetState.DIVERGED):
                old = tuple(part.previous for part in m.parts)
                assert self.wanted[m.device] == old, "who failed in one was sent back in all"
        opens = after.stage > before.stage
        SEEN["stood in"] += after.thresholds != before.thresholds and not opens
        if opens:
            SEEN["stages opened"] += 1
            assert after.stage - before.stage == 1
            if after.current.needs_approval:
                assert after.stage in self.approved, "never without the approval that it asks for"
        if (opens and after.stage > 0) or (
            after.status is Status.COMPLETED and before.status is Status.RUNNING
        ):
            assert kind == "good", "missing or bad data never opens a stage"
            assert before.soak_from is not None
            assert self.now >= before.soak_from + seconds(SOAK_S)
            assert any(m.state is FleetState.SUCCEEDED for m in before.members.values())
        if after.status is Status.COMPLETED and before.status is Status.RUNNING:
            SEEN["completed"] += 1
            assert all(m.profile not in after.stopped for m in after.members.values() if not m.order_counter)

    @rule(kind=st.sampled_from(["good", "none"]))
    def a_stage_settles(self, kind: str) -> None:
        """All that were told and are there arrive, and their soak passes, after the word that it waits for."""
        if self.world.awaits is not None:
            self.the_operator_acts("approve", "", None)
        for m in list(self.world.members.values()):
            if m.order_counter and not m.is_returning and m.is_online and m.device.startswith("d"):
                self.a_device_speaks(int(m.device[1:]), "arrive")
        self.time_passes(1.0, "good")
        self.time_passes(SOAK_S, kind)

    @rule(passes=st.floats(0, 10))
    def more_is_due(self, passes: float) -> None:
        self.now += seconds(passes)
        self.step(Due())

    # Turning back has rules of its own: rollouts that live longer see more.
    @rule(
        verb=st.sampled_from(["pause", "resume", "resume", "approve", "approve", "hold", "release"]),
        profile=st.sampled_from(["p0", "p1"]),
        finish_by_s=st.sampled_from([None, 1e6]),
    )
    def the_operator_acts(self, verb: Verb, profile: str, finish_by_s: float | None) -> None:
        awaits = self.world.awaits
        self.step(Command(verb, profile=profile, finish_by_s=finish_by_s))
        if verb == "approve" and awaits is not None and self.world.awaits is None:
            self.approved.add(awaits)

    @rule(verb=st.sampled_from(["abort", "rollback"]), is_meant=st.integers(0, 5))
    def the_operator_turns_back(self, verb: Verb, is_meant: int) -> None:
        if not is_meant:
            self.step(Command(verb))

    @rule()
    def the_service_restarts(self) -> None:
        """What is kept in the database is all that counts."""
        head = msgspec.json.encode(replace(self.world, members={}))
        members = msgspec.json.encode(self.world.members)
        again = replace(
            msgspec.json.decode(head, type=Rollout),
            members=msgspec.json.decode(members, type=dict[str, Member]),
        )
        assert again == self.world
        self.world = again

    @rule(pick=st.integers(100, 110))
    def a_device_joins(self, pick: int) -> None:
        new = member(f"late{pick}", profile=f"p{pick % 2}", site="s0")
        if self.world.spec.beside:
            new = replace(new, beside=BESIDE)
        if self.world.status in (Status.RUNNING, Status.PAUSED):
            self.ever[new.profile].add(new.device)
        self.step(Joined((new,)))

    @rule(
        name=st.sampled_from([*(f"d{n}" for n in range(12)), "late100", "late101"]),
        is_meant=st.integers(0, 4),
    )
    def a_device_is_taken_out_of_service(self, name: str, is_meant: int) -> None:
        if is_meant:
            return
        if (m := self.world.members.get(name)) is not None:
            self.stood_in[m.profile].add(name)
        self.step(Left((name,)))
        if self.world.status in ACTIVE:
            assert name not in self.world.members

    @invariant()
    def nobody_runs_ahead_of_the_stage(self) -> None:
        if not hasattr(self, "world"):
            return
        for m in self.world.members.values():
            if m.order_counter:
                assert is_allowed(self.world, m)
        share = self.world.current.share if self.world.stage >= 0 else 0.0
        for profile, ever in self.ever.items():
            told = {
                m.device
                for m in self.world.members.values()
                if m.profile == profile and m.order_counter and not m.device.startswith("late")
            }
            most = max(1, math.ceil(share * len(ever))) + len(self.stood_in[profile])
            assert len(told) <= most, "never above the share, and one more for each that failed or was away"

    @precondition(lambda self: hasattr(self, "world") and self.world.status in ACTIVE)
    @rule(verb=st.sampled_from(["rollback", "abort"]))
    def it_can_always_be_brought_back(self, verb: Verb) -> None:
        """From any state: roll back or abort, let the deadline pass, and it has ended."""
        branch = (self.world, self.now, dict(self.told), self.counter)
        self.step(Command(verb))
        self.now += seconds(DEADLINE_S + 1)
        self.step(Tick(StageEvidence()))
        assert self.world.status not in ACTIVE
        if self.world.status is Status.ABORTED and branch[0].status in (Status.RUNNING, Status.PAUSED):
            SEEN["aborts"] += 1
            for m in branch[0].members.values():
                if m.state is FleetState.SUCCEEDED:
                    assert self.world.members[m.device].order_counter == m.order_counter, (
                        "what is there stays"
                    )
        self.world, self.now, self.told, self.counter = branch


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
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
    seen = replace(
        seen,
        devices={name: replace(device, at_risk=name not in dead) for name, device in seen.devices.items()},
    )
    world, _ = advance(world, Tick(seen), T0)
    assert world.status is Status.ROLLING_BACK
    assert "lost" in world.reason


def test_while_the_fleet_itself_was_deaf_nobody_was_silent() -> None:
    world, effects = start(rollout(40, "50%,100%"), T0)
    world = order(world, effects, T0)
    moved = [e.device for e in effects if isinstance(e, Move)]
    world, _ = advance(world, Heard(tuple(succeeded(d, 1, 1) for d in moved)), T0)
    deaf = replace(data(world, silent=frozenset(moved)), heard_since=590.0)
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


def test_resuming_after_its_time_takes_a_new_time() -> None:
    world, effects = start(rollout(finish_by_s=100.0), T0)
    world = order(world, effects, T0)
    words = tuple(succeeded(e.device, 1, 1) for e in effects if isinstance(e, Move))
    world, _ = advance(world, Heard(words), T0)
    world, _ = advance(world, Tick(data(world)), T0 + seconds(101))
    assert (world.status, "not finished within its time" in world.reason) == (Status.PAUSED, True)
    assert advance(world, Command("resume"), T0 + seconds(500))[0] is world, "it would pause again at once"
    world, _ = advance(world, Command("resume", finish_by_s=50.0), T0 + seconds(500))
    world, _ = advance(world, Tick(data(world)), T0 + seconds(549))
    assert world.status is Status.RUNNING
    world, _ = advance(world, Tick(data(world)), T0 + seconds(550))
    assert world.status is Status.PAUSED


def asking(world: Rollout, text: str) -> Rollout:
    cut = stages.with_approvals(world.spec.stages, text)
    return replace(world, spec=replace(world.spec, stages=cut))


def test_a_stage_waits_for_its_approval_and_is_judged_meanwhile() -> None:
    world, effects = start(asking(rollout(), "2"), T0)
    world, effects, now = run_stage(order(world, effects, T0), T0, 1)
    assert (world.stage, world.awaits, effects) == (0, 1, [])
    assert "stage 2 of 3 (50 %) waits for approval" in world.reason
    assert advance(world, Tick(data(world, errors=900)), now)[0].status is Status.ROLLING_BACK
    waits, _ = advance(world, Tick(data(world, requests=0)), now + seconds(9 * SOAK_S))
    assert waits.status is Status.RUNNING, "it waits for a person, not for data"
    approved, _ = advance(waits, Command("approve"), now)
    assert advance(approved, Command("approve"), now)[0] is approved
    world, effects = advance(approved, Tick(data(world)), now)
    assert (world.stage, world.reason, len(effects)) == (1, "", 4)


def test_nobody_is_told_before_the_first_stage_is_approved() -> None:
    world, effects = start(asking(rollout(finish_by_s=100.0), "all"), T0)
    assert (world.stage, world.awaits, effects) == (-1, 0, [])
    assert advance(world, Left(("d1",)), T0)[1] == []
    assert advance(world, Tick(StageEvidence()), T0)[1] == []
    late, _ = advance(world, Tick(StageEvidence()), T0 + seconds(100))
    assert (late.status, "stage 1 still waits for approval" in late.reason) == (Status.PAUSED, True)
    gone, _ = advance(world, Command("abort"), T0)
    assert advance(gone, Tick(StageEvidence()), T0)[0].status is Status.ABORTED
    world, _ = advance(world, Command("approve"), T0)
    world, effects = advance(world, Tick(StageEvidence()), T0)
    assert (world.stage, len(effects)) == (0, 2)


def test_a_held_profile_gets_no_orders_and_the_rollout_does_not_complete_without_it() -> None:
    world, effects = start(rollout(4, "100%"), T0)
    held, effects = advance(world, Command("hold", profile="p0"), T0)
    assert {effect.device for effect in effects if isinstance(effect, Move)} == {"d1", "d3"}
    world, effects, now = run_stage(order(held, effects, T0), T0, 1)
    assert (world.status, effects) == (Status.RUNNING, [])
    assert "profile p0, which is held" in world.reason
    world, effects = advance(world, Command("release", profile="p0"), now)
    assert {effect.device for effect in effects if isinstance(effect, Move)} == {"d0", "d2"}
    world, effects, _ = run_stage(order(world, effects, now), now, 1)
    assert (world.status, world.reason) == (Status.COMPLETED, "")


def test_where_the_only_canary_fails_a_resumed_rollout_tries_another_device() -> None:
    world, effects = start(rollout(4, "1,100%", on_violation="pause"), T0)
    first = {effect.device for effect in effects if isinstance(effect, Move)}
    world = order(world, effects, T0)
    failed = DeploymentReport(AgentState.FAILED, OLD, OLD, NEW, reason="dead flash")
    words = tuple(
        Word(d, is_online=True, seen=(1, 1, 1), order_counter=1, deployments={"m": failed})
        for d in sorted(first)
    )
    world, _ = advance(world, Heard(words), T0)
    world, _ = advance(world, Tick(data(world)), T0)
    assert world.status is Status.PAUSED
    world, _ = advance(world, Command("resume"), T0)
    world, effects = advance(world, Tick(data(world)), T0)
    others = {effect.device for effect in effects if isinstance(effect, Move)}
    assert (world.status, len(others), others & first) == (Status.RUNNING, len(first), set())


def test_where_nobody_is_left_to_stand_in_the_operator_is_told_what_to_do() -> None:
    world = rollout(1, "100%")
    world, effects = start(world, T0)
    world = order(world, effects, T0)
    world, _ = advance(world, Heard((Word("d0", is_online=False),)), T0)
    for _ in range(2):
        now = (world.turned_at or T0) + seconds(DEADLINE_S)
        world, _ = advance(world, Tick(data(world)), now)
        assert world.status is Status.PAUSED
        assert "all 1 devices of this stage are offline" in world.reason
        assert "bring one back and resume, take the dead ones out of service, or abort" in world.reason
        world, _ = advance(world, Command("resume"), now)
        world, _ = advance(world, Tick(data(world)), now + seconds(1))
        assert world.status is Status.RUNNING, "it gets its time again"


def test_who_is_away_all_the_while_holds_no_paced_stage_up() -> None:
    world = rollout(4, "100%", pace=Pace(per_site=4))
    away = replace(world.members["d0"], online_since=None)
    world, effects = start(replace(world, members=world.members | {"d0": away}), T0)
    assert {effect.device for effect in effects if isinstance(effect, Move)} == {"d1", "d2", "d3"}
    world, effects, _ = run_stage(order(world, effects, T0), T0, 1)
    assert (world.status, effects) == (Status.COMPLETED, [Assign()])


def test_why_a_device_is_not_told_yet_can_be_said() -> None:
    world, _ = start(rollout(2, "1,100%", pace=Pace(per_site=1, windows=WINDOWS)), T0)
    first = next(m for m in world.members.values() if is_allowed(world, m))
    later = replace(first, key="f" * 64)
    for m, changed, told in (
        (later, {}, "stage has not come"),
        (first, {"status": Status.PAUSED}, "is paused"),
        (first, {"stopped": (first.profile,)}, "is held"),
        (replace(first, online_since=None), {}, "is offline"),
        (replace(first, zone="Asia/Kolkata"), {}, "window is closed, or nearly over (Asia/Kolkata)"),
        (first, {}, "others are before it"),
    ):
        assert told in waits_for(replace(world, **changed), m, T0)


def test_late_joiners_wait_for_the_rate_like_all() -> None:
    world, effects = start(rollout(2, "100%", pace=Pace(rate=parse_rate("2/min"))), T0)
    told = [effect.device for effect in effects if isinstance(effect, Move)]
    assert len(told) == 1
    world = order(world, effects, T0)
    world, effects = advance(world, Joined(tuple(member(f"late{n}", profile="p0") for n in range(4))), T0)
    assert effects == []
    world, effects = advance(world, Due(), T0 + seconds(5))
    assert len(effects) == 1
    world = order(world, effects, T0 + seconds(5))
    assert advance(world, Due(), T0 + seconds(59))[1] == []
    assert len(advance(world, Due(), T0 + seconds(60))[1]) == 1


def test_going_back_waits_for_nothing() -> None:
    tight = Pace(parse_rate("1/d"), 1, 1, WINDOWS)
    world, effects = start(rollout(6, "100%"), T0)
    world = order(world, effects, T0)
    world = replace(world, spec=replace(world.spec, pace=tight))
    _, back = advance(world, Command("rollback"), T0 + seconds(30 * 60))
    assert len(back) == 6


def test_an_abort_when_all_have_the_release_keeps_what_is_there() -> None:
    world, effects = start(rollout(4, "100%"), T0)
    world = order(world, effects, T0)
    words = tuple(succeeded(m.device, 1, 1) for m in world.members.values())
    world, _ = advance(world, Heard(words), T0)
    world, effects = advance(world, Command("abort"), T0)
    assert effects == []
    world, effects = advance(world, Tick(StageEvidence()), T0)
    assert (world.status, effects) == (Status.ABORTED, [])
    assert {m.state for m in world.members.values()} == {FleetState.SUCCEEDED}


def test_a_queued_rollout_can_only_be_taken_out_of_the_queue() -> None:
    queued = replace(rollout(), status=Status.QUEUED)
    for event in (Tick(StageEvidence()), Due(), Command("pause"), Command("resume"), Command("rollback")):
        assert advance(queued, event, T0) == (queued, [])
    assert advance(queued, Command("abort"), T0)[0].status is Status.ABORTED


def test_where_the_only_canary_of_a_profile_is_away_the_next_device_stands_in() -> None:
    world = rollout(20, "10%,100%")
    first = min((m for m in world.members.values() if m.profile == "p0"), key=lambda m: m.key)
    away = replace(first, online_since=None)
    world = replace(world, members=world.members | {first.device: away})
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
    members = {n: replace(m, is_held=n in ("d1", "d2")) for n, m in world.members.items()}
    world = replace(world, members=members, spec=replace(world.spec, stages=closing))
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
    alike = {name: replace(m, profile="p0") for name, m in rollout(2).members.items()}
    world, [move] = start(replace(rollout(2, "1,100%"), members=alike), T0)
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
NOTIFIED = replace(TOLD, state=FleetState.NOTIFIED, notified_at=T0)
PROVING = replace(NOTIFIED, state=FleetState.PROBATION)
ARRIVED = replace(NOTIFIED, state=FleetState.SUCCEEDED)
LATE = replace(NOTIFIED, state=FleetState.TIMED_OUT)


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
    earlier = replace(TOLD, refused_before="no space")
    assert hear(earlier, refused, "m", T0).state is FleetState.PENDING


@pytest.mark.parametrize(
    ("before", "after_s", "is_late"),
    [
        (NOTIFIED, DEADLINE_S - 1, False),
        (NOTIFIED, DEADLINE_S, True),
        (TOLD, DEADLINE_S, True),
        (replace(TOLD, online_since=None), 10 * DEADLINE_S, False),
        (replace(TOLD, online_since=T0 + seconds(100)), DEADLINE_S, False),
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
