"""The update machine: a table of paths, and, for any events and cuts, what must never happen."""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.update import events as m
from device_agent.update.events import SlotRef
from device_agent.update.machine import MAX_ATTEMPTS, Machine, advance, durable
from edgekit import sketch
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step


def bundle(letter: str) -> OrderedBundle:
    digest = letter * 64
    return OrderedBundle(f"digits/1/x86-64-v3/{digest}.edgekit", digest, 10)


A, B, C = (bundle(letter) for letter in "abc")
QUICK = OrderOptions(probation_s=10)


def through(machine: Machine, *events: m.Event) -> tuple[Machine, list[m.Effect]]:
    effects: list[m.Effect] = []
    for event in events:
        machine, new = advance(machine, event)
        effects += [effect for effect in new if not isinstance(effect, m.Halt)]
    return machine, effects


def to_probation(counter: int, wanted: OrderedBundle, limit_ms: float | None = None) -> list[m.Event]:
    return [
        m.Ordered(counter, wanted, QUICK),
        m.Done(Step.FETCH),
        m.Done(Step.STAGE),
        m.Done(Step.SELFTEST),
        m.Done(Step.SWITCH, now=100.0, limit_ms=limit_ms),
    ]


def committed(wanted: OrderedBundle = A, counter: int = 1, machine: Machine | None = None) -> Machine:
    start = machine or Machine()
    events = [*to_probation(counter, wanted), m.Observed(111.0), m.Acknowledged(wanted.sha256)]
    done, _ = through(start, *events)
    assert done.step is Step.IDLE
    assert done.committed is not None
    assert done.committed.bundle == wanted
    return done


def test_the_straight_way():
    machine, effects = through(Machine(), *to_probation(1, A))
    ref = SlotRef("A", A)
    assert effects == [m.Fetch(A), m.Stage(ref), m.SelfTest(ref), m.Switch(ref)]
    assert machine.step is Step.PROBATION
    machine, _ = through(machine, m.Observed(105.0), m.Observed(110.0))
    assert machine.step is Step.COMMIT
    machine, _ = through(machine, m.Acknowledged(B.sha256))
    assert machine.step is Step.COMMIT
    machine, _ = through(machine, m.Acknowledged(A.sha256))
    assert (machine.step, machine.committed, machine.candidate) == (Step.IDLE, ref, None)


def test_the_next_release_takes_the_other_slot_and_keeps_the_last():
    machine = committed(B, 2, committed(A))
    assert machine.committed == SlotRef("B", B)
    assert machine.previous == SlotRef("A", A)


def test_going_back_needs_neither_fetch_nor_self_test():
    _, effects = through(committed(B, 2, committed(A)), m.Ordered(3, A, QUICK))
    assert effects == [m.Switch(SlotRef("A", A))]


def test_a_slot_that_is_being_overwritten_is_not_gone_back_to():
    machine = committed(B, 2, committed(A))
    machine, _ = through(machine, m.Ordered(3, C, QUICK), m.Done(Step.FETCH))
    _, effects = through(machine, m.Ordered(4, A, QUICK))
    assert effects == [m.Fetch(A)]


def test_an_acknowledgement_during_probation_counts():
    machine, _ = through(Machine(), *to_probation(1, A), m.Acknowledged(A.sha256), m.Observed(110.0))
    assert machine.step is Step.IDLE


# From a committed A, on the way to B: the step reached, what fails there, and where that must lead.
FAILURES = {
    "fetch": (1, m.Failed(Step.FETCH, "no"), Step.FAILED),
    "stage": (2, m.Failed(Step.STAGE, "no"), Step.FAILED),
    "self-test": (3, m.Failed(Step.SELFTEST, "no"), Step.FAILED),
    "switch": (4, m.Failed(Step.SWITCH, "no"), Step.ROLLBACK),
    "worker dies": (5, m.Observed(101.0, deaths=1), Step.ROLLBACK),
    "errors": (5, m.Observed(101.0, requests=10, errors=1), Step.ROLLBACK),
    "slow": (5, m.Observed(101.0, requests=50, infer_ms=sketch.of([13.0] * 50)), Step.ROLLBACK),
    "crash loop": (5, m.GaveUp("no"), Step.ROLLBACK),
}


@pytest.mark.parametrize("case", FAILURES)
def test_every_failure_ends_on_the_committed_release_and_is_remembered(case):
    count, event, step = FAILURES[case]
    machine, _ = through(committed(A), *to_probation(2, B, limit_ms=10.0)[:count])
    machine, effects = through(machine, event)
    assert machine.step is step
    if step is Step.ROLLBACK:
        assert effects == [m.Restore(SlotRef("A", A))]
        machine, _ = through(machine, m.Done(Step.ROLLBACK))
    assert machine.is_settled
    assert machine.reason
    assert machine.committed == SlotRef("A", A)
    assert machine.candidate is None
    again, effects = through(machine, m.Ordered(3, B, QUICK))
    assert (again.step, again.reason, effects) == (Step.FAILED, machine.reason, [])
    fresh, _ = through(again, m.Resumed("A", "other engines"))
    assert fresh.refused == {}
    _, effects = through(fresh, m.Ordered(4, B, QUICK))
    assert effects == [m.Fetch(B)]


FINE = {
    "few errors among many": m.Observed(101.0, requests=1000, errors=5),
    "slow, but too few to say": m.Observed(101.0, requests=3, infer_ms=sketch.of([99.0] * 3)),
    "within the margin": m.Observed(101.0, requests=50, infer_ms=sketch.of([12.0] * 50)),
}


@pytest.mark.parametrize("case", FINE)
def test_what_probation_bears(case):
    machine, _ = through(committed(A), *to_probation(2, B, limit_ms=10.0), FINE[case])
    assert machine.step is Step.PROBATION


def test_a_failed_return_keeps_the_first_reason():
    machine, _ = through(committed(A), *to_probation(2, B), m.Observed(101.0, deaths=1))
    machine, _ = through(machine, m.Failed(Step.ROLLBACK, "the old one broke too"))
    assert "the worker died" in machine.reason
    assert "the old one broke too" in machine.reason


def test_a_passing_failure_is_not_held_against_the_bundle():
    machine, _ = through(Machine(), m.Ordered(1, A), m.Failed(Step.FETCH, "disk full", blames_bundle=False))
    assert machine.step is Step.FAILED
    _, effects = through(machine, m.Ordered(2, A))
    assert effects == [m.Fetch(A)]


def test_an_order_for_nothing_stops_the_model():
    machine, effects = through(committed(A), m.Ordered(2, None))
    assert effects == [m.Restore(None)]
    assert (machine.step, machine.committed, machine.wanted) == (Step.IDLE, None, None)


def test_another_order_during_probation_goes_back_before_it_goes_on():
    machine, _ = through(committed(A), *to_probation(2, B))
    machine, effects = through(machine, m.Ordered(3, C))
    assert effects == [m.Restore(SlotRef("A", A))]
    machine, effects = through(machine, m.Done(Step.ROLLBACK))
    assert effects == [m.Fetch(C)]
    assert machine.refused == {}


def test_the_committed_release_that_crashes_gives_way_to_the_one_before():
    machine, effects = through(committed(B, 2, committed(A)), m.GaveUp("it crashes"))
    assert machine.step is Step.DIVERGED
    assert effects == [m.Restore(SlotRef("A", A))]
    again, effects = through(machine, m.Ordered(3, B))
    assert (again.step, effects) == (Step.FAILED, [])


def test_a_device_that_keeps_restarting_on_a_candidate_gives_it_up():
    machine, _ = through(committed(A), *to_probation(2, B))
    for _ in range(MAX_ATTEMPTS - 1):
        machine, effects = through(machine, m.Resumed("B", ""))
        assert effects == [m.Switch(SlotRef("B", B))]
    machine, effects = through(machine, m.Resumed("B", ""))
    assert effects == [m.Restore(SlotRef("A", A))]
    assert B.sha256 in machine.refused


# -- any events, any cuts ----------------------------------------------------------------------------------------


@dataclass
class World:
    """A device whose effects may be cut anywhere: what is on disk, and what would run after a restart."""

    bad: frozenset[str]
    disk: Machine = field(default_factory=Machine)
    memory: Machine = field(default_factory=Machine)
    slots: dict[str, str] = field(default_factory=dict)
    current: str | None = None
    fetched: set[str] = field(default_factory=set)
    tested: set[str] = field(default_factory=set)
    ever_committed: set[str] = field(default_factory=set)
    pending: list[m.Effect] = field(default_factory=list)
    counter: int = 0
    now: float = 0.0

    def tell(self, event: m.Event) -> None:
        self.memory, effects = advance(self.memory, event)
        # The runner writes before it acts.
        self.disk = durable(self.memory)
        if self.memory.committed is not None:
            self.ever_committed.add(self.memory.committed.bundle.sha256)
        for effect in effects:
            if isinstance(effect, m.Halt):
                self.pending = [kept for kept in self.pending if isinstance(kept, m.Restore)]
            else:
                self.pending.append(effect)

    def restart(self) -> None:
        self.memory, self.pending = self.disk, []
        self.tell(m.Resumed(self.current, "stamp"))

    def act(self, *, cut_before_event: bool = False) -> None:
        """Perform the next effect; with a cut, the power fails after it and before anybody hears of it."""
        if not self.pending:
            self.observe()
            return
        effect = self.pending.pop(0)
        event = self._perform(effect)
        if cut_before_event:
            self.restart()
        else:
            self.tell(event)

    def _perform(self, effect: m.Effect) -> m.Event:
        match effect:
            case m.Fetch(wanted):
                self.fetched.add(wanted.sha256)
                return m.Done(Step.FETCH)
            case m.Stage(ref):
                assert ref.bundle.sha256 in self.fetched
                assert self.current != ref.slot, "a running slot is never overwritten"
                self.slots[ref.slot] = ref.bundle.sha256
                return m.Done(Step.STAGE)
            case m.SelfTest(ref):
                assert self.slots[ref.slot] == ref.bundle.sha256
                if ref.bundle.sha256 in self.bad:
                    return m.Failed(Step.SELFTEST, "bad")
                self.tested.add(ref.bundle.sha256)
                return m.Done(Step.SELFTEST)
            case m.Switch(ref):
                assert self.slots[ref.slot] == ref.bundle.sha256
                self.current = ref.slot
                return m.Done(Step.SWITCH, self.now)
            case m.Restore(ref):
                if ref is not None:
                    assert self.slots[ref.slot] == ref.bundle.sha256, "the slot to go back to is intact"
                self.current = ref.slot if ref is not None else None
                return m.Done(Step.ROLLBACK)
        raise AssertionError(effect)

    def observe(self) -> None:
        self.now += 20
        self.tell(m.Observed(self.now))

    def acknowledge(self) -> None:
        if self.current is not None:
            self.tell(m.Acknowledged(self.slots[self.current]))

    def order(self, wanted: OrderedBundle | None) -> None:
        self.counter += 1
        self.tell(m.Ordered(self.counter, wanted, QUICK))

    def do(self, action: str | tuple[str, OrderedBundle | None]) -> None:
        if isinstance(action, tuple):
            self.order(action[1])
        else:
            {
                "act": self.act,
                "settle": self.settle,
                "cut": lambda: self.act(cut_before_event=True),
                "restart": self.restart,
                "observe": self.observe,
                "acknowledge": self.acknowledge,
                "die": lambda: self.tell(m.Observed(self.now, deaths=1)),
                "give up": lambda: self.tell(m.GaveUp("crash")),
            }[action]()

    def settle(self) -> None:
        """Let it run undisturbed to its end."""
        for _ in range(12):
            self.act()
            self.acknowledge()


# An order, some progress with it, something that comes in between, and perhaps time to come to rest.
EPISODES = st.tuples(
    st.sampled_from([A, B, C, None]),
    st.integers(0, 8),
    st.lists(
        st.sampled_from(["act", "cut", "restart", "observe", "acknowledge", "die", "give up"]), max_size=4
    ),
    st.booleans(),
).map(
    lambda e: [("order", e[0]), *["act"] * e[1], *e[2], *(["settle"] if e[3] else [])],
)


@settings(max_examples=500, deadline=None)
@given(st.lists(EPISODES, max_size=6), st.sets(st.sampled_from([A.sha256, B.sha256, C.sha256]), max_size=2))
def test_whatever_happens_what_runs_was_tested_here_and_it_always_comes_to_rest(episodes, bad):
    world = World(frozenset(bad))
    world.restart()
    for action in itertools.chain.from_iterable(episodes):
        world.do(action)
        if world.current is not None:
            assert world.slots[world.current] in world.tested
    world.settle()
    end = world.memory
    assert end.is_settled
    assert not world.pending
    assert end.step in (Step.IDLE, Step.FAILED, Step.ROLLBACK, Step.DIVERGED)
    if end.committed is None:
        assert world.current is None
    else:
        assert world.current == end.committed.slot
        assert world.slots[world.current] == end.committed.bundle.sha256
    if end.step is Step.IDLE and end.wanted is not None:
        assert end.committed is not None
        assert end.committed.bundle == end.wanted
    if end.step in (Step.FAILED, Step.ROLLBACK, Step.DIVERGED):
        assert end.reason


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["act", "cut", "restart"]), max_size=25))
def test_a_good_release_arrives_however_often_the_power_is_cut_on_the_way(cuts):
    world = World(frozenset())
    world.restart()
    world.order(A)
    world.settle()
    world.order(B)
    restarts_on_it = 0
    for cut in cuts:
        was_trying = world.memory.step in (Step.SWITCH, Step.PROBATION, Step.COMMIT)
        if cut == "restart":
            world.restart()
        else:
            world.act(cut_before_event=cut == "cut")
        restarts_on_it += was_trying and cut != "act"
    world.settle()
    assert world.memory.committed is not None
    expected = B if restarts_on_it < MAX_ATTEMPTS else A
    assert world.memory.committed.bundle in (expected, B)
