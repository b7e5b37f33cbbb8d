"""The update machine under any order of events: late ones, repeated ones, restarts and failures of every kind."""

from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from device_agent.update import course, transitions, trial
from device_agent.update import events as m
from device_agent.update import machine as machines
from device_agent.update.events import Cause, SlotRef
from device_agent.update.machine import Machine, durable, is_trying, job, serves
from edgekit import sketch
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step


def bundle(letter: str) -> OrderedBundle:
    digest = letter * 64
    return OrderedBundle(f"digits/1/x86-64-v3/{digest}.edgekit", digest, 10)


A, B, C, GOOD = (bundle(letter) for letter in "abcd")
RESTING = (Step.IDLE, Step.FAILED, Step.ROLLBACK, Step.DIVERGED)
# What must have been seen of a digest, at least, before it may be refused.
ENOUGH = {"verdict": 1, "doubt": 3, "death": 3, "start": 3, "error": 5, "slow": 20, "cut": 2}


class World:
    """A device: what its disk holds, what was tested on it, and what evidence each bundle gave."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.disk = Machine()
        self.held: dict[m.SlotName, OrderedBundle] = {}
        self.fetched: set[str] = set()
        # Digest and version under which golden data passed.
        self.tested: set[tuple[str, int]] = set()
        self.failed: set[tuple[str, int]] = set()
        self.version = 1
        self.despite = False
        self.is_linked = False
        # Whether the link was up when the candidate was switched to, and the candidate that it was lost with.
        self.was_linked = False
        self.lost_with: SlotRef | None = None
        self.serving: SlotRef | None = None
        self.evidence: dict[str, Counter[str]] = {}
        self.told: list[m.Event] = []
        self.counter = 0
        self.now = 0.0

    # -- events, and what must be true after each ----------------------------------------------------------------

    def tell(self, event: m.Event) -> None:
        before = self.machine
        self.machine = transitions.advance(before, event)
        self.disk = durable(self.machine)
        self.told.append(event)
        if serves(self.machine) != serves(before):
            self.serving = None
            self.was_linked = self.is_linked and is_trying(self.machine)
        self.check(before, event)

    def check(self, before: Machine, event: m.Event) -> None:
        after = self.machine
        ref = serves(after)
        if ref is not None:
            tried = (ref.bundle.sha256, self.version)
            is_forgiven = self.despite and not is_trying(after) and tried in self.failed
            assert tried in self.tested or is_forgiven
            assert ref.bundle.sha256 not in after.refused
        for digest in after.refused.keys() - before.refused.keys():
            seen = self.evidence.get(digest, Counter())
            assert any(seen[kind] >= enough for kind, enough in ENOUGH.items()), seen
        if after.committed != before.committed:
            self.check_committed(before, event)
        if after.candidate is not None and after.committed is not None:
            assert after.candidate.slot != after.committed.slot
        if after.previous is not None:
            assert after.committed is not None
            assert after.previous.slot != after.committed.slot
        assert (after.candidate is None) == (after.step in RESTING)
        if after.step in (Step.FAILED, Step.ROLLBACK, Step.DIVERGED):
            assert after.reason
        if after.step is Step.IDLE and after.wanted is not None:
            assert after.committed is not None
            assert after.committed.bundle.sha256 == after.wanted.sha256
        waits_for_a_worker = is_trying(after)
        wanted = job(after)
        if isinstance(wanted, m.Recheck):
            assert wanted.ref in (after.committed, after.previous)
        else:
            assert (wanted is None) == (after.step in RESTING or waits_for_a_worker)

    def check_committed(self, before: Machine, event: m.Event) -> None:
        after = self.machine
        if isinstance(event, m.Observed | m.Acknowledged):
            assert before.step in (Step.PROBATION, Step.COMMIT)
            assert after.committed == before.candidate == self.serving
        elif isinstance(event, m.Died | m.StartFailed | m.Resumed):
            # Fallen back, or damaged.
            assert after.committed in (before.previous, None)
        elif isinstance(event, m.Done | m.Failed):
            # Found damaged when it was tested under other versions, or left because it fails, for one that passes.
            assert isinstance(job(before), m.Recheck)
            assert after.committed in (before.previous, None)
            if getattr(event, "cause", None) is not Cause.LOST:
                assert after.committed is not None
                assert (after.committed.bundle.sha256, self.version) in self.tested
        else:
            assert isinstance(event, m.Ordered)
            assert (event.bundle, after.committed) == (None, None)

    def saw(self, ref: SlotRef | None, kind: str, count: int = 1) -> None:
        if ref is not None:
            self.evidence.setdefault(ref.bundle.sha256, Counter())[kind] += count

    # -- what may happen -----------------------------------------------------------------------------------------

    def order(self, wanted: OrderedBundle | None, retry: bool = False) -> None:
        self.counter += 1
        self.tell(m.Ordered(self.counter, wanted, OrderOptions(probation_s=10, retry=retry)))

    def work(self, *, is_cut: bool = False) -> None:
        """The job as it goes well; with a cut, the power fails before anybody hears of it."""
        wanted = job(self.machine)
        if isinstance(wanted, m.Fetch):
            self.fetched.add(wanted.bundle.sha256)
        elif isinstance(wanted, m.Stage):
            if wanted.ref.bundle.sha256 not in self.fetched:
                self.tell(m.Failed(wanted.id, "the download is gone", Cause.LOST))
                return
            current = serves(self.machine)
            assert current is None or current.slot != wanted.ref.slot, "what serves is never overwritten"
            self.held[wanted.ref.slot] = wanted.ref.bundle
        elif isinstance(wanted, m.SelfTest | m.Recheck):
            if self.held.get(wanted.ref.slot) != wanted.ref.bundle:
                self.tell(m.Failed(wanted.id, "the slot is damaged", Cause.LOST))
                return
            self.tested.add((wanted.ref.bundle.sha256, self.version))
        if is_cut:
            self.restart(clean=False)
        elif wanted is not None:
            self.tell(m.Done(wanted.id))

    def fail(self, cause: Cause, times: int = 1) -> None:
        for _ in range(times):
            self.fail_once(cause)

    def fail_once(self, cause: Cause) -> None:
        wanted = job(self.machine)
        if wanted is None or (isinstance(wanted, m.Wait) and cause is not Cause.PASSING):
            return
        kind = {Cause.BUNDLE: "verdict", Cause.DOUBT: "doubt"}.get(cause)
        if kind:
            ref = wanted.ref if isinstance(wanted, m.Recheck) else self.machine.candidate
            self.saw(ref, kind)
            self.failed.add((ref.bundle.sha256, self.version))
        self.tell(m.Failed(wanted.id, "no", cause))

    def start(self, cause: Cause | None = None) -> None:
        """A worker of what should serve starts, or fails to."""
        ref = serves(self.machine)
        if ref is None:
            return
        if self.held.get(ref.slot) != ref.bundle:
            cause = Cause.LOST
        elif cause is Cause.LOST:
            del self.held[ref.slot]
        if cause is None:
            self.serving = ref
            self.tell(m.Started(self.machine.generation, self.now, 10.0))
            return
        if cause is Cause.BUNDLE:
            self.saw(ref, "start")
        self.tell(m.StartFailed(self.machine.generation, "no", cause))

    def die(self) -> None:
        if self.serving is not None:
            self.saw(self.serving, "death")
            self.serving = None
            self.tell(m.Died(self.machine.generation, "gone"))

    def observe(self, requests: int = 0, errors: int = 0, slow: int = 0) -> None:
        if self.serving is None:
            return
        self.now += 6
        self.saw(self.serving, "error", errors)
        self.saw(self.serving, "slow", slow)
        latencies = sketch.of([99.0] * slow)
        self.tell(m.Observed(self.machine.generation, self.now, requests, errors, latencies))

    def acknowledge(self) -> None:
        if self.serving is not None:
            self.tell(m.Acknowledged(self.serving.bundle.sha256))

    def link(self, is_up: bool) -> None:
        if is_up and self.lost_with is not None and self.lost_with == self.machine.candidate:
            self.saw(self.lost_with, "cut")
        self.lost_with = self.machine.candidate if self.was_linked and not is_up else None
        self.is_linked = is_up
        self.tell(m.LinkUp(self.now) if is_up else m.LinkDown(self.now))

    def steady(self) -> None:
        if self.serving is not None:
            self.tell(m.Steady(self.machine.generation))

    def upgrade(self, version: int, despite: bool, fails: bool) -> None:
        """Another version of agent or engine: what passed before need not pass now."""
        self.tell(m.Stopped())
        self.version, self.despite = version, despite
        self.restart(clean=False)
        if fails and isinstance(job(self.machine), m.Recheck):
            self.fail_once(Cause.BUNDLE)

    def restart(self, clean: bool) -> None:
        if clean:
            self.tell(m.Stopped())
        self.machine = self.disk
        self.is_linked = self.was_linked = False
        self.serving = None
        self.told.clear()
        self.tell(m.Resumed(dict(self.held), {"engine": str(self.version)}, self.despite))

    def damage(self, slot: m.SlotName) -> None:
        self.held.pop(slot, None)

    def lose_download(self) -> None:
        self.fetched.clear()

    def repeat(self, which: int) -> None:
        """An event comes a second time, or late."""
        if self.told:
            event = self.told[which % len(self.told)]
            is_present = getattr(event, "generation", -1) == self.machine.generation
            if isinstance(event, m.Died | m.StartFailed | m.Observed | m.Started | m.Steady) and is_present:
                # Workers tell each thing once; only what a replaced placement told can come late.
                return
            if isinstance(event, m.Resumed | m.Acknowledged | m.LinkUp):
                return
            self.tell(event)

    def commit(self, wanted: OrderedBundle) -> None:
        self.order(wanted)
        self.settle(6)

    def try_out(self, wanted: OrderedBundle) -> None:
        """A release up to its trial, beside a committed one."""
        if self.machine.committed is None:
            self.commit(B if wanted == A else A)
        self.order(wanted)
        self.work_on(3)
        self.start()

    def blink(self) -> None:
        self.link(False)
        self.link(True)

    def work_on(self, times: int) -> None:
        for _ in range(times):
            self.work()

    def cut(self) -> None:
        self.work(is_cut=True)

    def die_often(self) -> None:
        for _ in range(5):
            self.start()
            self.die()

    def start_often(self, cause: Cause) -> None:
        for _ in range(3):
            self.start(cause)

    def settle(self, rounds: int = 40) -> None:
        """Everything goes well from here on."""
        for _ in range(rounds):
            self.work()
            if self.serving is None:
                self.start()
            self.observe()
            self.acknowledge()


CAUSES = st.sampled_from(list(Cause))
ACTIONS = st.one_of(
    st.tuples(st.just("order"), st.sampled_from([A, B, C, None]), st.sampled_from([False, False, True])),
    st.tuples(st.just("work_on"), st.integers(1, 4)),
    st.tuples(st.just("commit"), st.sampled_from([A, B, C])),
    st.tuples(st.just("cut")),
    st.tuples(st.just("fail"), CAUSES, st.integers(1, 3)),
    st.tuples(st.just("start"), st.one_of(st.none(), CAUSES)),
    st.tuples(st.just("start_often"), CAUSES),
    st.tuples(st.just("die")),
    st.tuples(st.just("die_often")),
    st.tuples(
        st.just("observe"), st.just(100), st.sampled_from([0, 0, 1, 5]), st.sampled_from([0, 0, 5, 25])
    ),
    st.tuples(st.just("acknowledge")),
    st.tuples(st.just("steady")),
    st.tuples(st.just("link"), st.booleans()),
    st.tuples(st.just("blink")),
    st.tuples(st.just("try_out"), st.sampled_from([A, B, C])),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.just("upgrade"), st.integers(1, 3), st.booleans(), st.booleans()),
    st.tuples(st.just("damage"), st.sampled_from(["A", "B"])),
    st.tuples(st.just("lose_download")),
    st.tuples(st.just("repeat"), st.integers(0, 20)),
)
LIVES = st.lists(ACTIONS, max_size=40)


def a_good_order_arrives_after(life):
    world = World()
    world.restart(clean=True)
    for action in life:
        getattr(world, action[0])(*action[1:])
    world.order(GOOD)
    world.settle()
    assert world.machine.step is Step.IDLE
    assert world.machine.committed is not None
    assert world.machine.committed.bundle == GOOD
    assert world.serving == world.machine.committed


def what_is_wanted_arrives_after(life):
    world = World()
    world.restart(clean=True)
    for action in life:
        getattr(world, action[0])(*action[1:])
    world.settle()
    end = world.machine
    assert end.step in RESTING
    if end.wanted is None:
        assert (end.committed, world.serving) == (None, None)
    elif end.step is not Step.IDLE:
        # Only evidence, or an order that the publisher contradicts, lets it rest elsewhere.
        contradicted = any(event[:2] == ("fail", Cause.ORDER) for event in life)
        assert end.wanted.sha256 in end.refused or contradicted
    if end.committed is not None:
        fails = end.committed.bundle.sha256 in end.failing and not world.despite
        assert world.serving == (None if fails else end.committed)


@settings(max_examples=600, deadline=None)
@given(LIVES)
def test_whatever_happens_nothing_untested_or_refused_serves_and_a_good_order_always_arrives(life):
    a_good_order_arrives_after(life)


@settings(max_examples=400, deadline=None)
@given(LIVES)
def test_when_all_goes_well_again_what_is_wanted_arrives_without_another_order(life):
    what_is_wanted_arrives_after(life)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["work", "cut", "unclean", "clean", "start", "passing"]), max_size=40))
def test_a_good_release_arrives_however_often_power_and_luck_fail_on_the_way(life):
    world = World()
    world.restart(clean=True)
    world.order(A)
    world.settle()
    world.order(B)
    for what in life:
        {
            "work": world.work,
            "cut": lambda: world.work(is_cut=True),
            "unclean": lambda: world.restart(clean=False),
            "clean": lambda: world.restart(clean=True),
            "start": world.start,
            "passing": lambda: world.fail(Cause.PASSING),
        }[what]()
        assert world.machine.refused == {}
        assert serves(world.machine) is not None
    world.settle()
    assert world.machine.committed is not None
    assert world.machine.committed.bundle == B


# Each damage to the machine must be seen by the tests above, or they judge nothing.
def _roll_back_in_words_only(machine, reason):
    return machines.refusing(machine, machine.candidate, reason)


BREAKS = {
    "what was refused serves on": ("_roll_back", _roll_back_in_words_only),
    "damage is blamed": (
        "_damaged",
        lambda machine, reason: transitions._fall_back(
            machines.refusing(machine, machine.committed, reason), reason
        ),
    ),
    "restarts are blamed": ("course.postpone", transitions._roll_back),
    "a loss ends the update": (
        "course.refetch",
        lambda machine, reason: course.rest(machine, Step.FAILED, reason),
    ),
    "untested bundles are switched to": (
        "course.fetch",
        lambda machine, wanted: replace(machine, step=Step.SWITCH, candidate=SlotRef("A", wanted)),
    ),
    "a crash loop ends the update": (
        "course.reseat",
        lambda machine: course.rest(machine, Step.FAILED, "crash loop"),
    ),
    "what was tested under other versions serves": ("machine.is_proved", lambda _machine, _ref: True),
    "one loss of the link is enough": ("MAX_LINK_LOSSES", 1),
    "two deaths are enough": ("MAX_TRIAL_DEATHS", 2),
    "two doubts are enough": ("MAX_DOUBTS", 2),
    "two starts are enough": ("MAX_BLAMED_STARTS", 2),
}


# Of these it takes many runs to be found: with make proofs.
RARE = ("two starts are enough",)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.proof) if case in RARE else case for case in BREAKS]
)
def test_a_machine_that_is_broken_is_found_out(case, monkeypatch):
    name, broken = BREAKS[case]
    where, _, what = name.rpartition(".")
    modules = {"": transitions, "course": course, "machine": machines, "trial": trial}
    monkeypatch.setattr(modules[where], what, broken)

    @settings(max_examples=3000, deadline=None, phases=[Phase.generate], database=None, derandomize=True)
    @given(LIVES)
    def judge(life):
        a_good_order_arrives_after(life)
        what_is_wanted_arrives_after(life)

    with pytest.raises(AssertionError):
        judge()
