"""Worker processes that make and run candidates side by side.

Always true
 1. A worker that dies (a converter's crash, the kernel short of memory) costs the order it had, with what killed it as
    the reason; the build goes on with a new worker.
 2. Two orders that share a conversion are never with two workers at once.
 3. Nothing outlives the build: closing kills what still runs, and workers die with the building process.
 4. An order that is made for longer than its limit is ended with its worker and costs that candidate only. Running a
    candidate over the user's samples takes what it takes, except in a search's trial.
 5. Cheap orders of an engine go first: float before int8. If its float model cannot be made in time, its int8 ones, which start
    from it, are not tried.
 6. An int8 order waits while another worker makes its engine's float model, and goes to that worker alone if it could not: no
    other spends minutes on what is being made, or found that it cannot be.
 7. While `run` is not being iterated, every worker is idle: what is then measured has the machine to itself.

A worker lives as long as the build, since loading a converter takes seconds, and gets orders for the engine that it has
loaded before others. The slowest converter may be loaded ahead, while the building process still reads the source. Its side is `converters.work.worker`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from converters.data.handed import Handed
from converters.graph.canonical import Canonical
from converters.judge.kinds import OutputJudge
from converters.keep.artifacts import Cache
from converters.source.project import Project
from converters.work.findings import Findings
from converters.work.limit import DEFAULT_S, TooLongError, too_long
from converters.work.orders import Order
from converters.work.spent import IDLE, Stopwatch
from edgekit import interrupt
from edgekit.errors import ToolFailedError
from edgekit.rowset import RowSet

# Seconds after which a Ctrl-C that no message follows is noticed.
_TICK_S = 0.5
# Characters of a dead worker's last words.
_LAST_WORDS = 200
# Of an order whose engine another worker has loaded.
_ELSEWHERE = 2
Tell = Callable[[str], None]
# Steps of a worker that its order's limit does not count: the user's samples decide how long they take.
_STARTING = ("starting", "loading", "preparing")
_UNCOUNTED = (*_STARTING, "evaluating", "searching with")


class PoolUnfitError(ToolFailedError):
    """Workers cannot do what this process can; the message says why."""


@dataclass(frozen=True)
class Opening:
    """What a worker opens before its first order. The user's code was admitted in the building process, which told of
    it; `sha256` is of the source as it was opened there. `evaluation` and `spool` have the samples that code made there.
    """

    project: Project
    allow_code: bool
    cache: Cache
    sha256: str
    calibration: str
    feeds: str
    canonicals: tuple[Canonical, ...]
    judges: tuple[OutputJudge, ...]
    sets: tuple[RowSet, ...]
    evaluation: Handed | None = None
    spool: Path | None = None


@dataclass(frozen=True)
class Ahead:
    """Which engine's converter a worker loads before it is told what to open, if any."""

    engine: str


@dataclass(frozen=True)
class Loaded:
    """A worker has loaded what it was to load ahead, `at` by the clock that all processes of the machine share."""

    at: float


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
    watch: Stopwatch
    engines: set[str] = field(default_factory=set)
    order: Order | None = None
    shared: str = ""
    doing: str = "starting"
    is_opened: bool = False
    # Seconds that count against the order's limit, up to `since`.
    spent_s: float = 0.0
    since: float = 0.0

    def sends(self, message: object) -> None:
        """A worker that is dead is heard of as soon as it is listened to."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def takes(self, order: Order, shared: str) -> None:
        self.order, self.shared = order, shared
        self.engines.add(order.plan.recipe.engine)
        self.spent_s, self.since = 0.0, time.monotonic()
        if not self.doing.startswith(("starting", "loading")):
            self.doing = f"preparing {order.plan.name}"
            self._told(self.doing)

    def does(self, what: str) -> None:
        self.spent_s = self.counted_s()
        self.doing, self.since = what, time.monotonic()
        self._told(what)

    def loaded(self, at: float) -> None:
        """It has waited since then, up to its order."""
        self._told(IDLE, at)
        self.doing = "starting"
        self._told(self.doing, max(at, self.since))

    def rests(self) -> None:
        """Its order is done, or it is."""
        self.order = None
        self._told(IDLE)

    def _told(self, what: str, at: float | None = None) -> None:
        self.watch.does(str(self.process.pid), what, at)

    def counted_s(self) -> float:
        """Seconds of the order so far that count against its limit."""
        assert self.order is not None
        uncounted = _STARTING if self.order.is_trial else _UNCOUNTED
        return self.spent_s + (0.0 if self.doing.startswith(uncounted) else time.monotonic() - self.since)

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
    """Up to `jobs` workers, started as they are needed, each with a folder of its own under `folder`. `opening` has to be
    known before the first order.
    """

    jobs: int
    folder: Path
    tell: Tell
    limit_s: float = DEFAULT_S
    spent: Stopwatch = field(default_factory=Stopwatch)
    opening: Opening | None = None
    # Asked while workers are waited for; what it raises ends that.
    check: Callable[[], None] = interrupt.check
    _workers: list[_Worker] = field(default_factory=list)
    _started: int = 0
    # The worker that makes an engine's float model, or was the last to fail at it.
    _float_at: dict[str, "_Worker"] = field(default_factory=dict)
    # Engines whose float model could not be made in time.
    _given_up: dict[str, TooLongError] = field(default_factory=dict)

    def start_ahead(self, engine: str = "") -> None:
        """Start a worker, which loads the converter of an engine, while this process is not yet ready to give orders."""
        worker = self._hired(f"loading the converter of {engine}" if engine else "starting")
        if engine:
            worker.engines.add(engine)
        worker.sends(Ahead(engine))

    def run(
        self, orders: Sequence[Order], shared: Callable[[Order], str], known: Findings
    ) -> Iterator[tuple[Order, Findings | ToolFailedError]]:
        """Each order's findings as they come, or what its worker died of. `known` is what need not be found again.

        Raises: PoolUnfitError.
        """
        waiting = list(orders)
        yield from self._hopeless(waiting)
        while waiting or any(worker.order for worker in self._workers):
            self._hand_out(waiting, shared, known)
            busy = {worker.connection: worker for worker in self._workers if worker.order}
            for connection in wait(list(busy), _TICK_S):
                assert isinstance(connection, Connection)
                answer = self._heard(busy[connection])
                if answer is not None:
                    yield answer
            for cut in self._late():
                yield cut
                yield from self._hopeless(waiting)
            self.check()

    def close(self) -> None:
        """End every worker, whatever it is doing."""
        while self._workers:
            self._end(self._workers[-1])

    def _end(self, worker: _Worker) -> None:
        with suppress(ProcessLookupError):
            # With what the worker started itself.
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        worker.rests()
        worker.connection.close()
        self._workers.remove(worker)

    def _late(self) -> list[tuple[Order, ToolFailedError]]:
        """Orders beyond their limit, whose workers are ended."""
        found: list[tuple[Order, ToolFailedError]] = []
        for worker in [item for item in self._workers if item.order]:
            assert worker.order is not None
            order, limit_s = worker.order, min(self.limit_s, worker.order.limit_s)
            if worker.counted_s() <= limit_s:
                continue
            error = too_long(worker.doing, limit_s)
            self._end(worker)
            self.tell(f"{error}; it is left out")
            if order.is_float:
                self._given_up[order.plan.recipe.engine] = error
            found.append((order, error))
        return found

    def _hopeless(self, waiting: list[Order]) -> Iterator[tuple[Order, ToolFailedError]]:
        """Orders that start from a float model which could not be made, taken from those that wait."""
        for order in [item for item in waiting if item.plan.recipe.engine in self._given_up]:
            waiting.remove(order)
            cause = self._given_up[order.plan.recipe.engine]
            yield order, TooLongError(f"not tried, since {cause}")

    def _hand_out(self, waiting: list[Order], shared: Callable[[Order], str], known: Findings) -> None:
        # More than so many may have been started before it was known how many are to work side by side.
        while waiting and sum(1 for item in self._workers if item.order) < self.jobs:
            busy = {item.shared for item in self._workers if item.order}
            free = [order for order in waiting if shared(order) not in busy]
            idle: list[_Worker | None] = [item for item in self._workers if item.order is None]
            if len(self._workers) < self.jobs:
                idle.append(None)
            worker, free = next(
                ((item, mine) for item in idle if (mine := self._for(item, free))), (None, [])
            )
            if not free:
                return
            worker = worker or self._hired("starting")
            if not worker.is_opened:
                worker.is_opened = True
                worker.sends(self.opening)
            order = min(free, key=lambda item: self._place(worker, item))
            waiting.remove(order)
            if order.is_float and shared(order) not in known.artifacts:
                self._float_at[order.plan.recipe.engine] = worker
            worker.takes(order, shared(order))
            worker.sends((order, known.artifacts_only()))

    def _for(self, worker: _Worker | None, orders: Sequence[Order]) -> list[Order]:
        """The orders that this worker, or one that is still to be started, may have."""
        found = []
        for order in orders:
            maker = self._float_at.get(order.plan.recipe.engine)
            if order.is_float or maker in (None, worker) or maker not in self._workers:
                found.append(order)
        return found

    def _place(self, worker: _Worker, order: Order) -> tuple[bool, bool, int]:
        """The smallest comes next. What another worker has the engine for comes last, float or not: loading a converter
        takes seconds, and the float model that all its recipes start from may just be being made there.
        """
        strangeness = self._strangeness(worker, order)
        return strangeness == _ELSEWHERE, not order.is_float, strangeness

    def _strangeness(self, worker: _Worker, order: Order) -> int:
        """0 for an engine that the worker has loaded, 1 for one that nobody has, `_ELSEWHERE` for one that another has."""
        engine = order.plan.recipe.engine
        if engine in worker.engines:
            return 0
        return 1 + any(engine in item.engines for item in self._workers)

    def _hired(self, doing: str) -> _Worker:
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
        worker = _Worker(process, Connection(ours.detach()), words, self.spent, doing=doing)
        self.spent.does(str(process.pid), worker.doing)
        self._workers.append(worker)
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
            worker.does(message.text)
            self.tell(message.text)
            return None
        if isinstance(message, Loaded):
            worker.loaded(message.at)
            return None
        if isinstance(message, Opened):
            if message.objection:
                raise PoolUnfitError(message.objection)
            worker.does(f"preparing {order.plan.name}")
            return None
        worker.rests()
        engine, made = order.plan.recipe.engine, message.artifacts.get(worker.shared)
        if self._float_at.get(engine) is worker and not isinstance(made, Exception):
            del self._float_at[engine]
        return order, message

    def _buried(self, worker: _Worker) -> ToolFailedError:
        self._workers.remove(worker)
        worker.rests()
        worker.connection.close()
        cause = worker.cause()
        if worker.doing == "starting":
            raise PoolUnfitError(f"a worker died at its start ({cause})")
        who = "converter" if worker.doing.startswith(("converting", "compiling")) else "worker"
        error = ToolFailedError(f"the {who} died ({cause}) while {worker.doing}")
        self.tell(str(error))
        return error
