"""What one worker counts between two snapshots: requests, errors, latencies, and its outputs over reference bins.

Always true
 1. Of one answer at most `SAMPLED` values of an output are looked at, so a large map costs no more than a small one.
 2. The answer's path only puts those values aside; `fold` sorts them into bins, after the answer or at a snapshot.

Safe to use from the event loop and the engine's thread.
"""

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.manifest import Histogram, Manifest
from edgekit.sketch import SketchBuilder
from edgekit.tensors import Array
from edgekit.wire.messages import GUARD_SHARE, DeploymentWindow, Moments

SAMPLED = 512
# Values put aside before somebody should sort them.
FOLD_AT = 16 * SAMPLED


class Counters:
    def __init__(self, deployment: str, digest: str, manifest: Manifest) -> None:
        self._deployment = deployment
        self._digest = digest
        self._edges = {
            name: np.asarray(histogram.edges, np.float64)
            for name, histogram in manifest.reference.outputs.items()
            if len(histogram.edges) > 1
        }
        self._has_guard = bool(manifest.guard)
        self._random = np.random.default_rng()
        self._lock = threading.Lock()
        self._aside: dict[str, list[Array]] = {name: [] for name in self._edges}
        self._aside_size = 0
        self._clear()

    def _clear(self) -> None:
        self._requests = self._errors = self._rejected = self._resets = self._guarded = 0
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

    def guarded(self) -> None:
        """An accepted request whose input is unfamiliar."""
        with self._lock:
            self._guarded += 1

    def reset(self) -> None:
        """A sequence began anew without being asked to."""
        with self._lock:
            self._resets += 1

    def answered(self, infer_ms: float, outputs: Mapping[str, Array]) -> bool:
        """One engine call that succeeded; whether `fold` is due."""
        samples = {name: self._sampled(outputs[name]) for name in self._edges if name in outputs}
        with self._lock:
            self._infer.add(infer_ms)
            for name, values in samples.items():
                self._aside[name].append(values)
                self._aside_size += values.size
            return self._aside_size >= FOLD_AT

    def _sampled(self, array: Array) -> Array:
        """A copy of some values, each as likely as any other."""
        flat = array.ravel()
        if flat.size <= SAMPLED:
            return flat.copy()
        return flat[self._random.integers(0, flat.size, SAMPLED)]

    def took(self, request_ms: float) -> None:
        """The whole of one accepted request, with its time in the queue."""
        with self._lock:
            self._request.add(request_ms)

    def fold(self) -> None:
        """Sort what was put aside into bins."""
        with self._lock:
            aside, self._aside = self._aside, {name: [] for name in self._edges}
            self._aside_size = 0
        counted = {name: self._binned(name, values) for name, values in aside.items() if values}
        with self._lock:
            for name, counts in counted.items():
                self._outputs[name] += counts

    def _binned(self, name: str, values: list[Array]) -> NDArray[np.int64]:
        edges = self._edges[name]
        real = np.concatenate(values).astype(np.float64)
        # The ends are open: what lies outside counts in the first or last bin.
        bins = np.searchsorted(edges[1:-1], real[np.isfinite(real)], side="right")
        return np.bincount(bins, minlength=len(edges) - 1).astype(np.int64)

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
                outputs={
                    name: Histogram(self._edges[name].tolist(), counts.tolist())
                    for name, counts in self._outputs.items()
                },
            )
            self._clear()
            return window
