"""A shadow's parts: what it may take, what a copy is, and that a worker never waits for one."""

import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import collector
from device_agent.shadow import copies
from device_agent.shadow.feed import Feed
from device_agent.shadow.pace import EVERY, FIRST_PAUSE_S, LEAST, REMEMBERED, SAVED_S, Allowance, Patience
from edgekit import sketch
from edgekit.wire.messages import DeploymentWindow, Moments, ShadowWindow


@given(
    share=st.floats(0.01, 0.5),
    steps=st.lists(st.tuples(st.floats(0, 3), st.floats(0.0001, 2)), min_size=1, max_size=60),
)
def test_a_shadow_takes_no_more_than_its_share_and_one_call(share, steps):
    now, spent, longest = 0.0, 0.0, 0.0
    allowance = Allowance(share, now)
    for idle_s, cpu_s in steps:
        now += idle_s
        if allowance.wait_s(now) > 0:
            allowance.spend(0.0, now)
            continue
        now += cpu_s
        allowance.spend(cpu_s, now)
        spent, longest = spent + cpu_s, max(longest, cpu_s)
        assert spent <= share * now + longest + 1e-9
    assert allowance.wait_s(now + 1e9) == 0


def test_what_is_saved_up_is_bounded():
    allowance = Allowance(0.1, 0.0)
    allowance.spend(0.0, 1e6)
    allowance.spend(SAVED_S * 0.1 + 0.01, 1e6)
    assert allowance.wait_s(1e6) > 0


def told(patience, beside_ms, alone_ms, seed=0):
    """Served calls with and without a shadow; whether there is a pause after them."""
    chance = np.random.default_rng(seed)
    for index in range(4 * REMEMBERED):
        is_beside = index % 2 == 0
        level = beside_ms if is_beside else alone_ms
        patience.note(level * float(chance.lognormal(0, 0.2)), 0.0, beside=is_beside)
    return patience.is_over(0.0)


def test_a_shadow_that_slows_the_served_model_pauses_and_one_that_does_not_goes_on():
    assert told(Patience(0.1), 1.6, 1.0)
    paused = sum(told(Patience(0.1), 1.0, 1.0, seed) for seed in range(50))
    assert paused <= 5, "without any slowdown"


def test_pauses_end_and_each_is_longer():
    patience = Patience(0.1)
    assert told(patience, 3.0, 1.0)
    assert not patience.is_over(FIRST_PAUSE_S + 0.1)
    for index in range(4 * REMEMBERED):
        patience.note(3.0 if index % 2 else 1.0, FIRST_PAUSE_S + 1, beside=index % 2 == 1)
    assert patience.is_over(FIRST_PAUSE_S + 1 + 1.5 * FIRST_PAUSE_S)


def test_with_few_calls_nothing_is_said():
    patience = Patience(0.1)
    for _ in range(EVERY):
        patience.note(1.0, 0.0, beside=False)
    for _ in range(LEAST - 1):
        patience.note(9.0, 0.0, beside=True)
    assert not patience.is_over(0.0)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(5)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [3, 300_000])
def test_a_copy_arrives_as_it_was_whatever_its_size(pair, size):
    ours, theirs = pair
    inputs = {"x": np.arange(size, dtype=np.float32).reshape(1, size), "flag": np.array([True])}
    outputs = {"y": np.array([[1, 2]], np.int64)}
    pieces = copies.packed(inputs, outputs, is_raw=True, took_ms=1.5, skipped=7)
    assert copies.send(ours, pieces)
    copy = copies.receive(theirs)
    assert (copy.head.is_raw, copy.head.took_ms, copy.head.skipped) == (True, 1.5, 7)
    for found, sent in ((copy.inputs, inputs), (copy.outputs, outputs)):
        assert found.keys() == sent.keys()
        for name, array in sent.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


@pytest.mark.parametrize(
    "packet", [b"?", b"\xff\xff\xff\xff{}", copies._LENGTH.pack(2) + b"{}", b"\x03\0\0\0nul" + b"x" * 9]
)
def test_what_is_no_copy_is_passed_over(pair, packet):
    ours, theirs = pair
    ours.send(packet)
    assert copies.receive(theirs) is None


def test_nothing_is_copied_that_was_not_asked_for(pair):
    ours, theirs = pair
    feed = Feed(ours, 0.1)
    for _ in range(5):
        assert feed.is_busy()
        assert not feed.took(1.0, beside=True)
    theirs.send(copies.WANTED)
    assert not feed.is_busy()
    assert feed.took(1.0, beside=False)
    feed.give({"x": np.zeros(2, np.float32)}, {}, is_raw=False, took_ms=1.0)
    assert copies.receive(theirs).head.skipped == 5
    assert not feed.took(1.0, beside=True)


def test_a_shadow_that_is_gone_costs_nothing_more():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    feed = Feed(ours, 0.1)
    theirs.close()
    assert not feed.is_busy()
    assert not feed.is_open
    assert not feed.took(1.0, beside=False)


def test_a_full_socket_drops_copies_and_counts_them(pair):
    ours, theirs = pair
    ours.setblocking(False)
    pieces = copies.packed({"x": np.zeros(8000, np.float32)}, {}, is_raw=False, took_ms=1.0, skipped=0)
    while copies.send(ours, pieces):
        pass
    feed = Feed(ours, 0.1)
    theirs.send(copies.WANTED)
    assert not feed.is_busy()
    assert feed.took(1.0, beside=False)
    feed.give({"x": np.zeros(8000, np.float32)}, {}, is_raw=False, took_ms=1.0)
    assert feed._skipped == 1


def test_windows_of_one_shadow_are_added_and_of_two_the_newer_counts():
    def window(digest, compared):
        shadow = ShadowWindow(
            digest * 64,
            compared,
            1,
            2,
            {"y": Moments(compared, compared / 2)},
            sketch.of([1.0]),
            sketch.of([2.0]),
        )
        return DeploymentWindow("d", "0" * 64, shadow=shadow)

    both = collector.merge(window("a", 3), window("a", 5)).shadow
    assert (both.compared, both.dropped, both.failed) == (8, 2, 4)
    assert both.agreement == {"y": Moments(8, 4.0)}
    assert both.cpu_ms.count == both.served_ms.count == 2
    assert collector.merge(window("a", 3), window("b", 5)).shadow.digest == "b" * 64
    assert collector.merge(window("a", 3), DeploymentWindow("d", "0" * 64)).shadow.compared == 3
