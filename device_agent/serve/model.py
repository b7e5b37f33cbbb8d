"""A loaded bundle as requests meet it: turns, pre-processing, states of sequences, the engine, what it took.

Always true
 1. One call at a time, in one thread: engines need no more, and the event loop never waits for one. Bodies that are
    costly to read are read in another, one ahead of the engine at most, so that what they unfold to is bounded.
 2. What cannot be read or does not fit the manifest is the caller's mistake (`rejected_inputs`); only what fits and
    still fails is an error, and is counted once.
 3. An answer with NaN or infinity where the golden outputs have none is an error, and no state is kept of it. An error on
    inputs beyond all that the model was judged on is the caller's mistake.
 4. An unfamiliar input that the guard is to refuse is nobody's mistake: it is counted as accepted and as guarded, and the
    engine never sees it.
 5. The engine's time is limited from the start of its call. Waiting is limited apart, and is nobody's error.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from device_agent.serve import parsing
from device_agent.serve.counters import Counters
from device_agent.serve.door import BusyError, Lane, Ticket
from device_agent.serve.guarded import Guarded
from device_agent.serve.judged import Judged
from device_agent.serve.sequences import Sequence, Sequences
from device_agent.shadow.feed import Feed
from edgekit import rows
from edgekit.engines import LoadedBundle
from edgekit.errors import EngineError, InputError, UnfamiliarError
from edgekit.manifest import Manifest
from edgekit.tensors import Array

ENGINE_TIMEOUT_S = 60.0
# One call under way, and the next already in the engine's thread, so that it does not wait for the event loop.
_DEPTH = 2
T = TypeVar("T")
P = TypeVar("P")


class EngineHungError(EngineError):
    """The engine did not return in time; the worker ends and is replaced."""

    code = "engine-hung"
    http_status = 504


class NotFiniteError(EngineError):
    """The model answered with NaN or infinity, which its golden outputs have not."""

    code = "not-finite"


@dataclass(frozen=True)
class Ran:
    """Outputs of one call, and whether its sequence began anew without being asked to. `excess` is how many times further
    away than the guard's threshold the input is; 0 for a familiar one. `is_cut`: there were more rows than the manifest says
    that there may be.
    """

    outputs: dict[str, Array]
    was_reset: bool
    excess: float = 0.0
    is_cut: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """What the caller is told beside the outputs."""
        told: dict[str, Any] = {"sequence_reset": True} if self.was_reset else {}
        told |= {"rows_cut": True} if self.is_cut else {}
        return told | ({"unfamiliar": True, "excess": round(self.excess, 3)} if self.excess else {})


class ServedModel:
    def __init__(
        self,
        manifest: Manifest,
        loaded: LoadedBundle,
        counters: Counters,
        judged: Judged | None = None,
        guarded: Guarded | None = None,
    ) -> None:
        self.manifest = manifest
        self.counters = counters
        self.engine_timeout_s = ENGINE_TIMEOUT_S
        self.engine = Lane(_DEPTH)
        self._reading = Lane(1)
        self._loaded = loaded
        self._sets = manifest.sets or ()
        self._judged = judged or Judged()
        self._guarded = guarded
        # A shadow that gets copies of what is served; None costs nothing.
        self.feed: Feed | None = None
        self._sequences = Sequences(manifest)
        self._pool = ThreadPoolExecutor(1, "engine")
        self._readers = ThreadPoolExecutor(1, "reader")
        self._call_since: float | None = None
        self._under_way: dict[asyncio.Future[Any], None] = {}
        self._watch: asyncio.TimerHandle | None = None

    @property
    def input_values(self) -> int:
        """Values of all inputs together."""
        return sum(math.prod(dim or 1 for dim in spec.shape) for spec in self.manifest.inputs)

    async def do(
        self, ticket: Ticket, read: Callable[[], P], use: Callable[[P], T], *, is_costly: bool = False
    ) -> T:
        """What `use`, which may call `run`, makes of what `read` reads.

        Raises: InputError for what `read` or the model's check refuses; BusyError, EngineHungError, EngineError;
        whatever else `use` raises, counted as an error.
        """
        began = time.perf_counter()
        try:
            if is_costly:
                result = await self._read_ahead(ticket, read, use)
            else:
                await self.engine.enter(ticket)
                result = await self._in_engine(ticket, lambda: use(parsing.read(read)))
        except InputError as error:
            self.counters.rejected(error)
            raise
        self.counters.took((time.perf_counter() - began) * 1000)
        return result

    async def beside(self, work: Callable[[], T]) -> T:
        """Work that takes a while and needs no engine, in the readers' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _read_ahead(self, ticket: Ticket, read: Callable[[], P], use: Callable[[P], T]) -> T:
        await self._reading.enter(ticket)
        try:
            value = await self.beside(lambda: parsing.read(read))
            await self.engine.enter(ticket)
        finally:
            self._reading.leave()
        return await self._in_engine(ticket, lambda: use(value))

    async def _in_engine(self, ticket: Ticket, work: Callable[[], T]) -> T:
        """Run in the engine's thread; the turn, which the caller has, is given back."""
        ticket.phase = "running"
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._under_way[future] = None
        if self._watch is None:
            self._watch = loop.call_later(self.engine_timeout_s, self._look)
        self._pool.submit(self._settle, loop, future, work)
        try:
            return await future
        finally:
            del self._under_way[future]
            self.engine.leave()

    def _settle(
        self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[T]", work: Callable[[], T]
    ) -> None:
        """In the engine's thread: `work`, and what came of it into the future."""
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the one who waits for it
            if not isinstance(error, InputError | EngineError | UnfamiliarError):
                # After the model's check nothing is the caller's fault any more.
                self.counters.failed()
            loop.call_soon_threadsafe(_finish, future, None, error)
        else:
            loop.call_soon_threadsafe(_finish, future, result, None)

    def _look(self) -> None:
        """Whether the engine's call takes too long; looked at again while there is one."""
        self._watch = None
        since, loop = self._call_since, asyncio.get_running_loop()
        now = time.monotonic()
        if since is None or now - since < self.engine_timeout_s:
            if self._under_way:
                left = self.engine_timeout_s if since is None else since + self.engine_timeout_s - now
                self._watch = loop.call_later(left + 0.001, self._look)
            return
        self.counters.failed()
        hung, *others = self._under_way
        hung.set_exception(EngineHungError(f"the engine did not return within {self.engine_timeout_s:.0f} s"))
        for other in others:
            other.set_exception(BusyError("the engine hangs, and the worker is replaced; try again shortly"))

    def run(
        self, inputs: Mapping[str, Array], sequence: Sequence, raw: Mapping[str, Array] | None = None
    ) -> Ran:
        """One engine call on inputs that went through pre-processing; in the engine's thread. `raw` are those before it.

        Raises: InputError, UnfamiliarError, EngineError.
        """
        states, was_reset = self._sequences.begin(sequence)
        checked = self._loaded.checked({**states, **inputs})
        self.counters.accepted()
        excess = self._looked_at(inputs)
        feed = self.feed
        is_beside = feed is not None and feed.is_busy()
        began = time.perf_counter()
        self._call_since = time.monotonic()
        try:
            outputs, is_cut = rows.cut(self._sets, self._loaded.run(checked))
            took_ms = (time.perf_counter() - began) * 1000
            if bad := self._judged.not_finite(outputs):
                raise NotFiniteError(f"the model answered with NaN or infinity in {bad!r}")
        except Exception as error:
            raise self._blamed(error, checked) from error
        finally:
            self._call_since = None
        if self.counters.answered(took_ms, inputs, outputs):
            self._pool.submit(self.counters.fold)
        if feed is not None and feed.took(took_ms, beside=is_beside):
            given, is_raw = (checked, False) if raw is None or states else (raw, True)
            self._pool.submit(self._copy, feed, given, outputs, is_raw, took_ms)
        self._sequences.keep(sequence, outputs)
        if was_reset:
            self.counters.reset()
        return Ran(outputs, was_reset, excess, is_cut)

    @staticmethod
    def _copy(
        feed: Feed, given: Mapping[str, Array], outputs: Mapping[str, Array], is_raw: bool, took_ms: float
    ) -> None:
        feed.give(given, outputs, is_raw=is_raw, took_ms=took_ms)

    def _looked_at(self, inputs: Mapping[str, Array]) -> float:
        """How far beyond the guard's threshold; 0 for a familiar input. Raises: UnfamiliarError if it is to be refused."""
        if self._guarded is None or (excess := self._guarded.excess(inputs)) == 0:
            return 0.0
        self.counters.guarded()
        if self._guarded.refuses:
            raise UnfamiliarError(self._guarded.told(excess))
        return excess

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _blamed(self, error: Exception, inputs: Mapping[str, Array]) -> EngineError | InputError:
        """Whose fault a call was that went wrong."""
        unlike = self._judged.unlike(inputs)
        if unlike is not None:
            return InputError(
                f"input {unlike!r} is far beyond all that this model was judged on: {error}", "out-of-range"
            )
        self.counters.failed()
        return error if isinstance(error, EngineError) else EngineError(f"the engine failed: {error!r}")


def _finish(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    """A future that was given up already keeps what it has."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
