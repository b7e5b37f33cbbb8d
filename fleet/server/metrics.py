"""The fleet's metrics in Prometheus' text format: what this process does itself, and what the database says of the fleet.

Always true
 1. The database is read at most every `FRESH_S`, however many scrape and however often.
 2. What is exposed as a counter never goes down while the process lives, also when a device is deleted, whose sums go
    from the database with it: for Prometheus that would be a restart, and a spike.
 3. A database that does not answer leaves the metrics of the process itself, and `edgekit_fleet_database_up 0`.
 4. No label is a device's name: as many series as there are releases, rollouts under way and reasons, not devices.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from edgekit import __version__
from fleet.server import gauges
from fleet.server.clock import Clock
from fleet.server.database import Database
from fleet.server.gauges import Figures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRESH_S = 5.0
_TICKS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SERVICE = "service"


def _nothing() -> Mapping[str, int]:
    return {}


@dataclass(frozen=True)
class Process:
    """What this process knows of itself. `late_since` is steady; `messages` are (sent, failed) to targets."""

    is_controller: Callable[[], bool] = lambda: True
    is_connected: Callable[[], bool] = lambda: True
    stored: Callable[[], int] = lambda: 0
    dropped: Callable[[], Mapping[str, int]] = _nothing
    queued: Callable[[], int] = lambda: 0
    late_since: Callable[[], float | None] = lambda: None
    messages: Callable[[], tuple[int, int]] = lambda: (0, 0)
    clock: Clock = field(default_factory=Clock)


class Metrics:
    """One registry; `tick` takes the seconds that a tick of the controller took."""

    def __init__(self, database: Database, process: Process, fleet: str) -> None:
        self._registry = CollectorRegistry()
        self._ticks = Histogram(
            "edgekit_fleet_tick_seconds",
            "Time that a look at all rollouts took.",
            buckets=_TICKS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_Fleet(database, process, fleet))

    def tick(self, seconds: float) -> None:
        self._ticks.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Fleet(Collector):
    def __init__(self, database: Database, process: Process, fleet: str) -> None:
        self._database, self._process, self._name = database, process, fleet
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._figures: Figures | None = None
        self._took = 0.0
        self._highest: dict[tuple[str, ...], tuple[float, float]] = {}

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not read the database to know names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._read()
            found = self._figures
            yield from self._own(found is not None)
            if found is not None:
                yield from self._of_fleet(found)
                yield from self._of_rollouts(found)
                yield from self._of_releases(found)

    def _read(self) -> None:
        began = time.monotonic()
        if began - self._read_at < FRESH_S:
            return
        try:
            with self._database.read() as connection:
                self._figures = gauges.read(connection, self._process.clock.now().steady)
        except SQLAlchemyError:
            self._figures = None
        self._read_at = time.monotonic()
        self._took = self._read_at - began

    def _own(self, is_database_up: bool) -> Iterator[Metric]:
        process = self._process
        info = GaugeMetricFamily("edgekit_fleet_info", "What serves this fleet.", labels=("fleet", "version"))
        info.add_metric((self._name, __version__), 1)
        yield info
        late_since = process.late_since()
        late_s = 0.0 if late_since is None else max(0.0, process.clock.now().steady - late_since)
        for name, help_text, value in (
            (
                "is_controller",
                "Whether this service moves rollouts on (others stand by).",
                process.is_controller(),
            ),
            ("broker_connected", "Whether the service is connected to its broker.", process.is_connected()),
            ("database_up", "Whether the database answered this reading.", is_database_up),
            ("ingest_queue", "Messages that wait to be stored.", process.queued()),
            (
                "ingest_late_seconds",
                "For how long the database has refused what waits; 0 if it takes it.",
                late_s,
            ),
            ("reading_seconds", "Time that the newest reading of the database took.", self._took),
        ):
            yield GaugeMetricFamily(f"edgekit_fleet_{name}", help_text, value=float(value))
        sent, failed = process.messages()
        messages = CounterMetricFamily(
            "edgekit_fleet_alert_messages", "Messages to alert targets.", labels=("outcome",)
        )
        messages.add_metric(("arrived",), sent)
        messages.add_metric(("failed",), failed)
        yield messages
        if not is_database_up:
            yield from self._ingest(((_SERVICE, process.stored()),), {})

    def _ingest(
        self, stored: Iterable[tuple[str, int]], dropped: Mapping[tuple[str, str], int]
    ) -> Iterator[Metric]:
        reports = CounterMetricFamily("edgekit_fleet_reports", "Reports stored.", labels=("worker",))
        for worker, count in stored:
            reports.add_metric((worker,), count)
        yield reports
        lost = CounterMetricFamily(
            "edgekit_fleet_dropped_messages",
            "Messages that were left out, by reason.",
            labels=("worker", "reason"),
        )
        for reason, count in sorted(self._process.dropped().items()):
            lost.add_metric((_SERVICE, reason), count)
        for (worker, reason), count in sorted(dropped.items()):
            lost.add_metric((worker, reason), count)
        yield lost

    def _of_fleet(self, found: Figures) -> Iterator[Metric]:
        yield from self._ingest(
            ((_SERVICE, self._process.stored()), *((name, stored) for name, _, stored in found.workers)),
            found.dropped,
        )
        for name, help_text, value in (
            ("is_frozen", "Whether an operator froze the fleet.", found.is_frozen),
            ("outbox_orders", "Orders that the broker has not confirmed yet.", found.outbox),
            ("alert_messages_waiting", "Messages that no target has taken yet.", found.messages_waiting),
            ("workers_hearing", "Workers that take reports in.", sum(hears for _, hears, _ in found.workers)),
        ):
            yield GaugeMetricFamily(f"edgekit_fleet_{name}", help_text, value=float(value))
        yield _gauge("edgekit_fleet_devices", "Devices in service.", "state", _only(found.devices, *_STATES))
        yield _gauge(
            "edgekit_fleet_devices_troubled",
            "Devices that report a condition, refuse a release, or are copies.",
            "what",
            _only(found.devices, "troubled", "copied"),
        )
        standing = GaugeMetricFamily(
            "edgekit_fleet_alerts", "Alerts that stand.", labels=("kind", "severity")
        )
        for labels, count in sorted(found.alerts.items()):
            standing.add_metric(labels, count)
        yield standing

    def _of_rollouts(self, found: Figures) -> Iterator[Metric]:
        yield _gauge("edgekit_fleet_rollouts", "Rollouts ever started.", "status", found.rollouts)
        stage = GaugeMetricFamily(
            "edgekit_rollout_stage", "The open stage, from 1.", labels=("rollout", "release", "status")
        )
        stages = GaugeMetricFamily("edgekit_rollout_stages", "Stages of it.", labels=("rollout", "release"))
        devices = GaugeMetricFamily(
            "edgekit_rollout_devices", "Its devices.", labels=("rollout", "release", "state")
        )
        violated = GaugeMetricFamily(
            "edgekit_rollout_gate_violated",
            "Whether a gate is violated.",
            labels=("rollout", "release", "gate"),
        )
        for one in found.active:
            stage.add_metric((one.label, one.release, one.status), one.stage)
            stages.add_metric((one.label, one.release), one.stages)
            for state, count in sorted(one.members.items()):
                devices.add_metric((one.label, one.release, state), count)
            for gate, outcome in one.gates.items():
                violated.add_metric((one.label, one.release, gate), outcome.value == "violated")
        yield from (stage, stages, devices, violated)

    def _of_releases(self, found: Figures) -> Iterator[Metric]:
        names = ("deployment", "release", "profile")
        counters = {
            "windows": CounterMetricFamily(
                "edgekit_release_windows", "Windows that devices sent.", labels=names
            ),
            "requests": CounterMetricFamily(
                "edgekit_release_requests", "Requests that it answered.", labels=names
            ),
            "errors": CounterMetricFamily("edgekit_release_errors", "Of them, errors.", labels=names),
            "infer_s": CounterMetricFamily(
                "edgekit_release_infer_seconds", "Time that its engine took for them.", labels=names
            ),
        }
        devices = GaugeMetricFamily("edgekit_release_devices", "Devices that ever ran it.", labels=names)
        for one in found.releases:
            labels = (one.deployment, one.release, one.profile)
            devices.add_metric(labels, one.devices)
            for name, counter in counters.items():
                counter.add_metric(labels, self._rising((name, *labels), float(getattr(one, name))))
        yield from (*counters.values(), devices)
        yield _gauge(
            "edgekit_release_drifted_devices", "Devices whose inputs drifted.", "release", found.drifted
        )

    def _rising(self, key: tuple[str, ...], value: float) -> float:
        """`value` with what has gone from the database since this process began to count."""
        before, gone = self._highest.get(key, (value, 0.0))
        gone += max(0.0, before - value)
        self._highest[key] = (value, gone)
        return value + gone


_STATES = ("online", "offline", "never_heard")


def _only(counts: Mapping[str, int], *names: str) -> Mapping[str, int]:
    return {name: counts[name] for name in names}


def _gauge(name: str, help_text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    made = GaugeMetricFamily(name, help_text, labels=(label,))
    for key, value in sorted(values.items()):
        made.add_metric((key,), value)
    return made
