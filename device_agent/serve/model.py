"""A loaded bundle as requests meet it: pre-processing, states of sequences, the engine, what it took.

Always true
 1. One call at a time, in one thread: engines need no more, and the event loop never waits for one.
 2. What does not fit the manifest is the caller's mistake (`rejected_inputs`); only what fits and still fails is an
    error.
 3. A sequence's state is kept between its requests until it is ended, idle for `SEQUENCE_IDLE_S`, or crowded out.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from device_agent.serve.counters import Counters
from edgekit.engines import LoadedBundle
from edgekit.errors import EngineError, InputError
from edgekit.manifest import Manifest
from edgekit.tensors import Array

QUEUE = 64
ENGINE_TIMEOUT_S = 60.0
SEQUENCE_IDLE_S = 300.0
MAX_SEQUENCES = 1024
T = TypeVar("T")


class BusyError(EngineError):
    """More requests wait than the queue holds."""

    code = "busy"
    http_status = 503


class EngineHungError(EngineError):
    """The engine did not return in time; the worker ends and is replaced."""

    code = "engine-hung"
    http_status = 504


@dataclass(frozen=True)
class Sequence:
    """Which sequence a request belongs to; without `key` every request is its own."""

    key: str | None = None
    is_start: bool = False
    is_end: bool = False


@dataclass
class _Held:
    states: dict[str, Array]
    used: float


class ServedModel:
    def __init__(self, manifest: Manifest, loaded: LoadedBundle, counters: Counters) -> None:
        self.manifest = manifest
        self.counters = counters
        self._loaded = loaded
        self._pool = ThreadPoolExecutor(1, "engine")
        self._waiting = 0
        self._specs = {spec.name: spec for spec in manifest.inputs}
        self._states: OrderedDict[str, _Held] = OrderedDict()

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs in their dense form."""
        return sum(
            int(np.prod([dim or 1 for dim in spec.shape], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            for spec in self.manifest.inputs
        )

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work`, which may call `run`, in the engine's thread.

        Raises: BusyError, EngineHungError, and what `work` raises.
        """
        if self._waiting >= QUEUE:
            raise BusyError(f"{self._waiting} requests are waiting already; try again shortly")
        self._waiting += 1
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            result = await asyncio.wait_for(loop.run_in_executor(self._pool, work), ENGINE_TIMEOUT_S)
        except TimeoutError as error:
            self.counters.failed()
            raise EngineHungError(f"the engine did not return within {ENGINE_TIMEOUT_S:.0f} s") from error
        except InputError:
            self.counters.rejected()
            raise
        finally:
            self._waiting -= 1
        self.counters.took((time.perf_counter() - began) * 1000)
        return result

    def run(self, inputs: Mapping[str, Array], sequence: Sequence) -> dict[str, Array]:
        """One engine call on inputs that went through pre-processing. Raises: InputError, EngineError."""
        states = self._states_of(sequence)
        checked = self._loaded.checked({**states, **inputs})
        self.counters.accepted()
        began = time.perf_counter()
        try:
            outputs = self._loaded.run(checked)
        except EngineError:
            self.counters.failed()
            raise
        self.counters.answered((time.perf_counter() - began) * 1000, outputs)
        self._keep(sequence, outputs)
        return outputs

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _states_of(self, sequence: Sequence) -> dict[str, Array]:
        if not self.manifest.state:
            return {}
        self._expire()
        held = self._states.get(sequence.key) if sequence.key is not None and not sequence.is_start else None
        if held is not None:
            return held.states
        return {pair.input: self._zeros(pair.input) for pair in self.manifest.state}

    def _keep(self, sequence: Sequence, outputs: Mapping[str, Array]) -> None:
        if not self.manifest.state or sequence.key is None:
            return
        self._states.pop(sequence.key, None)
        if sequence.is_end:
            return
        states = {pair.input: outputs[pair.output] for pair in self.manifest.state}
        self._states[sequence.key] = _Held(states, time.monotonic())
        if len(self._states) > MAX_SEQUENCES:
            self._states.popitem(last=False)

    def _expire(self) -> None:
        """Drop idle sequences; the oldest stand first."""
        limit = time.monotonic() - SEQUENCE_IDLE_S
        while self._states and next(iter(self._states.values())).used < limit:
            self._states.popitem(last=False)

    def _zeros(self, name: str) -> Array:
        spec = self._specs[name]
        return np.zeros([dim or 1 for dim in spec.shape], np.dtype(spec.dtype))
