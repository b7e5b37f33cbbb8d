"""The worker's part: which inputs are kept, and their way to the supervisor.

Always true
 1. Without a policy nothing of an input is looked at, copied or kept.
 2. Keeping takes at most `SHARE` of one core, after a burst of `BURST_S`; at most `WAITING` inputs wait to be written
    down. What does not fit is passed over and counted; no answer waits for it.
 3. No sample is larger than `MAX_SAMPLE_BYTES`.

`offer` is called in the engine's thread, everything else in the event loop.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np

from device_agent import log
from device_agent.channel import Sampling
from device_agent.samples import choosing
from device_agent.samples.choosing import Seen
from device_agent.samples.classes import Classes
from edgekit.errors import EdgeKitError
from edgekit.manifest import Manifest
from edgekit.samples import dump_arrays
from edgekit.tensors import Array
from edgekit.wire import samples
from edgekit.wire.samples import INPUT, MAX_SAMPLE_BYTES, OUTPUT, Kind, SampleAbout

SHARE = 0.02
BURST_S = 0.25
WAITING = 2
# What names, shapes and the first line take beside the arrays.
_BESIDE_BYTES = 64 << 10


class Sampler:
    """`hand_over` gets a descriptor, from then on its own, in the event loop."""

    def __init__(
        self, deployment: str, digest: str, manifest: Manifest, hand_over: Callable[[int], None]
    ) -> None:
        self._deployment = deployment
        self._digest = digest
        self._classes = Classes(manifest)
        self._hand_over = hand_over
        # Without pre-processing both kinds are one.
        self._tensors: Kind = "tensors" if manifest.preprocess else "raw"
        self._told = Sampling()
        self._pool = ThreadPoolExecutor(1, "sampler")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._waiting = self._passed_over = 0
        self._credit_s, self._credited = BURST_S, time.monotonic()

    @property
    def is_on(self) -> bool:
        """Whether a policy wants anything: callers keep what they would offer only then."""
        return bool(self._told.policies)

    def told(self, sampling: Sampling) -> None:
        """What may be kept from now on."""
        self._loop = asyncio.get_running_loop()
        self._told = sampling

    def passed_over(self) -> int:
        """Inputs that a policy wanted and that were passed over since the last call."""
        with self._lock:
            count, self._passed_over = self._passed_over, 0
        return count

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def offer(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        *,
        is_raw: bool,
        is_flagged: bool = False,
    ) -> None:
        """An input that was answered, or refused by the guard (`is_flagged`, perhaps without outputs).

        `is_raw`: as it came, before pre-processing.
        """
        told = self._told
        if not told.policies:
            return
        best = self._classes.best(outputs) if choosing.needs_class(told.policies) else None
        seen = Seen(
            random.random(),  # noqa: S311  # a share of inputs, no secret
            best.confidence if best is not None else None,
            best.label if best is not None else "",
            told.is_drifting,
            is_flagged,
        )
        chosen = choosing.choose(told.policies, seen)
        if chosen is None or not self._may(inputs, outputs):
            return
        began = time.thread_time()
        policy, why = chosen
        best = best or self._classes.best(outputs)
        about = SampleAbout(
            policy=policy.id,
            deployment=self._deployment,
            digest=self._digest,
            reason=why,
            kind="raw" if is_raw else self._tensors,
            taken=datetime.now(UTC),
            confidence=best.confidence if best is not None else None,
            label=best.label[:200] if best is not None else "",
        )
        # Copies: what was given may be a view of a buffer that goes on being used.
        arrays = {INPUT + name: np.array(array) for name, array in inputs.items()}
        arrays |= {OUTPUT + name: np.array(array) for name, array in outputs.items()}
        self._spend(time.thread_time() - began)
        self._pool.submit(self._write, about, arrays)

    def _may(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
        """Whether there is room and time for one more; it waits from now on."""
        size = sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
        with self._lock:
            now = time.monotonic()
            self._credit_s = min(BURST_S, self._credit_s + SHARE * (now - self._credited))
            self._credited = now
            fits = size + _BESIDE_BYTES <= MAX_SAMPLE_BYTES
            if not fits or self._credit_s <= 0 or self._waiting >= WAITING or self._loop is None:
                self._passed_over += 1
                return False
            self._waiting += 1
            return True

    def _spend(self, seconds: float) -> None:
        with self._lock:
            self._credit_s -= seconds

    def _write(self, about: SampleAbout, arrays: Mapping[str, Array]) -> None:
        """In the sampler's thread: into memory that the supervisor gets."""
        began = time.thread_time()
        descriptor = -1
        try:
            data = samples.pack(about, dump_arrays(arrays))
            descriptor = os.memfd_create("sample", os.MFD_CLOEXEC)
            with os.fdopen(os.dup(descriptor), "wb") as sink:
                sink.write(data)
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._hand_over, descriptor)
        except (EdgeKitError, OSError, RuntimeError, MemoryError) as error:
            if descriptor >= 0:
                os.close(descriptor)
            log.trouble("a sample could not be written down", deployment=self._deployment, reason=error)
        finally:
            self._spend(time.thread_time() - began)
            with self._lock:
                self._waiting -= 1
