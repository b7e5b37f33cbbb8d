"""What the device says of itself: its description to the fleet, its status on disk, its vitals in a report."""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec import structs

from device_agent import drift, health
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.config import Settings
from device_agent.drift import Tracks
from device_agent.link import Link
from device_agent.orderbook import OrderBook
from device_agent.probe import Platform
from device_agent.reporter import Numbers, Vitals
from device_agent.shadow.shadows import Shadows
from device_agent.sources.keeper import SourceKeeper
from device_agent.status import HEARTBEAT_S, AgentStatus, StatusFile
from device_agent.traffic import Traffic
from device_agent.update.reconciler import Reconciler
from device_agent.workers import Workers
from edgekit import __version__
from edgekit.manifest import FORMAT
from edgekit.wire import messages, topics
from edgekit.wire.messages import Boot, DeploymentReport, DeploymentWindow, Reported


@dataclass(frozen=True)
class Subject:
    """What is told of. `reconcilers` and `workers` are the supervisor's own, by deployment, and grow with it."""

    device: str
    boot: Boot
    labels: dict[str, str]
    http: str
    settings: Settings
    platform: Platform
    clock: Clock
    conditions: Conditions
    orders: OrderBook
    reconcilers: Mapping[str, Reconciler]
    workers: Mapping[str, Workers]
    shadows: Shadows
    sources: SourceKeeper
    traffic: Traffic
    drift: Tracks


class Telling:
    """Describes the subject when something changed, once for all changes of one turn of the loop."""

    def __init__(self, subject: Subject, numbers: Numbers, link: Link, status: StatusFile) -> None:
        self._of = subject
        self._numbers = numbers
        self._link = link
        self._status = status
        self._cpu = health.CpuMeter()
        self._drift, self._judged_at = subject.drift, time.monotonic()
        self._is_describing = False
        self._is_due = False
        self._status_written = 0.0
        self._writing: set[asyncio.Task[None]] = set()

    def describe(self) -> None:
        """Something changed: describe the device anew, once for all changes of this turn of the loop."""
        if not self._is_describing:
            self._is_describing = True
            asyncio.get_running_loop().call_soon(self.publish)

    def publish(self) -> None:
        """To the fleet, now or when the link is up again; to the status file in any case."""
        self._is_describing = False
        reported = self._reported()
        self._is_due = not self._link.publish(topics.REPORTED, messages.encode(reported), retain=True)
        self._write_status(reported)

    def tick(self) -> None:
        """One turn of the supervisor's clock: what could not be told, the heartbeat, and a clock not to be believed."""
        if self._is_due and self._link.is_up:
            self.describe()
        now = asyncio.get_running_loop().time()
        if self._status.is_in_memory and now - self._status_written >= HEARTBEAT_S:
            self._write_status(self._reported())
        if doubt := self._of.clock.doubt():
            if not self._of.conditions.stands("clock-doubtful"):
                self._of.conditions.set("clock-doubtful", doubt)
        else:
            self._of.conditions.clear("clock-doubtful")

    async def end(self) -> None:
        await self._status.end(self._status_now(self._reported()))

    def loaded(self) -> dict[str, str | None]:
        """The digest that each deployment's serving worker loaded."""
        return {
            name: workers.serving.ready.digest
            if workers.serving is not None and workers.serving.ready is not None
            else None
            for name, workers in self._of.workers.items()
        }

    def judged(self, windows: tuple[DeploymentWindow, ...]) -> tuple[DeploymentWindow, ...]:
        """Windows that were closed, with how far what they met is from what each loaded bundle was judged on."""
        serving = [one.serving.ready for one in self._of.workers.values() if one.serving is not None]
        references = {ready.digest: ready.reference for ready in serving if ready is not None}
        before, self._judged_at = self._judged_at, time.monotonic()
        return self._drift.judged(windows, references, self._judged_at - before)

    def prometheus(self) -> str:
        return drift.prometheus(self._drift.levels)

    def vitals(self) -> Vitals:
        workers = self._of.workers.values()
        pids = [one.serving.pid for one in workers if one.serving is not None] + self._of.sources.pids
        return Vitals(
            cpu_percent=self._cpu.percent(),
            memory_mb=health.tree_memory_mb([os.getpid(), *pids, *self._of.shadows.pids()]),
            temperature_c=health.temperature_c(),
            clock_ok=not self._of.clock.doubt(),
            traffic=self._of.traffic.totals(),
        )

    def _reported(self) -> Reported:
        subject = self._of
        deployments: dict[str, DeploymentReport] = {}
        shadows = subject.shadows.reports()
        for name, reconciler in subject.reconcilers.items():
            deployments[name] = structs.replace(reconciler.report(), shadow=shadows.get(name))
            subject.conditions.hold(name, reconciler.conditions())
        return Reported(
            device=subject.device,
            boot=subject.boot,
            seq=self._numbers.take(),
            order_counter=subject.orders.counter,
            deployments=deployments,
            profile=subject.platform.profile,
            isa=subject.platform.isa,
            engines=subject.platform.engines,
            agent_version=__version__,
            bundle_format=FORMAT,
            free_bytes=health.free_bytes(subject.settings.state.root),
            free_memory_mb=health.free_memory_mb(),
            overlap=subject.platform.overlap,
            labels=subject.labels,
            refused=subject.orders.refused,
            conditions=subject.conditions.present(),
        )

    def _write_status(self, reported: Reported) -> None:
        loop = asyncio.get_running_loop()
        self._status_written = loop.time()
        task = loop.create_task(self._status.write(self._status_now(reported)))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _status_now(self, reported: Reported) -> AgentStatus:
        levels = {name: dict(known) for name, known in self._drift.levels.items() if known}
        return AgentStatus(
            reported,
            self._of.http,
            self._link.is_up,
            datetime.now(UTC),
            drift=levels,
            sources=self._of.sources.told(),
            traffic=self._of.traffic.totals(),
        )
