"""The loop between the machine and the world, with real slots and workers, and jobs and disks that fail as told."""

import asyncio
import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent import process
from device_agent.folder import DeploymentFolder
from device_agent.network import Access
from device_agent.process import Served
from device_agent.storage import Storage
from device_agent.update import jobs, slots
from device_agent.update.events import Acknowledged, Cause, Fetch, Ordered, SelfTest, Stage
from device_agent.update.fetch import Source
from device_agent.update.jobs import JobError
from device_agent.update.reconciler import Reconciler
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step


async def signed(_bundle: OrderedBundle, _bases: object) -> dict[str, object]:
    return {}


SOURCE = Source("http://127.0.0.1:1/artifacts", Access("", ("127.0.0.1",), lambda: None), signed)


class Bench:
    """One reconciler in a loop of its own. `failing` maps a kind of job to what its next runs raise."""

    def __init__(self, root: Path, stage: Callable[..., Path]) -> None:
        self.folder = DeploymentFolder(root / "deployments" / "digits")
        self.stage = stage
        self.bundles: dict[str, object] = {}
        self.failing: dict[type, list[Exception]] = {}
        self.ran: list[str] = []
        self.counter = 0
        self.reconciler: Reconciler
        self.storage: Storage
        self.given_back: list[int] = []
        self.deaths: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self):
        self.storage = Storage(self.folder.root.parent)
        self.reconciler = Reconciler(
            self.folder,
            Served(
                "digits",
                ("digits",),
                self.folder.state,
                (),
                self.folder.cache,
                log_json=False,
                given_back=lambda fd, _: self.given_back.append(fd),
            ),
            SOURCE,
            self.storage,
            overlap=True,
            stamp={"edgekit": "1"},
            changed=lambda: None,
            counted=lambda _window: None,
            died=self.deaths.append,
        )
        self.reconciler._jobs.do = self.do_job
        task = asyncio.create_task(self.reconciler.run())
        ticking = asyncio.create_task(self.tick())
        try:
            yield self
        finally:
            ticking.cancel()
            task.cancel()
            await asyncio.wait((task,))
            await self.reconciler.workers.close()
            await self.storage.close()

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.reconciler.workers.tick()

    async def do_job(self, job: object) -> None:
        self.ran.append(type(job).__name__)
        if failures := self.failing.get(type(job)):
            raise failures.pop(0)
        if isinstance(job, Stage):
            built = self.bundles[job.ref.bundle.sha256]
            await asyncio.to_thread(self.stage, self.folder, built, job.ref.slot)

    def order(self, built: object, **options: object) -> None:
        self.bundles[built.sha256] = built
        self.counter += 1
        wanted = OrderedBundle(built.target, built.sha256, built.length)
        self.reconciler.tell(Ordered(self.counter, wanted, OrderOptions(probation_s=0, **options)))

    async def until(self, condition: Callable[[], object], what: str) -> None:
        for _ in range(1200):
            if condition():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited for {what}: {self.reconciler.machine}")

    async def commits(self, built: object) -> None:
        self.order(built)
        await self.until(lambda: self.reconciler.machine.step is Step.COMMIT, "the end of probation")
        self.reconciler.tell(Acknowledged(built.sha256))
        await self.until(lambda: self.reconciler.machine.step is Step.IDLE, "the commit")
        assert self.loaded == built.sha256

    @property
    def loaded(self) -> str:
        serving = self.reconciler.workers.serving
        return serving.ready.digest if serving is not None else ""


@pytest.fixture
def bench(tmp_path, stage):
    return Bench(tmp_path, stage)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("turns", range(6))
def test_an_end_that_comes_together_with_an_event_is_an_end(turns, bench):
    """asyncio.wait_for of Python 3.11 swallows a cancellation in some turn after the event, and the agent never ends."""

    async def scene():
        async with bench.running():
            await asyncio.sleep(0.05)
            bench.reconciler.tell(Acknowledged("a" * 64))
            for _ in range(turns):
                await asyncio.sleep(0)

    asyncio.run(scene())


SURPRISES = [RuntimeError("a fault"), KeyError("x"), OSError(errno.ENOMEM, "no memory"), RecursionError()]


@pytest.mark.parametrize("kind", [Fetch, Stage, SelfTest])
def test_whatever_a_job_raises_the_update_arrives_and_nothing_is_refused(
    kind, bench, first, second, monkeypatch
):
    monkeypatch.setattr("device_agent.update.machine.FIRST_PAUSE_S", 0.01)

    async def live():
        async with bench.running():
            await bench.commits(first)
            bench.failing[kind] = list(SURPRISES)
            await bench.commits(second)
            assert bench.failing[kind] == []
            assert bench.reconciler.machine.refused == {}

    asyncio.run(live())


def test_whatever_a_worker_start_raises_it_serves_in_the_end(bench, first, second, monkeypatch):
    make = process.WorkerProcess._make_process
    surprises = [RuntimeError("a fault"), OSError(errno.ENOMEM, "no memory")]

    async def failing(worker):
        if surprises:
            raise surprises.pop(0)
        await make(worker)

    async def live():
        async with bench.running():
            await bench.commits(first)
            monkeypatch.setattr(process.WorkerProcess, "_make_process", failing)
            await bench.commits(second)
            assert surprises == []
            surprises.append(TypeError("another"))
            bench.reconciler.workers.serving._end_process()
            await bench.until(lambda: bench.deaths and not surprises, "the death")
            await bench.until(lambda: bench.loaded == second.sha256, "the next worker")

    asyncio.run(live())


def test_an_exception_in_a_rule_ends_neither_the_loop_nor_what_serves(bench, first, second, monkeypatch):
    async def live():
        async with bench.running():
            await bench.commits(first)
            bench.reconciler.tell("no event at all")
            await bench.commits(second)

    asyncio.run(live())


def test_while_the_state_cannot_be_written_nothing_new_begins_and_what_is_committed_serves(
    bench, first, second, monkeypatch
):
    full = []
    do = Storage.do

    async def failing(storage, work):
        if full:
            raise OSError(errno.ENOSPC, "no space left")
        return await do(storage, work)

    monkeypatch.setattr(Storage, "do", failing)
    monkeypatch.setattr("device_agent.update.reconciler.LOOK_AGAIN_S", 0.1)

    async def live():
        async with bench.running():
            await bench.commits(first)
            full.append(True)
            bench.ran.clear()
            bench.order(second)
            await bench.until(lambda: bench.reconciler.machine.step is Step.FETCH, "the order is heard")
            bench.reconciler.workers.serving._end_process()
            await bench.until(lambda: bench.deaths, "the death")
            await bench.until(lambda: bench.loaded == first.sha256, "the committed one serves again")
            assert bench.ran == []
            full.clear()
            await bench.until(lambda: bench.loaded == second.sha256, "the update goes on")

    asyncio.run(live())


def test_a_trial_never_takes_over_where_current_cannot_be_moved(bench, first, second, monkeypatch):
    point = slots.point
    failures = [OSError(errno.EROFS, "read-only")] * 2

    def failing(folder, name):
        assert bench.loaded == first.sha256
        if failures:
            raise failures.pop()
        point(folder, name)

    async def live():
        async with bench.running():
            await bench.commits(first)
            monkeypatch.setattr(slots, "point", failing)
            bench.order(second)
            await bench.until(lambda: bench.loaded == second.sha256, "the second try")
            assert failures == []
            assert slots.current(bench.folder) == "B"

    asyncio.run(live())


def test_a_late_result_of_another_update_says_nothing_of_this_one(bench, first, second, make_bundle):
    third = make_bundle(version="3.0.0", seed=3)

    async def live():
        async with bench.running():
            await bench.commits(first)
            bench.failing[SelfTest] = [JobError("self-test: bad", Cause.BUNDLE)]
            slow = asyncio.Event()
            do = bench.do_job

            async def stubborn(job):
                # Ends only after it was cancelled, and then with a verdict.
                with contextlib.suppress(asyncio.CancelledError):
                    if isinstance(job, SelfTest) and bench.failing[SelfTest]:
                        slow.set()
                        await asyncio.sleep(60)
                await do(job)

            bench.reconciler._jobs.do = stubborn
            bench.order(second)
            await asyncio.wait_for(slow.wait(), 60)
            await bench.commits(third)
            assert bench.reconciler.machine.refused == {}

    asyncio.run(live())


def test_a_restart_marks_whether_the_end_was_clean(bench, first, second):
    async def live():
        async with bench.running():
            await bench.commits(first)
            bench.order(second)
            await bench.until(lambda: bench.reconciler.machine.step is Step.COMMIT, "a trial")
        for _ in range(4):
            async with bench.running():
                await bench.until(lambda: bench.loaded == second.sha256, "the trial goes on")
                assert bench.reconciler.machine.restarts == 0
        async with bench.running():
            await bench.until(lambda: bench.loaded == second.sha256, "the trial goes on")
            unclean = bench.folder.machine.read_bytes()
        for file in bench.folder.root.glob("machine.json*"):
            file.unlink()
        bench.folder.machine.write_bytes(unclean)
        async with bench.running():
            await bench.until(lambda: bench.reconciler.machine.restarts == 1, "an unclean restart")

    asyncio.run(live())


def test_the_jobs_say_whose_fault_a_missing_download_is(tmp_path, first):
    folder = DeploymentFolder(tmp_path / "digits")
    wanted = OrderedBundle(first.target, first.sha256, first.length)
    job = Stage(1, 0.0, slots_ref("A", wanted))
    with pytest.raises(JobError) as caught:
        asyncio.run(jobs.Jobs(folder, SOURCE, lambda: jobs.Memory(None, 0.0, True)).do(job))
    assert caught.value.cause is Cause.LOST


def slots_ref(name, wanted):
    from device_agent.update.events import SlotRef

    return SlotRef(name, wanted)


@pytest.mark.parametrize(("overlap", "free", "told"), [
    (True, 479, "needs 480 MB beside the 300 MB of what runs, 479 MB are free"),
    (False, 179, "needs 480 MB in place of the 300 MB of what runs, 179 MB are free"),
    (True, 480, "cannot be had"),
    (False, 180, "cannot be had"),
])  # fmt: skip
def test_nothing_is_fetched_that_does_not_fit_into_memory_and_that_is_held_against_nobody(
    tmp_path, first, overlap, free, told
):
    folder = DeploymentFolder(tmp_path / "deployments" / "digits")
    wanted = OrderedBundle(first.target, first.sha256, first.length, 480.0)
    worker = jobs.Jobs(folder, SOURCE, lambda: jobs.Memory(free, 300.0, overlap))
    with pytest.raises(JobError) as caught:
        asyncio.run(worker.do(Fetch(1, 0.0, wanted)))
    assert caught.value.cause is Cause.PASSING
    assert ("not enough memory" in str(caught.value)) is (told != "cannot be had")
    assert told == "cannot be had" or told in str(caught.value)
