"""The update machine: a table of paths, and, for any events and cuts, what must never happen."""

import pytest

from device_agent.update import events as m
from device_agent.update import machine as machines
from device_agent.update.events import Cause, SlotRef
from device_agent.update.machine import Machine, conditions, durable, job, serves, shown
from device_agent.update.transitions import (
    MAX_BLAMED_STARTS,
    MAX_DEATHS,
    MAX_DOUBTS,
    MAX_FAILED_STARTS,
    MAX_RESTARTS,
    MAX_TRIAL_DEATHS,
    advance,
)
from edgekit import sketch
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step


def bundle(letter: str) -> OrderedBundle:
    digest = letter * 64
    return OrderedBundle(f"digits/1/x86-64-v3/{digest}.edgekit", digest, 10)


A, B, C = (bundle(letter) for letter in "abc")
QUICK = OrderOptions(probation_s=10)


class Device:
    """A machine and the ids that its events have to carry."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.counter = self.machine.counter

    def tell(self, event: m.Event) -> "Device":
        self.machine = advance(self.machine, event)
        return self

    def order(self, wanted: OrderedBundle | None, **options: object) -> "Device":
        self.counter += 1
        return self.tell(m.Ordered(self.counter, wanted, OrderOptions(probation_s=10, **options)))

    def done(self, times: int = 1) -> "Device":
        for _ in range(times):
            self.tell(m.Done(self.machine.job_id))
        return self

    def failed(self, cause: Cause = Cause.PASSING, reason: str = "no") -> "Device":
        return self.tell(m.Failed(self.machine.job_id, reason, cause))

    def started(self, limit_ms: float | None = None) -> "Device":
        return self.tell(m.Started(self.machine.generation, 100.0, limit_ms))

    def start_failed(self, cause: Cause = Cause.PASSING) -> "Device":
        return self.tell(m.StartFailed(self.machine.generation, "no", cause))

    def died(self) -> "Device":
        return self.tell(m.Died(self.machine.generation, "gone"))

    def observed(self, now: float = 101.0, **counts: object) -> "Device":
        return self.tell(m.Observed(self.machine.generation, now, **counts))

    def resumed(self, *held: SlotRef, versions: str = "", despite: bool = False) -> "Device":
        """A restart on what is on disk."""
        self.machine = durable(self.machine)
        stamp = {"edgekit": "1", "onnxruntime": versions} if versions else {}
        return self.tell(m.Resumed({ref.slot: ref.bundle for ref in held}, stamp, despite))

    def on_probation(self, wanted: OrderedBundle, limit_ms: float | None = None) -> "Device":
        self.order(wanted).done(3).started(limit_ms)
        assert self.machine.step is Step.PROBATION
        return self

    def committed(self, *wanted: OrderedBundle) -> "Device":
        for each in wanted:
            self.on_probation(each).observed(111.0).tell(m.Acknowledged(each.sha256))
            assert self.machine.step is Step.IDLE
        return self

    @property
    def step(self) -> Step:
        return self.machine.step

    @property
    def serves(self) -> SlotRef | None:
        return serves(self.machine)


@pytest.fixture
def device() -> Device:
    return Device()


IN_A, IN_B = SlotRef("A", A), SlotRef("B", B)


def test_the_straight_way(device):
    device.order(A)
    assert job(device.machine) == m.Fetch(device.machine.job_id, 0.0, A)
    assert job(device.done().machine) == m.Stage(device.machine.job_id, 0.0, IN_A)
    assert job(device.done().machine) == m.SelfTest(device.machine.job_id, 0.0, IN_A)
    assert device.serves is None
    assert job(device.done().machine) is None
    assert device.serves == IN_A
    device.started().observed(105.0).observed(110.0)
    assert device.step is Step.COMMIT
    assert device.tell(m.Acknowledged(B.sha256)).step is Step.COMMIT
    machine = device.tell(m.Acknowledged(A.sha256)).machine
    assert (machine.step, machine.committed, machine.candidate) == (Step.IDLE, IN_A, None)


def test_a_download_waits_for_its_turn_and_takes_its_share_of_the_line(device):
    device.order(A, fetch_after_s=40.0, fetch_bytes_s=1000.0)
    assert job(device.machine) == m.Fetch(device.machine.job_id, 40.0, A, 1000.0)
    again = job(device.failed().machine)
    assert (again.pause_s, again.bytes_s) == (1.0, 1000.0), "a second try has its own pause"
    assert job(device.done().machine) == m.Stage(device.machine.job_id, 0.0, IN_A), "only the download waits"


def test_the_next_release_takes_the_other_slot_and_keeps_the_last(device):
    machine = device.committed(A, B).machine
    assert (machine.committed, machine.previous) == (IN_B, IN_A)


def test_going_back_needs_neither_fetch_nor_self_test(device):
    device.committed(A, B).order(A)
    assert (device.step, device.serves, job(device.machine)) == (Step.SWITCH, IN_A, None)


def test_a_slot_that_is_being_overwritten_is_not_gone_back_to(device):
    device.committed(A, B).order(C).done().order(A)
    assert isinstance(job(device.machine), m.Fetch)


def test_an_acknowledgement_during_probation_counts(device):
    assert device.on_probation(A).tell(m.Acknowledged(A.sha256)).observed(110.0).step is Step.IDLE


# From a committed A, on the way to B, with evidence against B: the step reached, what is seen there, where it ends.
EVIDENCE = {
    "content": (0, lambda d: d.failed(Cause.BUNDLE), Step.FAILED),
    "signature, again and again": (
        0, lambda d: [d.failed(Cause.DOUBT) for _ in range(MAX_DOUBTS)], Step.FAILED,
    ),
    "self-test": (2, lambda d: d.failed(Cause.BUNDLE), Step.FAILED),
    "starts": (3, lambda d: [d.start_failed(Cause.BUNDLE) for _ in range(MAX_BLAMED_STARTS)], Step.ROLLBACK),
    "deaths": (4, lambda d: [d.died() for _ in range(MAX_TRIAL_DEATHS)], Step.ROLLBACK),
    "errors": (4, lambda d: d.observed(requests=100, errors=5), Step.ROLLBACK),
    "slow": (4, lambda d: d.observed(requests=50, infer_ms=sketch.of([13.0] * 50)), Step.ROLLBACK),
}  # fmt: skip


def on_the_way(device: Device, count: int) -> Device:
    device.committed(A).order(B).done(min(count, 3))
    return device.started(limit_ms=10.0) if count == 4 else device


@pytest.mark.parametrize("case", EVIDENCE)
def test_evidence_ends_on_the_committed_release_and_is_remembered(case, device):
    count, happens, step = EVIDENCE[case]
    happens(on_the_way(device, count))
    machine = device.machine
    assert (machine.step, machine.candidate, device.serves) == (step, None, IN_A)
    assert machine.reason == machine.refused[B.sha256]
    assert (device.order(B).step, device.machine.reason) == (Step.FAILED, machine.reason)
    device.resumed(IN_A)
    assert (device.step, device.machine.refused) == (Step.FAILED, machine.refused)
    # Under other versions it gets another chance, once what is committed was tested under them.
    assert isinstance(job(device.resumed(IN_A, versions="1.33").machine), m.Recheck)
    assert isinstance(job(device.done().machine), m.Fetch)


def test_an_operator_can_order_a_refused_bundle_once_more(device):
    EVIDENCE["self-test"][1](on_the_way(device, 2))
    assert device.order(B).step is Step.FAILED
    device.order(B, retry=True)
    assert (device.step, device.machine.refused) == (Step.FETCH, {})


# What is nobody's verdict: the step reached, what happens there, the step after it, what serves then.
NO_EVIDENCE = {
    "a fetch that fails": (0, lambda d: d.failed(), Step.FETCH, IN_A),
    "a fetch that fails for weeks": (0, lambda d: [d.failed() for _ in range(5000)], Step.FETCH, IN_A),
    "one bad signature": (0, lambda d: d.failed(Cause.DOUBT), Step.FETCH, IN_A),
    "a full disk": (1, lambda d: d.failed(), Step.STAGE, IN_A),
    "the download gone": (1, lambda d: d.failed(Cause.LOST), Step.FETCH, IN_A),
    "a failed fork": (2, lambda d: d.failed(), Step.SELFTEST, IN_A),
    "the slot damaged": (2, lambda d: d.failed(Cause.LOST), Step.FETCH, IN_A),
    "a start that fails": (3, lambda d: d.start_failed(), Step.SWITCH, IN_B),
    "starts that fail": (
        3, lambda d: [d.start_failed() for _ in range(MAX_FAILED_STARTS)], Step.SWITCH, IN_A,
    ),
    "a start that takes too long": (3, lambda d: d.start_failed(Cause.DOUBT), Step.SWITCH, IN_A),
    "the slot damaged in the trial": (4, lambda d: d.start_failed(Cause.LOST), Step.FETCH, IN_A),
    "two deaths": (4, lambda d: [d.died() for _ in range(2)], Step.PROBATION, IN_B),
    "one error among few": (4, lambda d: d.observed(requests=10, errors=1), Step.PROBATION, IN_B),
    "few errors among many": (4, lambda d: d.observed(requests=1000, errors=5), Step.PROBATION, IN_B),
    "slow, but too few to say": (
        4, lambda d: d.observed(requests=3, infer_ms=sketch.of([99.0] * 3)), Step.PROBATION, IN_B,
    ),
    "within the margin": (
        4, lambda d: d.observed(requests=50, infer_ms=sketch.of([12.0] * 50)), Step.PROBATION, IN_B,
    ),
    "three clean restarts": (
        4, lambda d: [d.tell(m.Stopped()).resumed(IN_A, IN_B) for _ in range(3)], Step.SWITCH, IN_B,
    ),
    "three power cuts": (4, lambda d: [d.resumed(IN_A, IN_B) for _ in range(MAX_RESTARTS)], Step.SWITCH, IN_A),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_EVIDENCE)
def test_what_is_no_evidence_is_tried_again_and_arrives(case, device):
    count, happens, step, serving = NO_EVIDENCE[case]
    happens(on_the_way(device, count))
    assert (device.step, device.serves) == (step, serving)
    assert device.machine.refused == {}
    for _ in range(5):
        device.done()
    device.started().observed(300.0).tell(m.Acknowledged(B.sha256))
    assert (device.step, device.machine.committed, device.machine.reason) == (Step.IDLE, IN_B, "")


def test_what_waits_says_for_what_and_for_how_long(device):
    device.order(A)
    pauses = []
    for _ in range(12):
        device.failed(reason="the server answered 404")
        pauses.append(job(device.machine).pause_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert "the server answered 404" in machines.conditions(device.machine)["update-waiting"]
    assert shown(device.machine)[0] is Step.FETCH


def test_every_failed_try_is_followed_by_another_one(device):
    device.order(A)
    assert len({device.failed().machine.job_id for _ in range(50)}) == 50


def test_an_order_for_what_waits_already_starts_the_try_at_once(device):
    device.order(A).failed().failed()
    waiting = device.machine.job_id
    assert job(device.order(A).machine).pause_s == 0
    assert device.machine.job_id > waiting


def test_an_order_for_what_is_under_way_disturbs_nothing(device):
    device.order(A).done()
    under_way = job(device.machine)
    assert job(device.order(A).machine) == under_way


def test_an_order_that_the_publisher_contradicts_is_not_held_against_the_bundle(device):
    device.order(A).failed(Cause.ORDER)
    assert (device.step, device.machine.refused) == (Step.FAILED, {})
    assert isinstance(job(device.order(A).machine), m.Fetch)


def test_results_of_what_is_no_longer_wanted_change_nothing(device):
    device.committed(A).order(B)
    late = [m.Done(device.machine.job_id), m.Failed(device.machine.job_id, "bad", Cause.BUNDLE)]
    device.order(C)
    before = device.machine
    for event in late:
        assert device.tell(event).machine == before


def test_deaths_of_the_release_before_do_not_count_for_the_one_after(device):
    device.committed(A, B)
    old = device.machine.generation
    for _ in range(MAX_DEATHS):
        device.died()
    assert (device.serves, device.step) == (IN_A, Step.DIVERGED)
    assert B.sha256 in device.machine.refused
    before = device.machine
    device.tell(m.Died(old, "late")).tell(m.StartFailed(old, "late", Cause.BUNDLE))
    assert device.machine == before
    for _ in range(MAX_DEATHS - 1):
        device.died()
    assert machines.conditions(device.machine) == {}


def test_a_committed_release_without_another_is_restarted_for_ever_and_reported(device):
    device.committed(A)
    for _ in range(MAX_DEATHS):
        device.died()
    assert device.serves == IN_A
    assert device.machine.refused == {}
    assert shown(device.machine)[0] is Step.DIVERGED
    assert shown(device.started().machine)[0] is Step.DIVERGED
    device.tell(m.Steady(device.machine.generation))
    assert shown(device.machine) == (Step.IDLE, "")


@pytest.mark.parametrize("count", range(3))
@pytest.mark.parametrize("has_fallback", [True, False])
def test_a_crash_loop_of_the_committed_release_never_ends_the_update_that_would_mend_it(
    count, has_fallback, device
):
    device.committed(*([A, B] if has_fallback else [B])).order(C).done(count)
    step, under_way = device.step, device.machine.job_id
    for _ in range(3 * MAX_DEATHS):
        device.died()
    assert (device.step, device.machine.job_id) == (step, under_way)
    assert device.serves is not None
    device.done(3 - count).started().observed(300.0).tell(m.Acknowledged(C.sha256))
    assert (device.step, device.machine.committed.bundle) == (Step.IDLE, C)


def test_a_committed_bundle_that_was_damaged_is_fetched_again(device):
    device.committed(A, B).start_failed(Cause.LOST)
    assert (device.serves, device.machine.refused) == (IN_A, {})
    assert job(device.machine) == m.Fetch(device.machine.job_id, 0.0, B)
    assert "damaged" in device.machine.reason
    device.done(3).started().observed(300.0).tell(m.Acknowledged(B.sha256))
    assert (device.step, device.machine.committed) == (Step.IDLE, IN_B)


def test_a_damaged_bundle_comes_back_even_where_a_refused_one_is_ordered(device):
    device.committed(A).order(B).done(2).failed(Cause.BUNDLE)
    device.start_failed(Cause.LOST)
    assert (device.serves, job(device.machine).bundle) == (None, A)
    device.done(3).started().observed(300.0).tell(m.Acknowledged(A.sha256))
    assert (device.step, device.machine.committed) == (Step.FAILED, IN_A)


def test_a_slot_that_lost_its_bundle_is_noticed_at_start(device):
    device.committed(A, B).resumed(IN_A)
    assert (device.serves, device.step) == (IN_A, Step.FETCH)
    device.resumed()
    assert (device.serves, device.step) == (None, Step.FETCH)


def test_a_release_under_which_the_device_keeps_restarting_waits_longer_each_time(device):
    device.committed(A).on_probation(B)
    pauses = []
    for _ in range(3):
        for _ in range(MAX_RESTARTS):
            device.resumed(IN_A, IN_B)
        assert device.serves == IN_A
        pauses.append(job(device.machine).pause_s)
        assert device.done().serves == IN_B
    assert pauses == [60, 120, 240]


def test_a_failed_return_keeps_the_first_reason(device):
    device.committed(A).on_probation(B)
    for _ in range(MAX_TRIAL_DEATHS):
        device.died()
    step, reason = shown(device.start_failed().machine)
    assert step is Step.ROLLBACK
    assert "the worker died 3 times" in reason
    assert "going back failed" in reason


def test_an_order_for_nothing_stops_the_model(device):
    machine = device.committed(A).order(None).machine
    assert (machine.step, machine.committed, machine.wanted, device.serves) == (Step.IDLE, None, None, None)


def test_another_order_during_probation_serves_the_committed_release_meanwhile(device):
    device.committed(A).on_probation(B).order(C)
    assert (device.serves, job(device.machine).bundle, device.machine.refused) == (IN_A, C, {})


def test_waiting_writes_nothing(device):
    device.order(A)
    written = durable(device.machine)
    assert durable(device.failed().failed().machine) == written


# -- other versions of agent or engines --------------------------------------------------------------------------


@pytest.fixture
def upgraded():
    """Commits bundles under 1.32 and then starts with onnxruntime 1.33."""

    def make(*wanted: OrderedBundle, **options: bool) -> Device:
        device = Device().resumed(versions="1.32")
        held = (IN_A, IN_B)[: len(wanted)]
        return device.committed(*wanted).resumed(*held, versions="1.33", **options)

    return make


def test_under_other_versions_a_committed_bundle_is_tested_again_before_it_serves(upgraded):
    device = upgraded(A)
    assert device.serves is None
    assert job(device.machine) == m.Recheck(device.machine.job_id, 0.0, IN_A)
    assert conditions(device.machine) == {}
    assert device.done().serves == IN_A
    assert device.resumed(IN_A, versions="1.33").serves == IN_A


def test_a_bundle_that_fails_under_other_versions_says_so_and_does_not_serve(upgraded):
    device = upgraded(A).failed(Cause.BUNDLE, "agreement 94 %")
    assert (device.serves, job(device.machine)) == (None, None)
    assert conditions(device.machine) == {
        "engine-changed": "onnxruntime 1.32 -> 1.33: agreement 94 %; it does not serve"
    }
    assert shown(device.machine)[0] is Step.DIVERGED
    assert device.resumed(IN_A, versions="1.33").serves is None
    device.committed(B)
    assert (device.serves, conditions(device.machine)) == (IN_B, {})


def test_it_serves_all_the_same_if_told_to_and_says_so(upgraded):
    device = upgraded(A, B, despite=True)
    assert device.serves is None, "it is tested first"
    device.failed(Cause.BUNDLE, "agreement 94 %")
    assert (device.serves, job(device.machine)) == (IN_B, None)
    assert conditions(device.machine)["engine-changed"].endswith(
        "agreement 94 %; it serves all the same, as told"
    )
    assert device.resumed(IN_A, IN_B, versions="1.33").serves is None


def test_it_falls_back_to_the_one_before_if_that_passes(upgraded):
    device = upgraded(A, B).failed(Cause.BUNDLE, "agreement 94 %")
    assert device.serves is None
    assert job(device.machine) == m.Recheck(device.machine.job_id, 0.0, IN_A)
    device.done()
    assert (device.serves, device.step) == (IN_A, Step.DIVERGED)
    assert device.machine.reason == device.machine.refused[B.sha256]
    assert device.machine.reason == "engine changed: onnxruntime 1.32 -> 1.33: agreement 94 %"


def test_where_none_passes_none_serves_until_the_versions_are_as_before(upgraded):
    device = upgraded(A, B).failed(Cause.BUNDLE, "no").failed(Cause.BUNDLE, "no")
    assert (device.serves, job(device.machine)) == (None, None)
    assert device.machine.committed == IN_B
    assert device.resumed(IN_A, IN_B, versions="1.32").serves == IN_B


def test_an_order_to_retry_tests_it_once_more(upgraded):
    device = upgraded(A).failed(Cause.BUNDLE, "no")
    assert job(device.order(A).machine) is None
    assert isinstance(job(device.order(A, retry=True).machine), m.Recheck)


def test_a_test_that_cannot_be_run_is_waited_for_and_told(upgraded):
    device = upgraded(A).failed(Cause.PASSING, "no process can be made")
    assert job(device.machine).pause_s == 1.0
    assert "waiting to test again: no process can be made" in conditions(device.machine)["engine-changed"]
    for _ in range(MAX_DOUBTS - 1):
        device.failed(Cause.DOUBT)
    assert isinstance(job(device.machine), m.Recheck)
    device.failed(Cause.DOUBT)
    assert job(device.machine) is None


def test_a_trial_under_other_versions_begins_with_the_self_test(device):
    device.resumed(versions="1.32").committed(A).on_probation(B)
    device.resumed(IN_A, IN_B, versions="1.33")
    assert isinstance(job(device.machine), m.Recheck)
    assert job(device.done().machine) == m.SelfTest(device.machine.job_id, 0.0, IN_B)
    assert device.serves == IN_A


def test_going_back_to_what_was_never_tested_under_these_versions_tests_it_first(upgraded):
    device = upgraded(A, B).done()
    assert job(device.order(A).machine) == m.SelfTest(device.machine.job_id, 0.0, IN_A)
    assert device.serves == IN_B


def test_a_bundle_whose_versions_are_not_known_is_tested_again():
    machine = Machine(committed=IN_A, wanted=A)
    device = Device(machine).resumed(IN_A, versions="1.33").failed(Cause.BUNDLE, "no")
    assert "are not known: no" in conditions(device.machine)["engine-changed"]


# -- the link ----------------------------------------------------------------------------------------------------


def on_trial(device: Device, *, seconds: float = 5.0) -> Device:
    """B on probation beside the committed A, with the link up until `seconds` after the switch."""
    device.committed(A).tell(m.LinkUp(90.0)).on_probation(B)
    return device.tell(m.LinkDown(100.0 + seconds))


def test_a_link_that_is_lost_after_the_switch_suspends_the_new_release(device):
    on_trial(device)
    assert (device.step, device.serves, device.machine.candidate) == (Step.PROBATION, IN_A, IN_B)
    assert job(device.machine) == m.Wait(device.machine.job_id, machines.SUSPEND_S)
    assert "the link was lost" in conditions(device.machine)["update-waiting"]
    device.started().observed(200.0, requests=100, errors=50).tell(m.Acknowledged(B.sha256))
    assert (device.step, device.machine.committed) == (Step.PROBATION, IN_A), (
        "what the old one does says nothing"
    )


def test_a_link_that_comes_back_with_the_old_release_may_have_been_a_restart_of_the_broker(device):
    on_trial(device).tell(m.LinkUp(130.0))
    assert (device.step, device.serves, device.machine.refused) == (Step.SWITCH, IN_A, {})
    assert "came back with the bundle before" in conditions(device.machine)["update-waiting"]
    device.done().started().observed(200.0)
    assert device.tell(m.Acknowledged(B.sha256)).serves == IN_B


def test_a_link_that_twice_comes_back_with_the_old_release_was_cut_by_the_new_one(device):
    on_trial(device).tell(m.LinkUp(130.0)).done().started()
    assert device.serves == IN_B
    device.tell(m.LinkDown(105.0)).tell(m.LinkUp(140.0))
    assert (device.step, device.serves) == (Step.ROLLBACK, IN_A)
    assert "came back with the bundle before" in device.machine.refused[B.sha256]


def test_a_link_that_stays_away_is_an_outage_and_the_release_arrives_after_it(device):
    on_trial(device).done()
    assert (device.step, device.serves, device.machine.reason) == (Step.PROBATION, IN_B, "")
    device.started().observed(5000.0)
    device.tell(m.LinkUp(6000.0)).tell(m.LinkDown(6001.0)).tell(m.LinkUp(6002.0))
    assert (device.serves, device.machine.refused) == (IN_B, {})
    assert device.observed(6010.0).tell(m.Acknowledged(B.sha256)).machine.committed == IN_B


NO_SUSPICION = {
    "long after the switch": lambda d: (
        d.committed(A).tell(m.LinkUp(90.0)).on_probation(B).tell(m.LinkDown(300.0))
    ),
    "it was down before": lambda d: d.committed(A).on_probation(B).tell(m.LinkDown(105.0)),
    "nothing else could serve": lambda d: d.tell(m.LinkUp(90.0)).on_probation(B).tell(m.LinkDown(105.0)),
    "the device restarted": lambda d: (
        d.committed(A)
        .tell(m.LinkUp(90.0))
        .on_probation(B)
        .resumed(IN_A, IN_B)
        .started()
        .tell(m.LinkDown(105.0))
    ),
}


@pytest.mark.parametrize("case", NO_SUSPICION)
def test_a_link_that_is_lost_otherwise_suspends_nothing(case, device):
    NO_SUSPICION[case](device)
    assert device.serves.bundle == B
    device.tell(m.LinkUp(110.0))
    assert (device.step, device.machine.refused) == (Step.PROBATION, {})


DAY = 86_400.0


@pytest.mark.parametrize(("is_linked", "ends_at", "words"), [
    (True, 100.0 + 6 * 3600 + 20, "6 hours of connection"),
    (False, 100.0 + 7 * DAY + 20, "7 days"),
])  # fmt: skip
def test_without_an_acknowledgement_a_trial_ends_at_last_and_nothing_is_blamed(
    device, is_linked, ends_at, words
):
    device.committed(A).on_probation(B)
    if is_linked:
        device.tell(m.LinkUp(100.0))
    device.observed(115.0).observed(ends_at - 25)
    assert (device.step, device.serves) == (Step.COMMIT, IN_B)
    device.observed(ends_at)
    assert (device.step, device.serves, device.machine.refused) == (Step.SWITCH, IN_A, {})
    assert words in device.machine.reason
    assert device.done().serves == IN_B, "it is tried again"
