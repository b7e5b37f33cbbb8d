"""Performs what the update machine of one deployment decides, and keeps its state on disk.

Always true
 1. The machine's new state is on disk before any of its effects begins.
 2. `current` points at a slot before that slot's worker takes the first request, and back before a rollback does.
 3. At most one preparation (fetch, stage, self-test) and one change of worker are under way.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from device_agent import durable, log
from device_agent.blocking import Stopper, run_blocking
from device_agent.folder import DeploymentFolder
from device_agent.update import events, selftest, slots
from device_agent.update import machine as machines
from device_agent.update.events import Done, Failed, GaveUp, Resumed, SlotRef
from device_agent.update.fetch import FetchError, Source, fetch, opened
from device_agent.update.machine import Machine
from device_agent.workers import Workers, WorkerStartError
from edgekit.errors import BundleError
from edgekit.wire.messages import DeploymentReport, OrderedBundle
from edgekit.wire.states import AgentState as Step

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
# A thread that still connects writes nothing once it is told to stop, so it need not be waited for longer.
STOP_PATIENCE_S = 5.0


Work = Callable[[], Coroutine[Any, Any, None]]


class Updater:
    """One deployment's updates. `changed` is called after every change of state."""

    def __init__(
        self,
        name: str,
        folder: DeploymentFolder,
        workers: Workers,
        source: Source,
        *,
        stamp: str,
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self._folder = folder
        self._workers = workers
        self._source = source
        self._changed = changed
        self._events: asyncio.Queue[events.Event] = asyncio.Queue()
        self._preparing: asyncio.Task[None] | None = None
        self._placing: asyncio.Task[None] | None = None
        self._is_switching = False
        self._staging = threading.Lock()
        self._note = ""
        durable.make_folder(folder.root)
        self.machine = _load(folder)
        self.tell(Resumed(slots.current(folder), stamp))

    # -- for the supervisor --------------------------------------------------------------------------------------

    def tell(self, event: events.Event) -> None:
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Work events off for ever; cancelling stops what is under way."""
        try:
            while True:
                self._step(await self._events.get())
        finally:
            await self._cancel(self._preparing)
            await self._cancel(self._placing)

    @property
    def wants_counts(self) -> bool:
        return self.machine.step in (Step.PROBATION, Step.COMMIT)

    def report(self) -> DeploymentReport:
        machine = self.machine
        serving = self._workers.serving
        ready = serving.ready if serving is not None else None
        return DeploymentReport(
            state=machine.step,
            digest=ready.digest if ready is not None else None,
            committed=machine.committed.bundle.sha256 if machine.committed is not None else None,
            ordered=machine.wanted.sha256 if machine.wanted is not None else None,
            model=ready.model if ready is not None else "",
            model_version=ready.version if ready is not None else "",
            reason=(machine.reason or self._note)[:2000],
        )

    # -- the loop ------------------------------------------------------------------------------------------------

    def _step(self, event: events.Event) -> None:
        before = self.machine
        after, effects = machines.advance(before, event)
        if machines.durable(after) != machines.durable(before):
            durable.write(self._folder.machine, msgspec.json.encode(machines.durable(after)))
        self.machine = after
        if after.step is not before.step or after.reason != before.reason:
            self._note = ""
            log.event("update", deployment=self.name, step=after.step.value, reason=after.reason or "-")
        for effect in effects:
            self._perform(effect)
        if machines.durable(after) != machines.durable(before):
            self._changed()

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Halt():
                self._halt()
            case events.Fetch(bundle):
                self._prepare(lambda: self._fetch(bundle))
            case events.Stage(ref):
                self._prepare(lambda: self._stage(ref))
            case events.SelfTest(ref):
                self._prepare(lambda: self._selftest(ref))
            case events.Switch(ref):
                self._place(lambda: self._switch(ref), is_switch=True)
            case events.Restore(back):
                self._place(lambda: self._restore(back), is_switch=False)

    def _halt(self) -> None:
        """Stop preparing, and a switch under way; a restoration is firm ground and goes on."""
        if self._preparing is not None:
            self._preparing.cancel()
        if self._placing is not None and self._is_switching:
            self._placing.cancel()

    def _prepare(self, work: Work) -> None:
        self._preparing = asyncio.create_task(self._after(self._preparing, work))

    def _place(self, work: Work, *, is_switch: bool) -> None:
        if self._placing is not None:
            self._placing.cancel()
        self._is_switching = is_switch
        self._placing = asyncio.create_task(self._after(self._placing, work))

    @staticmethod
    async def _after(earlier: asyncio.Task[None] | None, work: Work) -> None:
        """`work`, once what it replaces has ended."""
        if earlier is not None:
            await asyncio.wait([earlier])
        await work()

    @staticmethod
    async def _cancel(task: asyncio.Task[None] | None) -> None:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # -- effects -------------------------------------------------------------------------------------------------

    async def _fetch(self, bundle: OrderedBundle) -> None:
        """Bring the bundle here, trying again as long as the trouble is a passing one."""
        pause = FIRST_RETRY_S
        while True:
            try:
                await self._in_thread(lambda stop: fetch(self._source, bundle, self._folder.fetch, stop))
                break
            except FetchError as error:
                if not error.is_passing:
                    self.tell(Failed(Step.FETCH, str(error), blames_bundle=error.blames_bundle))
                    return
                self._note = f"waiting to try again: {error}"
                log.trouble("fetch failed; trying again", deployment=self.name, reason=error)
                self._changed()
            except OSError as error:
                self.tell(Failed(Step.FETCH, f"the bundle cannot be written: {error}", blames_bundle=False))
                return
            await asyncio.sleep(pause)
            pause = min(LONGEST_RETRY_S, pause * 2)
        self.tell(Done(Step.FETCH))

    async def _stage(self, ref: SlotRef) -> None:
        def work(_stop: Stopper) -> None:
            # Extracting cannot be stopped; one that was given up must end before the next writes the same slot.
            with self._staging:
                bundle = opened(ref.bundle, self._folder.fetch)
                slots.stage(self._folder, ref.slot, bundle, ref.bundle.target)

        try:
            await self._in_thread(work)
        except (FetchError, BundleError, OSError) as error:
            self.tell(Failed(Step.STAGE, f"the bundle cannot be staged: {error}", blames_bundle=False))
            return
        self.tell(Done(Step.STAGE))

    async def _selftest(self, ref: SlotRef) -> None:
        running = slots.current(self._folder)
        beside = self._folder.slot(running) if running is not None and running != ref.slot else None
        durable.make_folder(self._folder.cache)
        verdict = await selftest.run(self._folder.slot(ref.slot), beside, self._folder.cache)
        durable.remove(self._folder.fetch)
        if verdict.passed:
            self.tell(Done(Step.SELFTEST))
        else:
            self.tell(Failed(Step.SELFTEST, f"self-test: {verdict.reason}"))

    async def _switch(self, ref: SlotRef) -> None:
        try:
            ready = await self._workers.switch(
                self._folder.slot(ref.slot), lambda: slots.point(self._folder, ref.slot)
            )
        except WorkerStartError as error:
            self.tell(Failed(Step.SWITCH, f"the worker {error}"))
            return
        self.tell(Done(Step.SWITCH, time.monotonic(), ready.latency_limit_ms))

    async def _restore(self, ref: SlotRef | None) -> None:
        if ref is None:
            slots.clear(self._folder)
            await self._workers.stop()
            self.tell(Done(Step.ROLLBACK))
            return
        if slots.current(self._folder) != ref.slot:
            slots.point(self._folder, ref.slot)
        try:
            await self._workers.ensure(self._folder.slot(ref.slot))
        except WorkerStartError as error:
            going_back = self.machine.step is Step.ROLLBACK and not self.machine.is_settled
            self.tell(Failed(Step.ROLLBACK, str(error)) if going_back else GaveUp(str(error)))
            return
        self.tell(Done(Step.ROLLBACK))

    async def _in_thread(self, work: Callable[[Stopper], object]) -> None:
        """Run blocking work; cancelling stops it and waits for its end, so that two never write the same file."""
        stopping = Stopper()
        task = asyncio.create_task(run_blocking(lambda: work(stopping)))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            stopping.set()
            await asyncio.wait([task], timeout=STOP_PATIENCE_S)
            raise


def _load(folder: DeploymentFolder) -> Machine:
    """The state on disk; if it is lost, what `current` says is taken as committed."""
    try:
        return msgspec.json.decode(folder.machine.read_bytes(), type=Machine)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError) as error:
        log.trouble("the update state was damaged; going by what runs", file=folder.machine, reason=error)
    name = slots.current(folder)
    mark = slots.mark_of(folder.slot(name)) if name is not None else None
    if name is None or mark is None:
        return Machine()
    bundle = OrderedBundle(target=mark.target, sha256=mark.sha256, length=mark.length)
    return Machine(committed=SlotRef(name, bundle), wanted=bundle)
