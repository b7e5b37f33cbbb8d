"""The supervisor's part: brings an ordered shadow here, starts its process, and lets the serving worker feed it.

It is level-triggered, like what brings the served bundle: one loop compares what is ordered with what there is.

Always true
 1. It touches nothing of the served bundle: it has a folder of its own, a process of its own, and a socket that the worker
    never waits for.
 2. A shadow runs only after its self-test passed here since the agent started. What an order does not name any more is ended
    and deleted.
 3. A bundle that serves already is no shadow: there would be nothing to compare.
 4. Nothing that goes wrong with a shadow is more than a word in the device's description.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from device_agent import confined, durable, health, log, memory
from device_agent.account import Account
from device_agent.blocking import run_blocking
from device_agent.channel import Channel, Failed, Message, Ready, Shadowed
from device_agent.folder import DeploymentFolder
from device_agent.process import Served
from device_agent.storage import Storage
from device_agent.update import selftest, slots
from device_agent.update.events import Cause, Fetch, SlotName, SlotRef, Stage
from device_agent.update.fetch import Source
from device_agent.update.jobs import JobError, Jobs, Memory
from device_agent.workers import Workers
from edgekit.wire.messages import DeploymentWindow, OrderedShadow, ShadowReport, ShadowState, ShadowWindow

SLOT: SlotName = "A"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 300.0
# Ends by itself in a row that are the bundle's doing.
MAX_ENDS = 3
STOP_S = 5.0


@dataclass(frozen=True)
class Means:
    """What shadows are made of, besides their deployment's folder."""

    source: Source
    storage: Storage
    overlap: bool
    counted: Callable[[DeploymentWindow], None]
    changed: Callable[[], None]


class EndedError(Exception):
    """The shadow's process ended by itself."""


class ShadowProcess:
    """The running process, and the end of the socket that workers feed it by."""

    def __init__(self, counted: Callable[[ShadowWindow], None]) -> None:
        self._counted = counted
        self._first = asyncio.Event()
        self._process: asyncio.subprocess.Process
        self._channel: Channel
        self.feed: socket.socket
        self.ready: Ready | None = None
        self.refusal: Failed | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self, folder: DeploymentFolder, served: Served, share: float) -> None:
        """Raises: OSError."""
        slot = folder.slot(SLOT)
        limit = await run_blocking(lambda: memory.limit(slot))
        bounds = confined.Bounds(
            hidden=(served.state, *served.private),
            readable=(slot,),
            writable=(folder.cache,),
            memory_bytes=memory.wall(limit),
            account=served.account,
        )
        options = await run_blocking(lambda: confined.options(bounds))
        options["env"] = {**options["env"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.feed, fed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *confined.command(
                    "device_agent.shadow.process", bounds,
                    "--parent", str(os.getpid()), "--control", str(theirs.fileno()), "--feed", str(fed.fileno()),
                    "--share", repr(share), "--slot", str(slot), "--cache", str(folder.cache),
                    *(["--log-json"] if served.log_json else []),
                ),
                pass_fds=[theirs.fileno(), fed.fileno()], stdout=asyncio.subprocess.DEVNULL, **options,
            )  # fmt: skip
        except BaseException:
            ours.close()
            self.feed.close()
            raise
        finally:
            theirs.close()
            fed.close()
        self._channel = Channel(ours, self._told, {}, self._first.set)
        self._channel.start()

    def _told(self, message: Message) -> None:
        if isinstance(message, Shadowed):
            self._counted(message.window)
        elif isinstance(message, Ready):
            self.ready = message
            self._first.set()
        elif isinstance(message, Failed):
            self.refusal = message

    async def loaded(self) -> bool:
        """Once it runs, or has ended."""
        await self._first.wait()
        return self.ready is not None

    async def ended(self) -> int:
        return await self._process.wait()

    async def stop(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
        self._channel.read_rest()
        self._channel.close()
        self.feed.close()


class Shadow:
    """The shadow of one deployment, if an order names one."""

    def __init__(self, folder: DeploymentFolder, served: Served, workers: Workers, means: Means) -> None:
        self._folder = folder
        self._served = served
        self._workers = workers
        self._means = means
        self._account: Account | None = served.account
        self._jobs = Jobs(folder, means.source, self._memory, served.account)
        self._wanted: OrderedShadow | None = None
        self._turn = asyncio.Event()
        self._report: ShadowReport | None = None
        self._process: ShadowProcess | None = None
        self._share = 0.0
        # Which worker feeds it, by its pid.
        self._fed_by: int | None = None
        self._number = 0

    @property
    def report(self) -> ShadowReport | None:
        """None where no order names a shadow."""
        return self._report

    @property
    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def want(self, wanted: OrderedShadow | None) -> None:
        if wanted != self._wanted or wanted is None:
            self._wanted = wanted
            self._turn.set()

    def tick(self) -> None:
        """One turn of the supervisor's clock: a worker that serves and does not feed it yet gets to."""
        process, serving = self._process, self._workers.serving
        if process is None or process.ready is None or serving is None or serving.pid == self._fed_by:
            return
        self._fed_by = serving.pid
        serving.let_feed(os.dup(process.feed.fileno()), self._share)

    async def run(self) -> None:
        """Follow what is wanted, for ever."""
        troubles = 0
        try:
            while True:
                self._turn.clear()
                wanted = self._wanted
                is_blamed = False
                try:
                    await self._until_turned(self._bring(wanted))
                    troubles = 0
                except (JobError, EndedError, OSError) as error:
                    troubles += 1
                    is_blamed = isinstance(error, EndedError) and troubles >= MAX_ENDS
                    is_blamed |= isinstance(error, JobError) and error.cause in (Cause.BUNDLE, Cause.ORDER)
                    self._tell(wanted, "refused" if is_blamed else "waiting", str(error))
                except Exception as error:  # noqa: BLE001  # a shadow's trouble ends nothing else
                    troubles += 1
                    log.trouble("shadow: unexpected failure", reason=repr(error))
                    self._tell(wanted, "waiting", repr(error))
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(troubles, 16)) if troubles else 0.0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if is_blamed else pause):
                        await self._turn.wait()
        finally:
            await self._stop()

    async def _until_turned(self, work: Coroutine[Any, Any, None]) -> None:
        """The work, until it ends or something else is wanted."""
        task, turn = asyncio.create_task(work), asyncio.create_task(self._turn.wait())
        try:
            await asyncio.wait((task, turn), return_when=asyncio.FIRST_COMPLETED)
        finally:
            turn.cancel()
            task.cancel()
            await asyncio.wait((task,))
            await self._stop()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _bring(self, wanted: OrderedShadow | None) -> None:
        if wanted is None:
            await self._remove()
            self._tell(None, "waiting", "")
            await self._turn.wait()
            return
        if not self._means.overlap:
            raise JobError("this profile runs one model at a time", Cause.ORDER)
        while (serving := self._serving_digest()) in (None, wanted.bundle.sha256):
            # Looked at again: after a rollback something else may serve.
            told: tuple[ShadowState, str] = (
                ("served", "it is what serves") if serving else ("waiting", "nothing serves")
            )
            self._tell(wanted, *told)
            await asyncio.sleep(FIRST_PAUSE_S)
        await self._prepare(wanted)
        await self._compare(wanted)

    async def _prepare(self, wanted: OrderedShadow) -> None:
        """Fetched, verified, extracted, and tested on its golden inputs. Raises: JobError, OSError."""
        ref = SlotRef(SLOT, wanted.bundle)
        held = await run_blocking(lambda: slots.held(self._folder).get(SLOT))
        if held is None or held.sha256 != wanted.bundle.sha256:
            self._tell(wanted, "fetch", "")
            for job in (Fetch(self._next(), 0.0, wanted.bundle), Stage(self._next(), 0.0, ref)):
                await self._jobs.do(job)
            await run_blocking(lambda: durable.remove(self._folder.fetch))
        self._tell(wanted, "selftest", "")
        await run_blocking(lambda: durable.make_folder(self._folder.cache, sync=False))
        verdict = await selftest.run(
            self._folder, SLOT, None, account=self._account, outputs_only=True, is_patient=True
        )
        if not verdict.passed:
            if verdict.cause is Cause.LOST:
                await run_blocking(lambda: durable.remove(self._folder.slot(SLOT)))
            raise JobError(f"self-test: {verdict.reason}", verdict.cause)

    async def _compare(self, wanted: OrderedShadow) -> None:
        """Run the process until it ends, or the bundle serves. Raises: EndedError, JobError, OSError."""
        process = ShadowProcess(self._count)
        await process.start(self._folder, self._served, wanted.share)
        self._process, self._share, self._fed_by = process, wanted.share, None
        if not await process.loaded():
            refusal = process.refusal
            if refusal is not None:
                raise JobError(refusal.reason, refusal.cause)
            raise EndedError("its process ended before it could compare")
        self._tell(wanted, "running", "")
        log.event("shadow compares", deployment=self._served.deployment, digest=wanted.bundle.sha256[:12])
        limit = await run_blocking(lambda: memory.limit(self._folder.slot(SLOT)))
        end = asyncio.create_task(process.ended())
        try:
            while not end.done():
                await asyncio.wait((end,), timeout=1.0)
                if self._serving_digest() == wanted.bundle.sha256:
                    return
                if memory.resident(process.pid) > limit:
                    raise EndedError(f"it needed more than {limit >> 20} MiB of memory")
        finally:
            end.cancel()
        raise EndedError(f"its process ended with {end.result()}")

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.stop()

    async def _remove(self) -> None:
        def work() -> None:
            if self._folder.root.exists():
                durable.remove(self._folder.root)

        await self._means.storage.do(work)

    def _count(self, window: ShadowWindow) -> None:
        """What was compared belongs to the bundle that serves now."""
        window_of = DeploymentWindow(
            deployment=self._served.deployment, digest=self._serving_digest(), shadow=window
        )
        self._means.counted(window_of)

    def _serving_digest(self) -> str | None:
        serving = self._workers.serving
        return serving.ready.digest if serving is not None and serving.ready is not None else None

    def _tell(self, wanted: OrderedShadow | None, state: ShadowState, reason: str) -> None:
        report = None if wanted is None else ShadowReport(wanted.bundle.sha256, state, reason[:2000])
        if report != self._report:
            self._report = report
            self._means.changed()

    def _memory(self) -> Memory:
        """A shadow comes beside what runs, never in its place."""
        serving = self._workers.serving
        running = health.tree_memory_mb([serving.pid]) if serving is not None else None
        return Memory(health.free_memory_mb(), running or 0.0, overlap=True)

    def _next(self) -> int:
        self._number += 1
        return self._number
