"""What serves one deployment, brought to what should serve.

`want` says what should; `run` is the one loop that brings the workers there, and the only place that starts or ends
one. It is level-triggered: it compares the two again after everything that happens.

Always true
 1. At most one worker takes new connections; a swap moves that role in one step of the event loop.
 2. The old worker is drained only after the new one proved itself, unless two do not fit (`overlap` false).
 3. `current` names a slot before a worker of a trial on it takes over. What is committed serves all the same where
    the disk takes no write, and `current` follows when it does.
 4. A worker that ends or does not answer any more is replaced, with back-off while that repeats; nothing that a start
    or an end does can end the loop.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent import log
from device_agent.process import DRAIN_TIMEOUT_S, Place, Served, StartError, WorkerProcess
from device_agent.update.events import Cause, Died, Event, Started, StartFailed, Steady
from device_agent.update.transitions import STEADY_S
from edgekit.wire.messages import DeploymentWindow

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0
POINT_AGAIN_S = 5.0


@dataclass(frozen=True)
class Hooks:
    """What workers tell their owner. `counted` gets the generation, `died` the digest; `point` moves `current`."""

    tell: Callable[[Event], None]
    counted: Callable[[int, DeploymentWindow], None]
    died: Callable[[str], None]
    changed: Callable[[], None]
    point: Callable[[Path | None], Awaitable[None]]


class Workers:
    """The serving worker of one deployment, and those that come and go around it."""

    def __init__(self, served: Served, hooks: Hooks, *, overlap: bool) -> None:
        self.serving: WorkerProcess | None = None
        self._served = served
        self._hooks = hooks
        self._overlap = overlap
        self._wanted: Place | None = None
        self._turn = asyncio.Event()
        self._changed = asyncio.Event()
        self._changed.set()
        # The slot that `current` names by what was written last; () while that is not known.
        self._pointed: Path | tuple[()] | None = ()
        self._troubles = 0
        self._leaving: set[WorkerProcess] = set()
        # One that another is to take the place of, although it serves what it should.
        self._renewed: WorkerProcess | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- for the front -------------------------------------------------------------------------------------------

    @property
    def is_expected(self) -> bool:
        """Whether a worker serves, or will."""
        return self._wanted is not None

    @property
    def is_ready(self) -> bool:
        """Whether a worker serves, and answers."""
        return self.serving is not None and not self.serving.is_late

    async def wait_change(self, patience_s: float) -> None:
        """Until a worker serves or none is expected any more, at most `patience_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._changed.wait()

    # -- for the reconciler --------------------------------------------------------------------------------------

    def want(self, place: Place | None) -> None:
        """What should serve from now on."""
        old = self._wanted
        if place == old:
            return
        if old is None or place is None or (old.slot, old.digest) != (place.slot, place.digest):
            self._troubles = 0
        self._wanted = place
        self._turn.set()
        self._note_change()

    async def renew(self, patience_s: float) -> bool:
        """Let a new worker take over from the one that serves, which finishes what it has begun; whether it did in time."""
        old = self.serving
        self._renewed = old
        self._turn.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self.serving is None or self.serving is old:  # noqa: ASYNC110  # the loop above has no event for it
                    await asyncio.sleep(0.1)
        return self.serving is not None and self.serving is not old

    async def run(self) -> None:
        """Bring what serves to what should, for ever."""
        while True:
            self._turn.clear()
            place = self._wanted
            try:
                await self._bring(place)
            except Exception as error:  # noqa: BLE001  # whatever it is, the loop goes on
                log.trouble(
                    "workers: unexpected failure", deployment=self._served.deployment, reason=repr(error)
                )
                await self._failed(place, StartError(repr(error), Cause.PASSING))

    def tick(self) -> None:
        """One turn of the supervisor's clock."""
        for worker in (*([self.serving] if self.serving is not None else []), *self._leaving):
            worker.tick()

    async def close(self) -> None:
        """Drain all; call it when `run` has ended."""
        self._wanted = None
        self._retire()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_TIMEOUT_S)

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _bring(self, place: Place | None) -> None:
        self._notice_end()
        serving = self.serving
        if place is None:
            await self._point(None)
            await self._retired()
            await self._rest(None)
        elif serving is not None and serving is not self._renewed and self._serves(serving, place):
            if serving.generation != place.generation:
                serving.generation = place.generation
                self._tell_started(serving)
            await self._point(place.slot)
            await self._rest(serving)
        else:
            if serving is not None and not self._overlap:
                await self._retired()
            await self._replace(place)

    @staticmethod
    def _serves(worker: WorkerProcess, place: Place) -> bool:
        loaded = worker.ready.digest if worker.ready is not None else ""
        return (worker.slot, loaded) == (place.slot, place.digest) and not worker.ended.is_set()

    async def _replace(self, place: Place) -> None:
        """Start a worker on `place` and let it take over, unless something else is wanted meanwhile."""
        worker = WorkerProcess(self._served, place, self._count)
        start = asyncio.create_task(worker.start())
        turn = asyncio.create_task(self._turn.wait())
        try:
            await asyncio.wait((start, turn), return_when=asyncio.FIRST_COMPLETED)
        finally:
            turn.cancel()
            if not start.done():
                start.cancel()
                await asyncio.wait((start,))
        if start.cancelled():
            return
        if (error := start.exception()) is not None:
            if not isinstance(error, StartError):
                error = StartError(repr(error), Cause.PASSING)
            await self._failed(place, error)
            return
        if self._wanted != place:
            await worker.kill()
            return
        if not await self._point(place.slot) and place.is_trial:
            await worker.kill()
            await self._failed(
                place, StartError("the disk takes no change of the running slot", Cause.PASSING)
            )
            return
        self._take_over(worker)

    async def _failed(self, place: Place | None, error: StartError) -> None:
        """Tell of a start that failed, and wait before the next, at most until something else is wanted."""
        self._troubles += 1
        log.trouble("worker did not start", deployment=self._served.deployment, reason=error)
        if place is not None and place == self._wanted:
            self._hooks.tell(StartFailed(place.generation, str(error), error.cause))
        await self._unless_turned(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**self._troubles))

    async def _rest(self, serving: WorkerProcess | None) -> None:
        """Until something else is wanted, the worker ended, or it is time to try again to move `current`."""
        is_pointed = self._pointed == (serving.slot if serving is not None else None)
        waits = [asyncio.create_task(self._turn.wait())]
        if serving is not None:
            waits.append(asyncio.create_task(serving.ended.wait()))
        try:
            patience = None if is_pointed else POINT_AGAIN_S
            await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._notice_end()
        if self.serving is not serving and self._troubles > 1:
            await self._unless_turned(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**self._troubles))

    async def _unless_turned(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn.wait()

    async def _point(self, slot: Path | None) -> bool:
        """Make `current` name `slot`; False if the disk does not take it."""
        if self._pointed == slot:
            return True
        try:
            await self._hooks.point(slot)
        except OSError as error:
            log.trouble("'current' cannot be moved", deployment=self._served.deployment, reason=error)
            return False
        self._pointed = slot
        return True

    # -- the serving worker --------------------------------------------------------------------------------------

    def _take_over(self, worker: WorkerProcess) -> None:
        self._notice_end()
        old, self.serving = self.serving, worker
        if old is not None:
            self._let_go(old)
        self._spawn(self._watch(worker))
        self._note_change()
        self._tell_started(worker)

    def _tell_started(self, worker: WorkerProcess) -> None:
        assert worker.ready is not None
        limit = worker.ready.latency_limit_ms
        self._hooks.tell(Started(worker.generation, time.monotonic(), limit))

    async def _watch(self, worker: WorkerProcess) -> None:
        """Tell while the serving worker lives well, and when it ended by itself."""
        while self.serving is worker and not worker.ended.is_set():
            try:
                async with asyncio.timeout(STEADY_S):
                    await worker.ended.wait()
            except TimeoutError:
                if self.serving is worker:
                    self._troubles = 0
                    self._hooks.tell(Steady(worker.generation))
        self._notice_end()

    def _notice_end(self) -> None:
        """If the serving worker ended, it serves no more, and that is told once."""
        worker = self.serving
        if worker is None or not worker.ended.is_set():
            return
        self.serving = None
        self._troubles += 1
        self._note_change()
        log.trouble("worker died", deployment=self._served.deployment, pid=worker.pid, reason=worker.why)
        assert worker.ready is not None
        self._hooks.died(worker.ready.digest)
        self._hooks.tell(Died(worker.generation, worker.why))

    def _count(self, worker: WorkerProcess, window: DeploymentWindow) -> None:
        self._hooks.counted(worker.generation, window)

    def _retire(self) -> WorkerProcess | None:
        """Let the serving worker take nothing new, and drain it."""
        self._notice_end()
        old, self.serving = self.serving, None
        self._note_change()
        if old is not None:
            self._let_go(old)
        return old

    async def _retired(self) -> None:
        if (old := self._retire()) is not None:
            await old.ended.wait()

    def _let_go(self, worker: WorkerProcess) -> None:
        self._leaving.add(worker)
        self._spawn(self._drain(worker))

    async def _drain(self, worker: WorkerProcess) -> None:
        await worker.drain()
        self._leaving.discard(worker)

    def _note_change(self) -> None:
        if self.serving is not None or self._wanted is None:
            self._changed.set()
        else:
            self._changed.clear()
        self._hooks.changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
