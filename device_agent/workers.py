"""Worker processes of one deployment: starting, watching, swapping and draining them.

Always true
 1. At most one worker takes new connections; a swap moves that role in one step of the event loop.
 2. The old worker is drained only after the new one proved itself, unless two do not fit (`overlap` false).
 3. A worker that dies is started again with back-off; after `MAX_START_FAILURES` failures in a row, or
    `MAX_DEATHS` deaths within `DEATHS_WINDOW_S`, the owner is told and decides.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent import log
from device_agent.channel import Channel, Counted, Drain, Failed, Message, Ready, Snapshot
from edgekit.errors import EngineError
from edgekit.wire.messages import DeploymentWindow

START_TIMEOUT_S = 180.0
DRAIN_TIMEOUT_S = 40.0
MAX_START_FAILURES = 3
MAX_DEATHS = 5
DEATHS_WINDOW_S = 60.0
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 30.0


class WorkerStartError(EngineError):
    """A worker ended or failed before it could serve."""

    code = "worker-start"


@dataclass(frozen=True)
class Hooks:
    """What workers tell their owner."""

    counted: Callable[[DeploymentWindow], None]
    died: Callable[[str], None]
    gave_up: Callable[[str], None]
    given_back: Callable[[int, bytes], None]
    changed: Callable[[], None]


class WorkerProcess:
    """One process and its channel."""

    def __init__(self, deployment: str, deployments: tuple[str, ...], slot: Path, cache: Path) -> None:
        self.slot = slot
        self._words = [
            "--deployment", deployment, "--deployments", ",".join(deployments), "--slot", str(slot),
            "--cache", str(cache),
        ]  # fmt: skip
        self.ready: Ready | None = None
        self._reason = ""
        self._process: asyncio.subprocess.Process
        self._channel: Channel
        self._first = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self, hooks: Hooks, *, log_json: bool) -> Ready:
        """Run it until it says that it serves. Raises: WorkerStartError, with the process gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [*self._words, "--channel", str(theirs.fileno()), *(["--log-json"] if log_json else [])]
        self._channel = Channel(
            ours, lambda message: self._told(message, hooks), hooks.given_back, self._lost
        )
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "device_agent.worker", *words,
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            theirs.close()
        self._channel.start()
        try:
            await asyncio.wait_for(self._first.wait(), START_TIMEOUT_S)
        except BaseException:
            await self.kill()
            raise
        if self.ready is None:
            await self.kill()
            raise WorkerStartError(
                self._reason or f"the worker ended with exit code {self._process.returncode}"
            )
        return self.ready

    def _told(self, message: Message, hooks: Hooks) -> None:
        if isinstance(message, Ready):
            self.ready = message
            self._first.set()
        elif isinstance(message, Failed):
            self._reason = message.reason
        elif isinstance(message, Counted):
            hooks.counted(message.window)

    def _lost(self) -> None:
        self._first.set()
        self.ended.set()

    def ask_counts(self) -> None:
        self._channel.send(Snapshot())

    def give(self, descriptor: int, prefix: bytes) -> None:
        self._channel.send_connection(descriptor, prefix)

    async def drain(self) -> None:
        """Let it finish, hand back and end; killed if it takes too long."""
        self._channel.send(Drain())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), DRAIN_TIMEOUT_S)
        await self.kill()

    async def kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        self._channel.close()
        self.ended.set()


class Workers:
    """The serving worker of one deployment, and those that come and go around it."""

    def __init__(
        self,
        deployment: str,
        deployments: tuple[str, ...],
        cache: Path,
        hooks: Hooks,
        *,
        overlap: bool,
        log_json: bool,
    ) -> None:
        self._deployment = deployment
        self._deployments = deployments
        self._cache = cache
        self._hooks = hooks
        self._overlap = overlap
        self._log_json = log_json
        self.serving: WorkerProcess | None = None
        self.is_expected = False
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)

    # -- for the front -------------------------------------------------------------------------------------------

    async def wait_change(self, patience_s: float) -> None:
        """Until a worker serves or none is expected any more, at most `patience_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), patience_s)

    # -- for the updater -----------------------------------------------------------------------------------------

    async def switch(self, slot: Path, before_takeover: Callable[[], None]) -> Ready:
        """Serve `slot`; on failure what served before goes on, or, without overlap, nothing does.

        `before_takeover` runs once the new worker proved itself. Raises: WorkerStartError after the slot failed to
        start `MAX_START_FAILURES` times.
        """
        async with self._lock:
            await self._stop_watching()
            old = self.serving
            if old is not None and not self._overlap:
                self._take_over(None)
                await old.drain()
                old = None
            try:
                worker = await self._start_patiently(slot)
            except BaseException:
                if old is not None:
                    self._watch_over(old)
                raise
            before_takeover()
            self._take_over(worker)
            self._watch_over(worker)
            if old is not None:
                self._spawn(old.drain())
            assert worker.ready is not None
            return worker.ready

    async def ensure(self, slot: Path) -> None:
        """Serve `slot` as `switch` does; if it does not start, keep trying in the background.

        Raises: WorkerStartError while that goes on.
        """
        serving = self.serving
        if serving is not None and serving.slot == slot and not serving.ended.is_set():
            return
        self.is_expected = True
        if serving is None:
            self._changed.clear()
        try:
            await self.switch(slot, lambda: None)
        except WorkerStartError:
            async with self._lock:
                await self._stop_watching()
                old = self.serving
                self._take_over(None)
                if old is not None:
                    self._spawn(old.drain())
                self._watch = asyncio.create_task(self._restart(slot, MAX_START_FAILURES))
            raise

    async def stop(self) -> None:
        """Serve nothing."""
        async with self._lock:
            await self._stop_watching()
            old = self.serving
            self.is_expected = False
            self._take_over(None)
            self._changed.set()
            if old is not None:
                await old.drain()

    async def close(self) -> None:
        await self.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_TIMEOUT_S)

    def ask_counts(self) -> None:
        if self.serving is not None:
            self.serving.ask_counts()

    # -- inside --------------------------------------------------------------------------------------------------

    async def _start_patiently(self, slot: Path) -> WorkerProcess:
        for attempt in range(1, MAX_START_FAILURES + 1):
            try:
                return await self._start_once(slot)
            except (WorkerStartError, TimeoutError) as error:
                log.trouble(
                    "worker did not start", deployment=self._deployment, attempt=attempt, reason=error
                )
                if attempt == MAX_START_FAILURES:
                    raise WorkerStartError(f"did not start {attempt} times in a row: {error}") from error
                await asyncio.sleep(FIRST_BACKOFF_S * 2**attempt)
        raise AssertionError

    async def _start_once(self, slot: Path) -> WorkerProcess:
        worker = WorkerProcess(self._deployment, self._deployments, slot, self._cache)
        began = time.monotonic()
        ready = await worker.start(self._hooks, log_json=self._log_json)
        log.event(
            "worker ready", deployment=self._deployment, pid=worker.pid, model=f"{ready.model}@{ready.version}",
            digest=ready.digest[:12], took_s=round(time.monotonic() - began, 2),
        )  # fmt: skip
        return worker

    def _take_over(self, worker: WorkerProcess | None) -> None:
        self.serving = worker
        if worker is not None:
            self.is_expected = True
            self._changed.set()
        else:
            self._changed.clear()
        self._hooks.changed()

    def _watch_over(self, worker: WorkerProcess) -> None:
        self._watch = asyncio.create_task(self._replace_when_dead(worker))

    async def _replace_when_dead(self, worker: WorkerProcess) -> None:
        await worker.ended.wait()
        self._take_over(None)
        await worker.kill()
        self._deaths.append(time.monotonic())
        log.trouble("worker died", deployment=self._deployment, pid=worker.pid)
        assert worker.ready is not None
        self._hooks.died(worker.ready.digest)
        is_loop = len(self._deaths) == MAX_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_WINDOW_S
        if is_loop:
            self._hooks.gave_up(f"the worker died {MAX_DEATHS} times within {DEATHS_WINDOW_S:.0f} s")
        await self._restart(worker.slot, MAX_DEATHS if is_loop else 0)

    async def _restart(self, slot: Path, failures: int) -> None:
        """Start `slot` until it runs; back-off doubles with each failure."""
        while True:
            if failures:
                await asyncio.sleep(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**failures))
            try:
                worker = await self._start_once(slot)
                break
            except (WorkerStartError, TimeoutError) as error:
                failures += 1
                log.trouble(
                    "worker did not start", deployment=self._deployment, attempt=failures, reason=error
                )
                if failures == MAX_START_FAILURES:
                    self._hooks.gave_up(f"did not start {failures} times in a row: {error}")
        self._take_over(worker)
        self._watch_over(worker)

    async def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
