"""What one worker counts between two snapshots: requests, errors, latencies, and its outputs over reference bins.

Safe to use from the event loop and the engine's thread.
"""

import threading

import numpy as np

from edgekit.manifest import Histogram, Manifest
from edgekit.sketch import SketchBuilder
from edgekit.tensors import Array
from edgekit.wire.messages import DeploymentWindow


class Counters:
    def __init__(self, deployment: str, digest: str, manifest: Manifest) -> None:
        self._deployment = deployment
        self._digest = digest
        self._edges = {
            name: np.asarray(histogram.edges, np.float64)
            for name, histogram in manifest.reference.outputs.items()
            if len(histogram.edges) > 1
        }
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._requests = self._errors = self._rejected = 0
        self._infer = SketchBuilder()
        self._request = SketchBuilder()
        self._outputs = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in self._edges.items()}

    def accepted(self) -> None:
        with self._lock:
            self._requests += 1

    def failed(self) -> None:
        with self._lock:
            self._errors += 1

    def rejected(self) -> None:
        with self._lock:
            self._rejected += 1

    def answered(self, infer_ms: float, outputs: dict[str, Array]) -> None:
        """One engine call that succeeded."""
        with self._lock:
            self._infer.add(infer_ms)
            for name, edges in self._edges.items():
                if name in outputs:
                    values = outputs[name].astype(np.float64, copy=False).ravel()
                    # The ends are open: what lies outside counts in the first or last bin.
                    bins = np.searchsorted(edges[1:-1], values[np.isfinite(values)], side="right")
                    self._outputs[name] += np.bincount(bins, minlength=len(edges) - 1)

    def took(self, request_ms: float) -> None:
        """The whole of one accepted request, with its time in the queue."""
        with self._lock:
            self._request.add(request_ms)

    def snapshot(self) -> DeploymentWindow:
        """What was counted since the last snapshot."""
        with self._lock:
            window = DeploymentWindow(
                deployment=self._deployment,
                digest=self._digest,
                requests=self._requests,
                errors=self._errors,
                rejected_inputs=self._rejected,
                infer_ms=self._infer.snapshot(),
                request_ms=self._request.snapshot(),
                outputs={
                    name: Histogram(self._edges[name].tolist(), counts.tolist())
                    for name, counts in self._outputs.items()
                },
            )
            self._clear()
            return window
