"""The supervisor's side of sources: their processes, started and started again.

Always true
 1. Each source of `agent.toml` has one process, or waits for its next start; what ends one ends no other.
 2. A source that keeps ending is started again with back-off, for ever; while it does, that is a condition. One that says
    that there is nothing more to read is left alone.
 3. A process reaches what `access` says, and the deployments only as a client.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from device_agent import confined, durable, log
from device_agent.account import Account
from device_agent.agentfile import AgentFile, AnySink, AnySource, kind_of
from device_agent.blocking import run_blocking
from device_agent.channel import CONNECTION, Channel, Dial, Drain, Message, SourceTold
from device_agent.conditions import Conditions
from device_agent.config import Settings
from device_agent.folder import StateFolder
from device_agent.sources import access, standing
from device_agent.sources.process import FAREWELL_S, FINISH_S, Assignment
from device_agent.sources.standing import SourceStatus
from device_agent.storage import Storage

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
# A process that lives for this long is well.
STEADY_S = 10.0
# Where there are two users, both may write one file of answers: they share the agent's group.
UMASK = 0o007
# And one that never failed is called running after this.
STARTED_S = 1.0
# OpenCV, numpy and the threads of both, with frames under way.
MEMORY_BYTES = 2 << 30
END_S = FAREWELL_S + FINISH_S + 2.0


@dataclass(frozen=True)
class Ground:
    """What sources stand on. `connect` gives the front a connection; `changed` is called when one's state is another.

    `account` is the workers' user; None for the agent's own.
    """

    file: AgentFile
    state: StateFolder
    device: str
    private: tuple[Path, ...]
    log_json: bool
    storage: Storage
    conditions: Conditions
    connect: Callable[[int], None]
    changed: Callable[[], None]
    account: Account | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        device: str,
        storage: Storage,
        conditions: Conditions,
        *,
        connect: Callable[[int], None],
        changed: Callable[[], None],
    ) -> "Ground":
        return cls(
            settings.file, settings.state, device, settings.private, settings.log_json, storage, conditions,
            connect, changed, settings.account,
        )  # fmt: skip


class SourceKeeper:
    """All sources of a device. Everything here happens in the event loop's thread."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._kept = [_Kept(ground, spec) for spec in ground.file.sources]

    async def run(self) -> None:
        """Keep all sources, for ever."""
        await asyncio.gather(*(one.run() for one in self._kept))
        await asyncio.Event().wait()

    def tick(self) -> None:
        """One turn of the supervisor's clock."""
        found = standing.conditions_of(self.told())
        for code in standing.CODES:
            if code in found:
                self._ground.conditions.set(code, found[code])
            else:
                self._ground.conditions.clear(code)

    def told(self) -> tuple[SourceStatus, ...]:
        return tuple(one.status() for one in self._kept)

    @property
    def pids(self) -> list[int]:
        return [one.process.pid for one in self._kept if one.process is not None]

    async def close(self) -> None:
        """Let every source finish what it began; call it when `run` has ended."""
        await asyncio.gather(*(one.process.end() for one in self._kept if one.process is not None))


class _Kept:
    """One source, from process to process."""

    def __init__(self, ground: Ground, spec: AnySource) -> None:
        self._ground = ground
        self._spec = spec
        self._before = SourceTold()
        self._standing = SourceStatus(spec.name, kind_of(spec), spec.deployment)
        self._waits_since: float | None = None
        self.process: SourceProcess | None = None

    def status(self) -> SourceStatus:
        did = self.process.told if self.process is not None else SourceTold(waiting=self._before.waiting)
        if not did.waits:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = time.monotonic()
        waits_s = time.monotonic() - self._waits_since if self._waits_since is not None else 0.0
        return msgspec.structs.replace(
            self._standing, did=standing.total(self._before, did), waits_s=round(waits_s, 1)
        )

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            told, why = await self._one()
            self._before = standing.total(self._before, told)
            if told.is_over and not told.error:
                log.event("a source has nothing more to read", source=self._spec.name)
                self._now(state="over", why="")
                return
            if time.monotonic() - began > STEADY_S:
                pause = FIRST_PAUSE_S
            self._now(state="failing", why=told.error or why)
            log.trouble(
                "a source ended; it is started again", source=self._spec.name, reason=told.error or why
            )
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, no secret
            pause = min(LONGEST_PAUSE_S, pause * 2)

    async def _one(self) -> tuple[SourceTold, str]:
        """One process from start to end; what it did, and how it ended."""
        process = SourceProcess(self._ground, self._spec, self._ground.file.sinks_of(self._spec))
        try:
            await process.start()
        except OSError as error:
            return SourceTold(), f"its process cannot be made ({error})"
        self.process = process
        self._now(starts=self._standing.starts + 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STEADY_S if self._standing.state == "failing" else STARTED_S):
                await process.ended.wait()
        if not process.ended.is_set():
            self._now(state="running", why="")
        # Where the supervisor ends, that ends here, and `close` sees to the process.
        await process.ended.wait()
        self.process = None
        return process.told, process.how

    def _now(self, **changed: object) -> None:
        self._standing = msgspec.structs.replace(self._standing, **changed)
        self._ground.changed()


class SourceProcess:
    """One process; `told` is the newest that it said."""

    def __init__(self, ground: Ground, spec: AnySource, sinks: tuple[AnySink, ...]) -> None:
        self._ground = ground
        self._spec = spec
        self._sinks = sinks
        self.told = SourceTold()
        self.ended = asyncio.Event()
        self._process: asyncio.subprocess.Process
        self._channel: Channel
        self._watch: asyncio.Task[None]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def how(self) -> str:
        """How it ended."""
        code = self._process.returncode
        return (
            f"its process was killed by signal {-code}"
            if code is not None and code < 0
            else f"exit code {code}"
        )

    async def start(self) -> None:
        """Raises: OSError."""
        ground, own = self._ground, self._ground.state.source(self._spec.name)
        await ground.storage.do(lambda: durable.make_folder(own))
        may = access.needed(self._spec, self._sinks, own)
        bounds = confined.Bounds(
            hidden=(ground.state.root, *ground.private), readable=may.readable, writable=may.writable,
            memory_bytes=MEMORY_BYTES, ports=may.ports,
        )  # fmt: skip
        options = await run_blocking(lambda: self._options(own))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            words = ("--parent", str(os.getpid()), "--channel", str(theirs.fileno()))
            self._process = await asyncio.create_subprocess_exec(
                *confined.command("device_agent.sources.process", bounds, *words),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, **options,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, self._heard, {}, lambda: None)
        self._channel.start()
        self._watch = asyncio.create_task(self._see_end())
        # What it is to do may hold a camera's password: not for the list of processes.
        given = Assignment(ground.device, self._spec, self._sinks, str(own), ground.log_json)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(given))
        self._process.stdin.close()

    def _options(self, own: Path) -> dict[str, Any]:
        """Its user, let in to its own folder alone: what else it needs is its group's, or the user's to give. Raises: OSError."""
        ground = self._ground
        options: dict[str, Any] = {"env": confined.environment()}
        if ground.account is None:
            return options
        options["umask"] = UMASK
        if access.is_apart(self._spec):
            ground.account.let_in((ground.state.root,), (), (own,))
            options |= ground.account.options()
        return options

    async def end(self) -> None:
        """Let it finish; killed if it takes too long."""
        self._channel.send(Drain())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self.ended.wait()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.ended.wait()

    def _heard(self, message: Message) -> None:
        if isinstance(message, SourceTold):
            self.told = message
        elif isinstance(message, Dial):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._ground.connect(ours.detach())
            self._channel.pass_on(CONNECTION, theirs.detach())

    async def _see_end(self) -> None:
        try:
            await self._process.wait()
            self._channel.read_rest()
        finally:
            self._channel.close()
            self.ended.set()
