"""States of the sequences of a stateful model, between their requests.

Always true
 1. All states together take at most `max_bytes`, or there is one sequence only.
 2. A sequence is kept until it is ended, idle for `IDLE_S`, or crowded out by newer ones, the longest idle first.
 3. A request that meant to go on with a sequence and found none is told so: its state began anew. That is so after
    each of these, after a change of worker, and for a first request that did not say `sequence_start`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekit.decode import check_sequence_id
from edgekit.manifest import Manifest
from edgekit.tensors import Array, zeros_of

IDLE_S = 300.0
MAX_SEQUENCES = 1024
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Sequence:
    """Which sequence a request belongs to; without `key` every request is its own."""

    key: str | None = None
    is_start: bool = False
    is_end: bool = False


def sequence_of(parameters: Mapping[str, object]) -> Sequence:
    """The sequence that request parameters name; 0 and an empty text mean none, as Triton has it. Raises: InputError."""
    key = parameters.get("sequence_id")
    check_sequence_id(key)
    return Sequence(
        key=str(key) if key else None,
        is_start=parameters.get("sequence_start") is True,
        is_end=parameters.get("sequence_end") is True,
    )


@dataclass(frozen=True)
class _Held:
    states: dict[str, Array]
    used: float
    size: int


class Sequences:
    """Used by the engine's thread alone."""

    def __init__(
        self, manifest: Manifest, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pairs = manifest.state
        self._specs = {spec.name: spec for spec in manifest.inputs}
        self._max_bytes = max_bytes
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.held_bytes = 0

    def begin(self, sequence: Sequence) -> tuple[dict[str, Array], bool]:
        """The states to go on with, and whether they began anew without being asked to."""
        if not self._pairs:
            return {}, False
        self._expire()
        held = self._held.get(sequence.key) if sequence.key is not None else None
        if held is not None and not sequence.is_start:
            return held.states, False
        fresh = {pair.input: zeros_of(self._specs[pair.input]) for pair in self._pairs}
        return fresh, sequence.key is not None and not sequence.is_start

    def keep(self, sequence: Sequence, outputs: Mapping[str, Array]) -> None:
        """What the next request of the sequence goes on with."""
        if not self._pairs or sequence.key is None:
            return
        self._drop(sequence.key)
        if sequence.is_end:
            return
        # A view would keep the whole of an engine's buffer.
        states = {pair.input: _owned(outputs[pair.output]) for pair in self._pairs}
        size = sum(array.nbytes for array in states.values())
        self._held[sequence.key] = _Held(states, self._clock(), size)
        self.held_bytes += size
        while len(self._held) > MAX_SEQUENCES or (self.held_bytes > self._max_bytes and len(self._held) > 1):
            self._drop(next(iter(self._held)))

    def _expire(self) -> None:
        """Drop idle sequences; the oldest stand first."""
        limit = self._clock() - IDLE_S
        while self._held and next(iter(self._held.values())).used < limit:
            self._drop(next(iter(self._held)))

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.held_bytes -= held.size


def _owned(array: Array) -> Array:
    return array if array.base is None else array.copy()
