"""Samples on the device: which inputs, how many, kept through power cuts, and brought to the fleet once."""

import asyncio
import functools
import hashlib
import os
import shutil
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import durable
from device_agent.channel import Sampling
from device_agent.clock import Clock
from device_agent.network import Access
from device_agent.samples import allowance, choosing, keeper, sampler
from device_agent.samples.allowance import Taken
from device_agent.samples.choosing import Seen
from device_agent.samples.classes import Classes
from device_agent.samples.keeper import Keeper
from device_agent.samples.sampler import Sampler
from device_agent.samples.sending import Outcome, judged
from device_agent.samples.store import Store
from device_agent.storage import Storage
from edgekit.manifest import StatePair, Step, TensorSpec
from edgekit.samples import load_arrays
from edgekit.wire.messages import DeploymentWindow
from edgekit.wire.samples import SampleAbout, SamplePolicy, pack, unpack

NOW = datetime.now(UTC)
END = NOW + timedelta(hours=1)
POLICY = SamplePolicy("s1", "digits", END, most=3, bytes_a_day=10_000, random=1.0)
DIGEST = "a" * 64


def about(policy: str = "s1", deployment: str = "digits") -> SampleAbout:
    return SampleAbout(policy, deployment, DIGEST, "random", "raw", NOW)


def memory(data: bytes) -> int:
    descriptor = os.memfd_create("sample")
    os.write(descriptor, data)
    return descriptor


# -- which inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "seen", "why"),
    [
        ({}, Seen(0.0, 0.1, "7", True, True), None),
        ({"random": 0.1}, Seen(0.09), "random"),
        ({"random": 0.1}, Seen(0.1), None),
        ({"low_confidence": 0.6}, Seen(0.5, 0.59), "confidence"),
        ({"low_confidence": 0.6}, Seen(0.5, 0.6), None),
        ({"low_confidence": 0.6}, Seen(0.5, None), None),
        ({"labels": ("cat",)}, Seen(0.5, 0.9, "cat"), "rule"),
        ({"labels": ("cat",)}, Seen(0.5, 0.9, "dog"), None),
        ({"drifted": True}, Seen(0.5, is_drifting=True), "drift"),
        ({"drifted": True}, Seen(0.5), None),
        ({"guard": True}, Seen(0.5, is_flagged=True), "guard"),
        ({"guard": True, "random": 1.0}, Seen(0.5), "random"),
    ],
)
def test_an_input_is_kept_for_a_reason_that_the_policy_names(changed, seen, why):
    policy = SamplePolicy("s1", "digits", END, 1, 1, **changed)
    assert choosing.reason(policy, seen) == why


def manifest(*outputs, steps=(), state=()):
    return SimpleNamespace(postprocess=steps, outputs=outputs, state=state, preprocess={})


def test_the_best_class_is_of_the_output_that_post_processing_ranks():
    steps = (Step("top_k", {"output": "b", "labels": ["cat", "dog"]}),)
    classes = Classes(
        manifest(TensorSpec("a", "float32", (1, 3)), TensorSpec("b", "float32", (1, 2)), steps=steps)
    )
    best = classes.best({"a": np.float32([[9, 0, 0]]), "b": np.float32([[0, np.log(3)]])})
    assert best.label == "dog"
    assert best.confidence == pytest.approx(0.75)


def test_probabilities_are_taken_as_they_are_and_one_logit_by_the_logistic_function():
    classes = Classes(manifest(TensorSpec("p", "float32", (1, 3))))
    assert classes.best({"p": np.float32([[0.2, 0.5, 0.3]])}).confidence == pytest.approx(0.5)
    one = Classes(manifest(TensorSpec("p", "float32", (1, 1)), steps=(Step("sigmoid", {"output": "p"}),)))
    assert one.best({"p": np.float32([[-np.log(4)]])}) == ("0", pytest.approx(0.8))


@pytest.mark.parametrize(
    "value", [np.zeros((1, 4, 4), np.float32), np.float32([[np.nan, 1]]), np.int64([[1, 2]])]
)
def test_what_are_no_classes_has_no_confidence(value):
    state = (StatePair("s", "h"),)
    spec = (TensorSpec("y", "float32", (1, None)), TensorSpec("h", "float32", (1, 8)))
    assert Classes(manifest(*spec, state=state)).best({"y": value}) is None


def test_a_worker_without_a_policy_looks_at_nothing():
    made = Sampler("digits", DIGEST, manifest(TensorSpec("p", "float32", (1, 2))), pytest.fail)
    made._classes = None  # whatever would be looked at fails
    made.offer({"x": None}, {"p": None}, is_raw=True)
    assert not made.is_on


def running(test):
    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(test(*arguments, **named))

    return run


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


@running
async def test_a_sample_holds_the_input_the_outputs_and_why():
    came = []
    made = Sampler("digits", DIGEST, manifest(TensorSpec("p", "float32", (1, 2))), came.append)
    made.told(Sampling((POLICY,)))
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    made.offer({"x": image}, {"p": np.float32([[0.9, 0.1]])}, is_raw=True)
    image[:] = 0
    await until(lambda: came)
    said, arrays = unpack(os.pread(came[0], 1 << 20, 0))
    os.close(came[0])
    assert (said.policy, said.reason, said.kind, said.label) == ("s1", "random", "raw", "0")
    assert said.confidence == pytest.approx(0.9)
    found = load_arrays(arrays)
    assert found["input/x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["output/p"].dtype == np.float32
    made.close()


@running
async def test_inputs_are_passed_over_where_keeping_them_would_take_more_than_its_share(monkeypatch):
    came = []
    made = Sampler("digits", DIGEST, manifest(TensorSpec("p", "float32", (1, 2))), came.append)
    made.told(Sampling((POLICY,)))
    monkeypatch.setattr(sampler, "SHARE", 0.0)
    made._credit_s = 0.0
    made.offer({"x": np.zeros(3)}, {}, is_raw=True)
    monkeypatch.setattr(sampler, "SHARE", 1e9)
    made.offer({"x": np.zeros(2 << 20)}, {}, is_raw=True)  # 16 MiB
    assert made.passed_over() == 2
    assert made.passed_over() == 0
    assert not came
    made.close()


# -- how many --------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 5000), max_size=40),
    hours=st.lists(st.integers(0, 60), max_size=40),
    known=st.booleans(),
)
def test_never_more_than_the_policy_says(sizes, hours, known):
    policy = SamplePolicy("s1", "digits", NOW + timedelta(days=2), most=7, bytes_a_day=8000, random=1.0)
    taken, by_day, count = Taken(), {}, 0
    for size, hour in zip(sizes, sorted(hours), strict=False):
        now = NOW + timedelta(hours=hour)
        more = allowance.one_more(policy, taken, size, now, now if known else None)
        if more is None:
            continue
        assert now < policy.until
        day = now.date() if known else None
        by_day[day] = by_day.get(day, 0) + size
        taken, count = more, count + 1
    assert count <= policy.most
    assert all(total <= policy.bytes_a_day for total in by_day.values())


# -- on the disk -----------------------------------------------------------------------------------------------------


def kept(store, data=b"x", policies=None, **changed):
    descriptor = memory(pack(about(**changed), data))
    try:
        return store.keep(
            descriptor, "digits", policies if policies is not None else {"s1": POLICY}, NOW, NOW
        )
    finally:
        os.close(descriptor)


def test_samples_wait_in_their_order_and_outlive_a_restart(tmp_path):
    store = Store(tmp_path / "samples")
    kept(store, b"one")
    held = kept(store, b"two")
    again = Store(tmp_path / "samples").follow(["s1"])
    assert [one[:4] for one in again.waiting] == [one[:4] for one in held.waiting]
    assert again.taken["s1"].samples == 2
    data = store.read(again.waiting[0])
    assert hashlib.sha256(data).hexdigest() == again.waiting[0].sha256
    assert unpack(data)[1] == b"one"


def test_no_more_are_kept_than_the_policy_allows_also_over_restarts(tmp_path):
    for _ in range(5):
        held = kept(Store(tmp_path / "samples"))
    assert held.taken["s1"].samples == 3
    assert len(held.waiting) == 3


@pytest.mark.parametrize(
    "changed",
    [{"policies": {}}, {"policy": "s2"}, {"deployment": "faces"}],
    ids=["none", "another", "deployment"],
)
def test_nothing_is_kept_without_a_policy_that_names_it(tmp_path, changed):
    held = kept(Store(tmp_path / "samples"), **changed)
    assert (held.waiting, held.dropped) == ((), 1)
    assert not (tmp_path / "samples").exists()


def test_what_is_no_sample_is_not_kept(tmp_path):
    descriptor = memory(b"{}")
    assert Store(tmp_path / "samples").keep(descriptor, "digits", {"s1": POLICY}, NOW, NOW).dropped == 1
    os.close(descriptor)


def test_the_oldest_go_first_and_are_counted(tmp_path):
    policy = SamplePolicy("s1", "digits", END, 100, 1 << 30, random=1.0)
    store = Store(tmp_path / "samples", max_samples=2)
    for data in (b"one", b"two", b"three"):
        held = kept(store, data, {"s1": policy})
    assert [unpack(store.read(one))[1] for one in held.waiting] == [b"two", b"three"]
    assert held.dropped == 1


def test_a_policy_that_ended_leaves_nothing(tmp_path):
    store = Store(tmp_path / "samples")
    kept(store)
    held = store.follow([])
    assert (held.waiting, held.taken) == ((), {})
    assert not list((tmp_path / "samples").glob("*.sample"))


def test_a_sample_that_was_damaged_is_dropped_and_counted(tmp_path):
    store = Store(tmp_path / "samples")
    (one,) = kept(store).waiting
    one.path.write_bytes(b"something else")
    assert store.read(one) is None
    assert (store.held.waiting, store.held.dropped) == ((), 1)


def test_a_power_cut_anywhere_leaves_whole_samples_and_never_one_too_many(tmp_path):
    """The disk as it is before each operation of keeping one more: every state that a cut could leave behind."""
    folder = tmp_path / "samples"
    kept(Store(folder), b"one")
    states = []

    def photograph(_operation):
        shutil.copytree(folder, tmp_path / f"cut-{len(states)}")
        states.append(tmp_path / f"cut-{len(states)}")

    store = Store(folder)
    with durable.watched(photograph):
        kept(store, b"two")
    assert len(states) > 5
    for state in states:
        again = Store(state)
        held = again.follow(["s1"])
        assert held.taken["s1"].samples >= len(held.waiting)
        assert all(again.read(one) is not None for one in held.waiting)
        assert not list(state.glob(".*.sample.new"))


def test_a_disk_that_is_nearly_full_keeps_none(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "device_agent.samples.store.shutil.disk_usage", lambda _path: SimpleNamespace(free=1 << 20)
    )
    assert kept(Store(tmp_path / "samples")).dropped == 1


# -- to the fleet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.STORED), (201, Outcome.STORED), (404, Outcome.UNWANTED), (409, Outcome.UNWANTED),
        (413, Outcome.UNWANTED), (422, Outcome.UNWANTED), (410, Outcome.ENDED), (400, Outcome.LATER),
        (401, Outcome.LATER), (403, Outcome.LATER), (429, Outcome.LATER), (500, Outcome.LATER), (503, Outcome.LATER),
    ],
)  # fmt: skip
def test_what_an_answer_means(status, outcome):
    assert judged(status, "").outcome is outcome


class Taker:
    """A fleet that takes samples as it is told to."""

    def __init__(self):
        self.answers = []
        self.came = []
        taker = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                taker.came.append((self.path, data))
                self.send_response(taker.answers.pop(0) if taker.answers else 201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/samples"


@pytest.fixture
def taker():
    made = Taker()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(keeper, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(keeper, "LOOK_S", 0.02)


def make_keeper(folder: Path, storage, taker, **more):
    access = Access("", ("127.0.0.1",), lambda: None)
    clock = Clock(synchronized=lambda: True)
    return Keeper(Store(folder), storage, clock, access, url=taker.url, **more)


def order(*policies):
    return SimpleNamespace(samples=policies)


@running
async def test_a_sample_is_sent_again_until_the_fleet_has_it_and_only_then_deleted(tmp_path, taker, quick):
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker)
    taker.answers = [503, 500]
    made.follow(order(POLICY))
    task = asyncio.create_task(made.run())
    data = pack(about(), b"one")
    made.take("digits", memory(data))
    await until(lambda: made.tally.sent == 1)
    assert [body for _, body in taker.came] == [data] * 3
    assert taker.came[0][0] == f"/v1/samples/{hashlib.sha256(data).hexdigest()}"
    assert made.waiting == 0
    assert not list((tmp_path / "samples").glob("*.sample"))
    task.cancel()
    await storage.close()


@running
async def test_what_waits_is_sent_after_a_restart(tmp_path, taker, quick):
    kept(Store(tmp_path / "samples"), b"one")
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker)
    made.follow(order(POLICY))
    task = asyncio.create_task(made.run())
    await until(lambda: made.tally.sent == 1)
    task.cancel()
    await storage.close()


@running
async def test_an_order_without_the_policy_deletes_what_waits_and_nothing_of_it_is_sent(
    tmp_path, taker, quick
):
    kept(Store(tmp_path / "samples"), b"one")
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker)
    made.follow(order())
    assert made.sampling("digits") == Sampling()
    task = asyncio.create_task(made.run())
    await until(lambda: not list((tmp_path / "samples").glob("*.sample")))
    made.take("digits", memory(pack(about(), b"two")))
    await asyncio.sleep(0.1)
    assert taker.came == []
    assert not list((tmp_path / "samples").glob("*.sample"))
    task.cancel()
    await storage.close()


@running
async def test_after_the_fleet_says_that_it_is_over_nothing_more_is_kept_or_sent(tmp_path, taker, quick):
    store = Store(tmp_path / "samples")
    kept(store, b"one")
    kept(store, b"two")
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker)
    taker.answers = [410]
    made.follow(order(POLICY))
    task = asyncio.create_task(made.run())
    await until(lambda: not list((tmp_path / "samples").glob("*.sample")))
    assert len(taker.came) == 1
    assert made.sampling("digits") == Sampling()
    task.cancel()
    await storage.close()


@running
async def test_a_policy_ends_by_time(tmp_path, taker, quick):
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker, may_send=lambda _size: False)
    soon = SamplePolicy("s1", "digits", datetime.now(UTC) + timedelta(seconds=0.5), 9, 1 << 20, random=1.0)
    made.follow(order(soon))
    task = asyncio.create_task(made.run())
    assert made.sampling("digits").policies == (soon,)
    made.take("digits", memory(pack(about(), b"one")))
    await until(lambda: made.waiting == 1)
    await until(lambda: not list((tmp_path / "samples").glob("*.sample")))
    assert made.sampling("digits") == Sampling()
    assert taker.came == []
    task.cancel()
    await storage.close()


@running
async def test_a_disk_that_fails_costs_the_sample_and_nothing_else(tmp_path, taker, quick):
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker)
    made.follow(order(POLICY))

    def broken(_operation):
        raise OSError(28, "No space left on device")

    with durable.watched(broken):
        made.take("digits", memory(pack(about(), b"one")))
        await until(lambda: made.tally.dropped == 1)
    assert storage.condition == "full"
    assert made.waiting == 0
    await storage.close()


@running
async def test_workers_hear_of_drift_while_an_input_has_moved(tmp_path, taker):
    storage = Storage(tmp_path)
    made = make_keeper(tmp_path / "samples", storage, taker)
    made.follow(order(POLICY))
    for psi, is_drifting in ((0.19, False), (0.21, True), (0.1, False)):
        windows = (DeploymentWindow("digits", DIGEST, drift={"inputs/x": psi, "outputs/y": 9.0}),)
        assert made.judged(windows) == windows
        assert made.sampling("digits").is_drifting is is_drifting
    await storage.close()
