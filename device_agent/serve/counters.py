"""What one worker counts between two snapshots: requests, errors, latencies, anomalies, and values over reference bins.

Safe to use from the event loop and the engine's thread.
"""

import threading
from collections import Counter
from collections.abc import Mapping

from device_agent.serve.binned import Binned
from edgekit.errors import InputError
from edgekit.manifest import Manifest
from edgekit.sketch import SketchBuilder
from edgekit.tensors import Array
from edgekit.wire.messages import GUARD_SHARE, DeploymentWindow, Moments


class Counters:
    def __init__(self, deployment: str, digest: str, manifest: Manifest) -> None:
        self._deployment = deployment
        self._digest = digest
        self._binned = Binned(manifest.reference)
        self._has_guard = bool(manifest.guard)
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._requests = self._errors = self._rejected = self._resets = self._guarded = 0
        self._infer = SketchBuilder()
        self._request = SketchBuilder()
        self._anomalies: Counter[str] = Counter()
        self._binned.clear()

    def accepted(self) -> None:
        with self._lock:
            self._requests += 1

    def failed(self) -> None:
        with self._lock:
            self._errors += 1

    def rejected(self, error: InputError) -> None:
        with self._lock:
            self._rejected += 1
            self._anomalies[error.kind] += 1

    def guarded(self) -> None:
        """An accepted request whose input is unfamiliar."""
        with self._lock:
            self._guarded += 1

    def reset(self) -> None:
        """A sequence began anew without being asked to."""
        with self._lock:
            self._resets += 1

    def answered(self, infer_ms: float, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
        """One engine call that succeeded; whether `fold` is due."""
        drawn = self._binned.drawn(inputs, outputs)
        with self._lock:
            self._infer.add(infer_ms)
            return self._binned.put_aside(drawn)

    def took(self, request_ms: float) -> None:
        """The whole of one accepted request, with its time in the queue."""
        with self._lock:
            self._request.add(request_ms)

    def fold(self) -> None:
        """Sort what was put aside into bins."""
        with self._lock:
            aside = self._binned.taken()
        add = self._binned.sort(aside)
        with self._lock:
            add()

    def snapshot(self) -> DeploymentWindow:
        """What was counted since the last snapshot."""
        self.fold()
        with self._lock:
            window = DeploymentWindow(
                deployment=self._deployment,
                digest=self._digest,
                requests=self._requests,
                errors=self._errors,
                rejected_inputs=self._rejected,
                sequence_resets=self._resets,
                guarded=self._guarded,
                metrics={GUARD_SHARE: Moments(self._requests, self._guarded)} if self._has_guard else {},
                infer_ms=self._infer.snapshot(),
                request_ms=self._request.snapshot(),
                inputs=self._binned.histograms("inputs"),
                outputs=self._binned.histograms("outputs"),
                confidence=self._binned.histograms("confidence"),
                anomalies=dict(self._anomalies + Counter(self._binned.odd)),
            )
            self._clear()
            return window
