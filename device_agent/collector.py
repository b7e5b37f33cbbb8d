"""Counts of all workers, merged: into the window that is open, and into totals for `/metrics`.

A window holds one entry per deployment and digest, so that a swap inside it mixes no releases; a deployment without
traffic has its entry with zero counts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from edgekit import sketch
from edgekit.manifest import Histogram
from edgekit.wire.messages import DeploymentWindow, Moments, ShadowWindow

Key = tuple[str, str | None]


def merge(first: DeploymentWindow, second: DeploymentWindow) -> DeploymentWindow:
    """Two windows of the same deployment and digest as one."""
    return DeploymentWindow(
        deployment=first.deployment,
        digest=first.digest,
        requests=first.requests + second.requests,
        errors=first.errors + second.errors,
        rejected_inputs=first.rejected_inputs + second.rejected_inputs,
        worker_deaths=first.worker_deaths + second.worker_deaths,
        sequence_resets=first.sequence_resets + second.sequence_resets,
        infer_ms=sketch.merge((first.infer_ms, second.infer_ms)),
        request_ms=sketch.merge((first.request_ms, second.request_ms)),
        inputs=_merge_histograms(first.inputs, second.inputs),
        outputs=_merge_histograms(first.outputs, second.outputs),
        confidence=_merge_histograms(first.confidence, second.confidence),
        anomalies=dict(Counter(first.anomalies) + Counter(second.anomalies)),
        metrics=_merge_moments(first.metrics, second.metrics),
        guarded=first.guarded + second.guarded,
        shadow=_merge_shadows(first.shadow, second.shadow),
    )


def _merge_shadows(first: ShadowWindow | None, second: ShadowWindow | None) -> ShadowWindow | None:
    """Of one shadow both; of two, the newer: an order has put it in the other's place."""
    if first is None or second is None or first.digest != second.digest:
        return second or first
    return ShadowWindow(
        digest=first.digest,
        compared=first.compared + second.compared,
        dropped=first.dropped + second.dropped,
        failed=first.failed + second.failed,
        agreement=_merge_moments(first.agreement, second.agreement),
        cpu_ms=sketch.merge((first.cpu_ms, second.cpu_ms)),
        served_ms=sketch.merge((first.served_ms, second.served_ms)),
    )


def _merge_moments(first: Mapping[str, Moments], second: Mapping[str, Moments]) -> dict[str, Moments]:
    none = Moments()
    sides = {name: (first.get(name, none), second.get(name, none)) for name in (*first, *second)}
    return {name: Moments(a.count + b.count, a.total + b.total) for name, (a, b) in sides.items()}


def _merge_histograms(
    first: Mapping[str, Histogram], second: Mapping[str, Histogram]
) -> dict[str, Histogram]:
    merged = dict(first)
    for name, histogram in second.items():
        known = merged.get(name)
        # The bins come from the bundle, so one digest has one set of edges.
        counts = (
            histogram.counts if known is None else map(sum, zip(known.counts, histogram.counts, strict=True))
        )
        merged[name] = Histogram(histogram.edges, list(counts))
    return merged


def death(deployment: str, digest: str) -> DeploymentWindow:
    """A worker that died: whatever it was doing is one accepted request that failed."""
    return DeploymentWindow(deployment=deployment, digest=digest, requests=1, errors=1, worker_deaths=1)


class Collector:
    def __init__(self) -> None:
        self._open: dict[Key, DeploymentWindow] = {}
        self.totals: dict[Key, DeploymentWindow] = {}

    def add(self, window: DeploymentWindow) -> None:
        key = (window.deployment, window.digest)
        for into in (self._open, self.totals):
            known = into.get(key)
            into[key] = window if known is None else merge(known, window)

    def close_window(self, loaded: Iterable[tuple[str, str | None]]) -> tuple[DeploymentWindow, ...]:
        """What was counted since the last call, with an entry for everything that is loaded now."""
        closed, self._open = self._open, {}
        for deployment, digest in loaded:
            closed.setdefault((deployment, digest), DeploymentWindow(deployment=deployment, digest=digest))
        return tuple(closed.values())


_COUNTERS = (
    ("requests", "edgekit_requests_total", "Accepted requests."),
    ("errors", "edgekit_errors_total", "Engine failures, timeouts and worker deaths."),
    ("rejected_inputs", "edgekit_rejected_inputs_total", "Requests whose input did not fit the model."),
    ("guarded", "edgekit_guarded_total", "Accepted requests whose input the guard found unfamiliar."),
    ("worker_deaths", "edgekit_worker_deaths_total", "Worker processes that died."),
    ("sequence_resets", "edgekit_sequence_resets_total", "Requests whose sequence's state was gone."),
)
_SUMMARIES = (
    ("infer_ms", "edgekit_infer_milliseconds", "Engine calls."),
    ("request_ms", "edgekit_request_milliseconds", "Requests with their time in the queue."),
)


def prometheus(totals: Mapping[Key, DeploymentWindow], loaded: Mapping[str, str | None]) -> str:
    """The totals in Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for field, name, help_text in _COUNTERS:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter"]
        lines += [f"{name}{{{_labels(key)}}} {getattr(window, field)}" for key, window in totals.items()]
    for field, name, help_text in _SUMMARIES:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} summary"]
        for key, window in totals.items():
            values = getattr(window, field)
            for share in (0.5, 0.95, 0.99):
                if (value := values.quantile(share)) is not None:
                    lines.append(f'{name}{{{_labels(key)},quantile="{share}"}} {value:.6g}')
            lines += [
                f"{name}_sum{{{_labels(key)}}} {values.total:.6g}",
                f"{name}_count{{{_labels(key)}}} {values.count}",
            ]
    lines += [
        "# HELP edgekit_input_anomalies_total Inputs that were refused, or unlike all that the model was judged on.",
        "# TYPE edgekit_input_anomalies_total counter",
    ]
    for key, window in totals.items():
        lines += [
            f'edgekit_input_anomalies_total{{{_labels(key)},kind="{kind}"}} {count}'
            for kind, count in sorted(window.anomalies.items())
        ]
    lines += ["# HELP edgekit_ready Whether a worker serves the deployment.", "# TYPE edgekit_ready gauge"]
    lines += [f'edgekit_ready{{deployment="{name}"}} {int(bool(digest))}' for name, digest in loaded.items()]
    return "\n".join(lines) + "\n"


def _labels(key: Key) -> str:
    deployment, digest = key
    return f'deployment="{deployment}",digest="{(digest or "")[:12]}"'
