"""A shadow's parts: what it may take, what a copy is, and that a worker never waits for one."""

import itertools
import os
import socket
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import collector
from device_agent.channel import Shadowed
from device_agent.folder import DeploymentFolder
from device_agent.shadow import copies, process
from device_agent.shadow.feed import Feed
from device_agent.shadow.pace import EVERY, FIRST_PAUSE_S, LEAST, REMEMBERED, SAVED_S, Allowance, Patience
from edgekit import sketch
from edgekit.engines import LoadedBundle
from edgekit.transforms import prepare
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


@pytest.fixture
def compare(tmp_path, tools, make_bundle):
    """Live inputs of one bundle compared by the shadow of another; the windows that it told."""

    def run(served_seed, shadow_seed, *, is_raw=True, spoil=None, count=6):
        served = tools.staged(
            DeploymentFolder(tmp_path / "served"), make_bundle(version="1", seed=served_seed)
        )
        other = tools.staged(DeploymentFolder(tmp_path / "other"), make_bundle(version="2", seed=shadow_seed))
        shadow = process.Shadow(other, tmp_path)
        manifest = process.slots.load_checked(served)[1]
        loaded = LoadedBundle(manifest, served)
        ours, fed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        follower = threading.Thread(target=process.follow, args=(shadow, fed, theirs, 0.5), daemon=True)
        follower.start()
        feed, given, left_out, dropped = Feed(ours, 0.5), 0, 0, 0
        until = time.monotonic() + 120
        for picture in itertools.cycle(tools.digit_images(20)):
            raw = {"x": picture}
            ready = prepare(manifest.admitted, manifest.preprocess, raw)
            feed.is_busy()
            if feed.took(1.0, beside=False):
                inputs = raw if is_raw else ready
                feed.give(spoil(inputs) if spoil else inputs, loaded.run(ready), is_raw=is_raw, took_ms=1.0)
                given, dropped = given + 1, left_out
            else:
                left_out += 1
            if given == count or time.monotonic() > until:
                break
            # The shadow's allowance counts what its process spends, and here this loop is in it.
            time.sleep(0.002)
        control.settimeout(120)
        windows = []
        while sum(window.compared + window.failed for window in windows) < count:
            windows.append(msgspec.json.decode(control.recv(1 << 16)[1:], type=Shadowed).window)
        assert sum(window.dropped for window in windows) == dropped
        control.close()
        follower.join(10)
        assert not follower.is_alive(), "it ends with the supervisor"
        return windows

    return run


def total(windows):
    shares = [window.agreement["logits"] for window in windows if "logits" in window.agreement]
    return sum(each.total for each in shares) / max(1, sum(each.count for each in shares))


@pytest.mark.parametrize("is_raw", [True, False])
def test_the_same_network_agrees_wholly_and_another_does_not(compare, is_raw):
    same = compare(1, 1, is_raw=is_raw)
    assert total(same) == 1.0
    assert sum(window.compared for window in same) == 6
    assert sum(window.cpu_ms.count for window in same) == sum(window.served_ms.count for window in same) == 6
    assert total(compare(1, 2, is_raw=is_raw)) < 0.9


def test_what_the_shadow_cannot_answer_is_its_own_failure(compare):
    windows = compare(1, 2, is_raw=False, spoil=lambda _inputs: {"other": np.zeros(3, np.float32)})
    assert sum(window.failed for window in windows) == 6
    assert not any(window.compared for window in windows)


def test_the_shadows_process_is_at_idle_priority():
    code = (
        "import os; from device_agent.shadow.idle import be_idle; be_idle();"
        "print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.getpriority(os.PRIO_PROCESS, 0))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert found.stdout.split() == ["True", "19"]
