"""One worker process: its start, its channel, whether it still answers, and its end.

Always true
 1. A start ends with a worker that serves, or with `StartError` and no process.
 2. `ended` is set once the process is gone and everything that it had said was heard.
 3. A connection that the process was given and had not taken when it ended comes back.
 4. Of a process that does not answer any more, clients with a request under way get a 503, and all others go on
    with the next.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from device_agent import confined, log, memory
from device_agent.account import Account
from device_agent.agentfile import GuardTable
from device_agent.blocking import run_blocking
from device_agent.channel import (
    CONNECTION,
    FEED,
    PASSED,
    SAMPLE,
    Channel,
    Counted,
    Drain,
    Failed,
    Message,
    PassedOver,
    Ping,
    Pong,
    Ready,
    Sampling,
    Snapshot,
    Taker,
    untaken,
)
from device_agent.owed import IDLE, Owed, make_shared, taken_over
from device_agent.passing import Passer
from device_agent.serve.http import error_response
from device_agent.update.events import Cause
from edgekit.errors import EngineError
from edgekit.manifest import Sha256
from edgekit.wire.messages import DeploymentWindow

START_TIMEOUT_S = 180.0
DRAIN_TIMEOUT_S = 40.0
# Turns of the supervisor's own clock (0.5 s each) that a ping may stay unanswered. Turns, not seconds: a device that
# was suspended, or a supervisor that was stopped itself, must not find all its workers late.
PING_TURNS = 20
# And from here on the device does not call itself ready any more.
LATE_TURNS = 4
# What a client gets to read a response on a connection that ends with it.
LINGER_S = 1.0
_NOTHING = Sampling()
# The end of a process that says nothing of the bundle it ran: somebody ended it.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StartError(EngineError):
    """A worker ended or failed before it could serve. `cause` is whose fault that is."""

    code = "worker-start"

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True)
class Place:
    """What should be served: a slot, the digest it must hold, and which placement this is."""

    slot: Path
    digest: Sha256
    generation: int
    is_trial: bool


@dataclass(frozen=True)
class Served:
    """How to start workers of one deployment, and whom they give connections, counts and samples to.

    Workers may not look into `state` but for their slot and `cache`, nor into what else is `private`. They run as `account`,
    or as the agent's own user. `sampling` is what they may keep of their inputs: the same object until that changes.
    """

    deployment: str
    deployments: tuple[str, ...]
    state: Path
    private: tuple[Path, ...]
    cache: Path
    log_json: bool
    given_back: Callable[[int, bytes], None]
    sampling: Callable[[], Sampling] = Sampling
    sampled: Callable[[int], None] = os.close
    passed_over: Callable[[int], None] = lambda _inputs: None
    account: Account | None = None
    guard: GuardTable = field(default_factory=GuardTable)
    passer: Passer | None = None


class WorkerProcess:
    """`generation` is the placement that it serves now; `counted` gets what it counted."""

    def __init__(
        self, served: Served, place: Place, counted: Callable[["WorkerProcess", DeploymentWindow], None]
    ) -> None:
        self.slot = place.slot
        self.generation = place.generation
        self.ready: Ready | None = None
        self.ended = asyncio.Event()
        self._served = served
        self._place = place
        self._counted = counted
        self._refusal: Failed | None = None
        self._why = ""
        self._process: asyncio.subprocess.Process
        self._channel: Channel
        self._theirs: socket.socket
        self._memory_limit: int
        self._owed: Owed
        self._first = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._unanswered: int | None = None
        self._may_keep = _NOTHING

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_late(self) -> bool:
        """Whether it owes an answer to a ping for longer than a busy worker would."""
        return self._unanswered is not None and self._unanswered >= LATE_TURNS

    @property
    def why(self) -> str:
        """Why it ended."""
        return self._why or _told_end(self._process.returncode)

    # -- start ---------------------------------------------------------------------------------------------------

    async def start(self) -> Ready:
        """Run it until it says that it serves. Raises: StartError, with the process gone."""
        began = time.monotonic()
        try:
            await self._make_process()
        except (OSError, RuntimeError) as error:
            # No memory, no process or thread to be had, no descriptors.
            raise StartError(f"its process cannot be made ({error})", Cause.PASSING) from error
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._first.wait()
        except TimeoutError as error:
            await self.kill()
            told = f"it was not ready within {START_TIMEOUT_S:.0f} s"
            raise StartError(told, Cause.DOUBT) from error
        except BaseException:
            await self.kill()
            raise
        if self.ready is None or self.ready.digest != self._place.digest:
            await self.kill()
            raise self._start_error()
        log.event(
            "worker ready", deployment=self._served.deployment, pid=self.pid,
            model=f"{self.ready.model}@{self.ready.version}", digest=self.ready.digest[:12],
            took_s=round(time.monotonic() - began, 2),
        )  # fmt: skip
        return self.ready

    async def _make_process(self) -> None:
        self._memory_limit = await run_blocking(lambda: memory.limit(self.slot) + memory.SERVING)
        options = await run_blocking(lambda: confined.options(self._bounds()))
        shared = make_shared()
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._owed = Owed(shared)
            takers: dict[bytes, Taker] = {
                CONNECTION: self._served.given_back,
                SAMPLE: lambda descriptor, _about: self._served.sampled(descriptor),
            }
            if (passer := self._served.passer) is not None:
                takers[PASSED] = lambda descriptor, about: passer.take(descriptor, about, self._answer)
            self._channel = Channel(ours, self._told, takers, lambda: None)
            self._process = await asyncio.create_subprocess_exec(
                *confined.command("device_agent.worker", self._bounds(), *self._words(shared)),
                pass_fds=[self._theirs.fileno(), shared], stdout=asyncio.subprocess.DEVNULL, **options,
            )  # fmt: skip
        except BaseException:
            ours.close()
            self._theirs.close()
            raise
        finally:
            os.close(shared)
        self._channel.start()
        self._watch = asyncio.create_task(self._see_end())

    def _bounds(self) -> confined.Bounds:
        served = self._served
        return confined.Bounds(
            hidden=(served.state, *served.private),
            readable=(self.slot,),
            writable=(served.cache,),
            memory_bytes=memory.wall(self._memory_limit),
            account=served.account,
        )

    def _words(self, shared: int) -> list[str]:
        served = self._served
        return [
            "--parent", str(os.getpid()), "--channel", str(self._theirs.fileno()), "--owed", str(shared),
            "--deployment", served.deployment, "--deployments", ",".join(served.deployments),
            "--slot", str(self.slot), "--cache", str(served.cache), *(["--log-json"] if served.log_json else []),
            *self._guarding(),
        ]  # fmt: skip

    def _guarding(self) -> list[str]:
        """What is done about unfamiliar inputs, where this device says so."""
        guard = self._served.guard
        words = ["--guard-answer", guard.answer] if guard.answer else []
        return [*words, "--guard-timeout", str(guard.timeout_s)] if guard.url else words

    def _start_error(self) -> StartError:
        if self.ready is not None:
            return StartError(f"its slot holds {self.ready.digest[:12]}… instead", Cause.LOST)
        if self._refusal is not None:
            return StartError(self._refusal.reason, self._refusal.cause)
        code = self._process.returncode
        crashed = code is not None and code < 0 and -code not in _FROM_OUTSIDE
        return StartError(f"it {_told_end(code)}", Cause.BUNDLE if crashed else Cause.PASSING)

    # -- while it lives ------------------------------------------------------------------------------------------

    def _told(self, message: Message) -> None:
        if isinstance(message, Pong):
            self._unanswered = None
        elif isinstance(message, Ready):
            self.ready = message
            self._first.set()
        elif isinstance(message, Failed):
            self._refusal = message
        elif isinstance(message, Counted):
            self._counted(self, message.window)
        elif isinstance(message, PassedOver):
            self._served.passed_over(message.inputs)

    def tick(self) -> None:
        """One turn of the supervisor's clock: ask for counts, and whether it answers; end it if it does not, or if it
        needs more memory than it may.
        """
        if memory.resident(self.pid) > self._memory_limit:
            self._replace(f"it needed more than {self._memory_limit >> 20} MiB of memory")
            return
        self._tell_sampling()
        if self._unanswered is None:
            self._unanswered = 0
            self._channel.send(Ping())
            self._channel.send(Snapshot())
            return
        self._unanswered += 1
        if self._unanswered == PING_TURNS:
            self._replace("it did not answer any more")

    def _tell_sampling(self) -> None:
        if (wanted := self._served.sampling()) is not self._may_keep and wanted != self._may_keep:
            self._channel.send(wanted)
        self._may_keep = wanted

    def _replace(self, why: str) -> None:
        """End it, and take its clients over."""
        if self._process.returncode is not None:
            return
        self._why = why
        waiting = taken_over(self.pid, self._owed, self._served.account)
        log.trouble(
            "worker is ended", deployment=self._served.deployment, pid=self.pid, why=why, clients=len(waiting)
        )
        self._end_process()
        for client, state in waiting:
            if state == IDLE:
                self._served.given_back(client.detach(), b"")
            else:
                _apologise(client)

    def give(self, descriptor: int, prefix: bytes) -> None:
        self._channel.pass_on(CONNECTION, descriptor, prefix)

    def _answer(self, descriptor: int, about: bytes) -> None:
        self._channel.pass_on(PASSED, descriptor, about)

    def let_feed(self, descriptor: int, share: float) -> None:
        """Copies of what it serves go to a shadow from now on, by this socket, which is closed here."""
        self._channel.pass_on(FEED, descriptor, repr(share).encode())

    # -- end -----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let it finish, hand back and end; killed if it takes too long."""
        self._channel.send(Drain())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self.ended.wait()
        await self.kill()

    async def kill(self) -> None:
        self._end_process()
        await self.ended.wait()

    def _end_process(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _see_end(self) -> None:
        try:
            await self._process.wait()
            self._channel.read_rest()
            self._channel.close()
            # This end was kept open so that what the process never took is not lost with it.
            for descriptor, prefix in untaken(self._theirs):
                self._served.given_back(descriptor, prefix)
        finally:
            self._theirs.close()
            self._owed.close()
            self._first.set()
            self.ended.set()


def _apologise(client: socket.socket) -> None:
    """Tell a client that its request was lost, and end the connection once it could read that."""
    response = error_response(503, "the model's process did not answer; try again", retry_after="1")
    client.setblocking(False)
    with contextlib.suppress(OSError):
        client.send(response.encode(keep_alive=False))
        client.shutdown(socket.SHUT_WR)
    asyncio.get_running_loop().call_later(LINGER_S, client.close)


def _told_end(code: int | None) -> str:
    if code is None:
        return "is still running"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
