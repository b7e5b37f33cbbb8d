"""Brings one deployment to what its update machine says: the one loop between decision and world.

    event → advance (pure) → onto the disk → the wanted job runs, the wanted slot is served

Always true
 1. Nothing that a new state wants begins before that state is on disk; only what is committed is served at once.
 2. At most one job runs. It ends with one event that carries its id; whatever it raises is a failure of that job, and
    never more. A job that is no longer wanted is cancelled, and the next waits for its end.
 3. The state in memory is the one that counts: a write that fails is tried again, and holds back only what would
    begin with it.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path

from device_agent import durable, health, log
from device_agent.folder import DeploymentFolder
from device_agent.process import Place, Served
from device_agent.record import Record
from device_agent.storage import Storage
from device_agent.update import events, slots
from device_agent.update import machine as machines
from device_agent.update.events import Cause, Done, Failed, Job, Observed, Recheck, Resumed, SlotRef, Stopped
from device_agent.update.fetch import Source
from device_agent.update.jobs import JobError, Jobs, Memory
from device_agent.update.machine import Machine
from device_agent.update.transitions import advance
from device_agent.workers import Hooks, Workers
from edgekit.wire.messages import DeploymentReport, DeploymentWindow, OrderedBundle
from edgekit.wire.states import AgentState as Step

# How often the two records are compared again where the disk or a job keeps something back.
LOOK_AGAIN_S = 2.0


class Reconciler:
    """One deployment. `changed` is called after every change of state, `died` with the digest of a lost worker."""

    def __init__(
        self,
        folder: DeploymentFolder,
        served: Served,
        source: Source,
        storage: Storage,
        *,
        overlap: bool,
        stamp: events.Stamp,
        serves_despite: bool = False,
        changed: Callable[[], None],
        counted: Callable[[DeploymentWindow], None],
        died: Callable[[str], None],
    ) -> None:
        self.name = served.deployment
        self._folder = folder
        self._storage = storage
        self._changed = changed
        self._counted = counted
        self._overlap = overlap
        self._jobs = Jobs(folder, source, self._memory, served.account)
        self._events: asyncio.Queue[events.Event] = asyncio.Queue()
        self._job: Job | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_ending = False
        hooks = Hooks(self.tell, self._count, died, changed, self._point)
        self.workers = Workers(served, hooks, overlap=overlap)
        self._record = Record(folder.machine, Machine, copies=1)
        self.machine, self.trouble = load(self._record, folder)
        self._saved: Machine | None = None
        self.tell(Resumed(slots.held(folder), stamp, serves_despite))

    # -- for the supervisor --------------------------------------------------------------------------------------

    def tell(self, event: events.Event) -> None:
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Follow events for ever; cancelling stops what is under way, and marks on disk that this end was clean."""
        serving = asyncio.create_task(self.workers.run())
        try:
            while True:
                await self._turn()
        finally:
            serving.cancel()
            await self._end_job()
            await asyncio.wait((serving,))
            self.machine = advance(self.machine, Stopped())
            await self._save()

    def report(self) -> DeploymentReport:
        machine = self.machine
        step, reason = machines.shown(machine)
        serving = self.workers.serving
        ready = serving.ready if serving is not None else None
        return DeploymentReport(
            state=step,
            digest=ready.digest if ready is not None else None,
            committed=machine.committed.bundle.sha256 if machine.committed is not None else None,
            ordered=machine.wanted.sha256 if machine.wanted is not None else None,
            model=ready.model if ready is not None else "",
            model_version=ready.version if ready is not None else "",
            reason=reason[:2000],
            memory_mb=health.tree_memory_mb([serving.pid]) if serving is not None else None,
            fetched=self._jobs.fetched,
        )

    def conditions(self) -> dict[str, str]:
        """What is wrong with this deployment and nobody's verdict: condition code → detail."""
        lost = {"update-state": self.trouble} if self.trouble else {}
        return {**machines.conditions(self.machine), **lost}

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Take what has happened, or, after a while without anything, only look again."""
        before = (machines.shown(self.machine), machines.conditions(self.machine))
        with contextlib.suppress(TimeoutError):
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with an event (bpo-37658), and
            # an agent that was told to end would not.
            async with asyncio.timeout(LOOK_AGAIN_S):
                event = await self._events.get()
            self._take(event)
        while not self._events.empty():
            self._take(self._events.get_nowait())
        await self._save()
        self._reconcile()
        after = (machines.shown(self.machine), machines.conditions(self.machine))
        if after != before:
            (step, reason), _conditions = after
            log.event("update", deployment=self.name, step=step.value, reason=reason or "-")
            self._changed()

    def _take(self, event: events.Event) -> None:
        try:
            self.machine = advance(self.machine, event)
        except Exception as error:  # noqa: BLE001  # a fault in a rule must not end what serves
            log.trouble("update: unexpected failure", deployment=self.name, told=event, reason=repr(error))

    async def _save(self) -> None:
        wanted = machines.durable(self.machine)
        if wanted == self._saved:
            return

        def work() -> None:
            durable.make_folder(self._folder.root)
            self._record.save(wanted)

        try:
            await self._storage.do(work)
        except Exception as error:  # noqa: BLE001  # kept in memory, and written when the disk takes it
            log.trouble("the update state cannot be written", deployment=self.name, reason=error)
            return
        self._saved = wanted

    def _reconcile(self) -> None:
        """Compare what is wanted with what is, and begin what is missing."""
        machine = self.machine
        is_saved = machines.durable(machine) == self._saved
        if is_saved or not machines.is_trying(machine):
            self.workers.want(self._place(machines.serves(machine)))
        wanted = machines.job(machine)
        if self._task is not None and self._task.done() and self._events.empty():
            # It ended, and all it told was heard.
            self._job = None
        if self._job is not None and (wanted is None or wanted.id != self._job.id) and self._task is not None:
            self._task.cancel()
            self._job = None
        # What a disk that takes nothing may not keep back: it writes nothing, and serving waits for it.
        is_free = isinstance(wanted, Recheck) or (is_saved and not self._storage.condition)
        if wanted is not None and self._job is None and is_free:
            self._job = wanted
            self._task = asyncio.create_task(self._do(wanted, self._task))

    def _place(self, ref: SlotRef | None) -> Place | None:
        if ref is None:
            return None
        slot = self._folder.slot(ref.slot)
        return Place(slot, ref.bundle.sha256, self.machine.generation, machines.is_trying(self.machine))

    async def _point(self, slot: Path | None) -> None:
        """Move `current`. Raises: OSError."""
        name: events.SlotName | None = None if slot is None else "A" if slot.name == "A" else "B"

        def work() -> None:
            if name is None:
                slots.clear(self._folder)
            elif slots.current(self._folder) != name:
                slots.point(self._folder, name)

        await self._storage.do(work)

    def _count(self, generation: int, window: DeploymentWindow) -> None:
        self._counted(window)
        now = asyncio.get_running_loop().time()
        self.tell(Observed(generation, now, window.requests, window.errors, window.infer_ms))

    def _memory(self) -> Memory:
        serving = self.workers.serving
        running = health.tree_memory_mb([serving.pid]) if serving is not None else None
        return Memory(health.free_memory_mb(), running or 0.0, self._overlap)

    # -- jobs ----------------------------------------------------------------------------------------------------

    async def _do(self, job: Job, earlier: asyncio.Task[None] | None) -> None:
        """The job, to the one event that says how it ended."""
        if earlier is not None:
            await asyncio.wait((earlier,))
        try:
            await asyncio.sleep(job.pause_s * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret
            await self._jobs.do(job)
        except JobError as error:
            self.tell(Failed(job.id, str(error), error.cause))
        except OSError as error:
            self._storage.note(error)
            self.tell(Failed(job.id, str(error), Cause.PASSING))
        except Exception as error:  # noqa: BLE001  # any failure ends the job, and nothing more
            log.trouble("update: unexpected failure", deployment=self.name, job=job, reason=repr(error))
            self.tell(Failed(job.id, repr(error), Cause.PASSING))
        else:
            self.tell(Done(job.id))

    async def _end_job(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))


def load(record: Record[Machine], folder: DeploymentFolder) -> tuple[Machine, str]:
    """The state on disk, and what was wrong with it. If it is lost, what `current` names is taken as committed."""
    machine = record.load()
    if machine is not None:
        return machine, ""
    trouble = "the update state was damaged and is set aside; what ran goes on" if record.trouble else ""
    name = slots.current(folder)
    mark = slots.mark_of(folder.slot(name)) if name is not None else None
    if name is None or mark is None:
        return Machine(), trouble
    bundle = OrderedBundle(target=mark.target, sha256=mark.sha256, length=mark.length)
    return Machine(step=Step.IDLE, committed=SlotRef(name, bundle), wanted=bundle), trouble
