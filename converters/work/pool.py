"""Worker processes that make and run candidates side by side.

Always true
 1. A worker that dies (a converter's crash, the kernel short of memory) costs the order it had, with what killed it as
    the reason; the build goes on with a new worker.
 2. Two orders that share a conversion are never with two workers at once.
 3. Nothing outlives the build: closing kills what still runs, and workers die with the building process.
 4. While `run` is not being iterated, every worker is idle: what is then measured has the machine to itself.

A worker lives as long as the build, since loading a converter takes seconds, and gets orders for the engine that it has
loaded before others. Its side is `converters.work.worker`.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from converters.graph.canonical import Canonical
from converters.keep.artifacts import Cache
from converters.recipes.recipes import Plan
from converters.source.project import Project
from converters.work.findings import Findings
from edgekit import interrupt
from edgekit.errors import ToolFailedError

# Seconds after which a Ctrl-C that no message follows is noticed.
_TICK_S = 0.5
# Characters of a dead worker's last words.
_LAST_WORDS = 200
Tell = Callable[[str], None]


class PoolUnfitError(ToolFailedError):
    """Workers cannot do what this process can; the message says why."""


@dataclass(frozen=True)
class Opening:
    """What a worker opens before its first order. The user's code was admitted in the building process, which told of
    it; `sha256` is of the source as it was opened there.
    """

    project: Project
    allow_code: bool
    cache: Cache
    sha256: str
    calibration: str
    feeds: str
    canonicals: tuple[Canonical, ...]


@dataclass(frozen=True)
class Order:
    """One plan to make, to run on the judged half and on the search half, and to tell its layers' errors of."""

    plan: Plan
    threads: int
    is_judged: bool = False
    is_searched: bool = False
    is_analysed: bool = False


def whole(plan: Plan, threads: int) -> Order:
    """All that every candidate needs; what a float one computes is not searched over."""
    return Order(plan, threads, is_judged=True, is_searched=plan.recipe.precision == "int8")


@dataclass(frozen=True)
class Told:
    """A line of progress; until the next one, it says what a worker is doing."""

    text: str


@dataclass(frozen=True)
class Opened:
    """Whether the worker can take orders; if not, why."""

    objection: str = ""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    words: Path
    engines: set[str] = field(default_factory=set)
    order: Order | None = None
    shared: str = ""
    doing: str = "starting"

    def cause(self) -> str:
        """What ended the process, in words."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            cause = f"signal {-code}, {name}{memory}"
        else:
            cause = f"exit code {code}"
        words = self.words.read_text(errors="replace").strip().splitlines()
        return f"{cause}: {words[-1][-_LAST_WORDS:]}" if words else cause


@dataclass
class WorkerPool:
    """Up to `jobs` workers, started as they are needed, each with a folder of its own under `folder`."""

    opening: Opening
    jobs: int
    folder: Path
    tell: Tell
    _workers: list[_Worker] = field(default_factory=list)
    _started: int = 0

    def run(
        self, orders: Sequence[Order], shared: Callable[[Order], str], known: Findings
    ) -> Iterator[tuple[Order, Findings | ToolFailedError]]:
        """Each order's findings as they come, or what its worker died of. `known` is what need not be found again.

        Raises: PoolUnfitError.
        """
        waiting = list(orders)
        while waiting or any(worker.order for worker in self._workers):
            self._hand_out(waiting, shared, known)
            busy = {worker.connection: worker for worker in self._workers if worker.order}
            for connection in wait(list(busy), _TICK_S):
                assert isinstance(connection, Connection)
                answer = self._heard(busy[connection])
                if answer is not None:
                    yield answer
            interrupt.check()

    def close(self) -> None:
        """End every worker, whatever it is doing."""
        for worker in self._workers:
            with suppress(ProcessLookupError):
                # With what the worker started itself.
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            worker.connection.close()
        self._workers.clear()

    def _hand_out(self, waiting: list[Order], shared: Callable[[Order], str], known: Findings) -> None:
        while waiting:
            worker = next((item for item in self._workers if item.order is None), None)
            if worker is None and len(self._workers) >= self.jobs:
                return
            busy = {item.shared for item in self._workers if item.order}
            free = [order for order in waiting if shared(order) not in busy]
            if not free:
                return
            worker = worker or self._hired()
            order = min(free, key=lambda item: self._strangeness(worker, item))
            waiting.remove(order)
            worker.order, worker.shared = order, shared(order)
            worker.engines.add(order.plan.recipe.engine)
            with suppress(BrokenPipeError, ConnectionResetError):  # heard of as its death
                worker.connection.send((order, known.artifacts_only()))

    def _strangeness(self, worker: _Worker, order: Order) -> int:
        """0 for an engine that the worker has loaded, 1 for one that nobody has, 2 for one that another has."""
        engine = order.plan.recipe.engine
        if engine in worker.engines:
            return 0
        return 1 + any(engine in item.engines for item in self._workers)

    def _hired(self) -> _Worker:
        self._started += 1
        folder = self.folder / f"worker-{self._started}"
        folder.mkdir()
        ours, theirs = socket.socketpair()
        words = folder / "stderr"
        with theirs, words.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "converters.work.worker", str(theirs.fileno()), str(folder)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                # Out of reach of the terminal's Ctrl-C: the building process ends it.
                start_new_session=True,
                # What a killed converter leaves behind goes with the build's folder.
                env={**os.environ, "TMPDIR": str(folder)},
            )
        worker = _Worker(process, Connection(ours.detach()), words)
        self._workers.append(worker)
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(self.opening)
        return worker

    def _heard(self, worker: _Worker) -> tuple[Order, Findings | ToolFailedError] | None:
        """Take one message; an answer ends the worker's order. Raises: PoolUnfitError."""
        order = worker.order
        assert order is not None
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return order, self._buried(worker)
        if isinstance(message, Told):
            worker.doing = message.text
            self.tell(message.text)
            return None
        if isinstance(message, Opened):
            if message.objection:
                raise PoolUnfitError(message.objection)
            worker.doing = f"preparing {order.plan.name}"
            return None
        worker.order = None
        return order, message

    def _buried(self, worker: _Worker) -> ToolFailedError:
        self._workers.remove(worker)
        worker.connection.close()
        cause = worker.cause()
        if worker.doing == "starting":
            raise PoolUnfitError(f"a worker died at its start ({cause})")
        who = "converter" if worker.doing.startswith(("converting", "compiling")) else "worker"
        error = ToolFailedError(f"the {who} died ({cause}) while {worker.doing}")
        self.tell(str(error))
        return error
