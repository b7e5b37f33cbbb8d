"""The process that stays up: ties link, orders, updates, workers and telemetry together.

Always true
 1. It never imports numpy or an engine, and never opens a bundle before its digest was checked.
 2. Serving the last good model waits for nothing but its own worker: not for the broker, nor for the fleet.
 3. It ends on SIGTERM or Ctrl-C with every request begun answered, its status published, and exit code 0.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from device_agent import collector, health, identity, log
from device_agent.collector import Collector
from device_agent.conditions import Conditions
from device_agent.folder import StateFolder
from device_agent.front import Front
from device_agent.identity import DeviceIdentity, Start
from device_agent.link import Link, LinkHooks
from device_agent.listen import Credentials, Listener
from device_agent.orderbook import OrderBook
from device_agent.probe import Platform
from device_agent.process import Served
from device_agent.reporter import Numbers, Reporter, Vitals
from device_agent.spool import Spool
from device_agent.status import HEARTBEAT_S, AgentStatus, StatusFile
from device_agent.storage import Storage
from device_agent.update.events import Acknowledged, Event, LinkDown, LinkUp, Ordered, Stamp
from device_agent.update.fetch import Source
from device_agent.update.reconciler import Reconciler
from edgekit import __version__
from edgekit.manifest import FORMAT
from edgekit.wire import messages, topics
from edgekit.wire.messages import DeploymentReport, Order, Reported

TICK_S = 0.5


@dataclass(frozen=True)
class Settings:
    """What `edgekit agent run` was asked for. `profile` None means: find it. `private` is no business of workers."""

    state: StateFolder
    http: tuple[str, ...]
    secured: Credentials | None
    enrolment: Path | None
    profile: str | None
    window_s: float
    log_json: bool
    serves_despite_change: bool = False
    private: tuple[Path, ...] = ()


class Agent:
    """One running agent. Everything here happens in the event loop's thread."""

    @classmethod
    async def made(
        cls,
        settings: Settings,
        platform: Platform,
        known: DeviceIdentity,
        listeners: Sequence[Listener],
        storage: Storage,
    ) -> "Agent":
        """An agent whose start is counted, with the newest order read."""
        start = await storage.do(lambda: identity.begin(settings.state, known.answer.enrolment))
        agent = cls(settings, platform, known, listeners, storage=storage, start=start)
        await agent._load()
        return agent

    def __init__(
        self,
        settings: Settings,
        platform: Platform,
        known: DeviceIdentity,
        listeners: Sequence[Listener],
        *,
        storage: Storage,
        start: Start,
    ) -> None:
        state = settings.state
        self._storage = storage
        self._conditions = Conditions()
        self._status = StatusFile(state, storage)
        self._start = start
        self._settings = settings
        self._platform = platform
        self._http = ", ".join(listener.url for listener in listeners)
        self._file = known.file
        self._device = known.answer.device
        self._boot = start.boot
        self._numbers = Numbers(start.last_seq)
        self._orders = OrderBook(
            state, storage, self._conditions, known.for_orders(platform.profiles), known.file.order_keys
        )
        self._newest_order: bytes | None = None
        self._order_came = asyncio.Event()
        self._collector = Collector()
        self._cpu = health.CpuMeter()
        self._is_describing = False
        self._is_report_due = False
        self._status_written = 0.0
        self._writing: set[asyncio.Task[None]] = set()
        stamp = {"edgekit": __version__, **platform.engines}
        source = Source(
            artifact_url=known.file.artifact_url,
            allowed_hosts=known.file.allowed_hosts,
            publisher_keys=known.file.publisher_keys,
            credential=known.answer.credential,
        )
        names = tuple(known.file.deployments)
        self._reconcilers = {name: self._make_reconciler(name, names, source, stamp) for name in names}
        self._workers = {name: reconciler.workers for name, reconciler in self._reconcilers.items()}
        self._front = Front(listeners, self._workers, self._metrics, settings.secured)
        hooks = LinkHooks(self._link_up, self._link_down, self._heard)
        self._link = Link(known.file.broker, self._device, self._boot, hooks)
        self._spool = Spool(state.spool)
        self._reporter = Reporter(
            self._device,
            self._boot,
            self._numbers,
            storage,
            self._spool,
            window_s=settings.window_s,
            close_window=lambda: self._collector.close_window(self._loaded().items()),
            vitals=self._vitals,
            send=lambda payload: self._link.publish(topics.TELEMETRY, payload),
            set_aside=lambda: self._conditions.notice(
                "spool-set-aside", "the spool was damaged and is begun anew; reports in it are lost"
            ),
        )

    async def _load(self) -> None:
        """Read what the disk has, and tell what is wrong with it."""
        await self._status.prepare()
        await self._orders.load()
        self._conditions.changed = self._describe
        self._storage.changed = self._storage_changed
        if self._start.error is not None:
            self._storage.note(self._start.error)
        self._storage_changed()
        if self._start.damaged:
            self._conditions.notice(
                "boot-damaged", f"{', '.join(self._start.damaged)} was damaged and set aside"
            )

    def _make_reconciler(self, name: str, names: tuple[str, ...], source: Source, stamp: Stamp) -> Reconciler:
        folder = self._settings.state.deployment(name)
        served = Served(
            deployment=name,
            deployments=names,
            state=folder.state,
            private=self._settings.private,
            cache=folder.cache,
            log_json=self._settings.log_json,
            given_back=self._given_back,
        )
        return Reconciler(
            folder,
            served,
            source,
            self._storage,
            overlap=self._platform.overlap,
            stamp=stamp,
            serves_despite=self._settings.serves_despite_change,
            changed=self._describe,
            counted=self._collector.add,
            died=lambda digest: self._collector.add(collector.death(name, digest)),
        )

    def _given_back(self, descriptor: int, prefix: bytes) -> None:
        self._front.given_back(descriptor, prefix)

    async def run(self, stopping: asyncio.Event) -> None:
        log.event(
            "agent started", device=self._device, profile=self._platform.profile, http=self._http,
            engines=",".join(f"{name} {version}" for name, version in self._platform.engines.items()) or "none",
            incarnation=self._boot.incarnation, pid=os.getpid(),
        )  # fmt: skip
        if self._orders.order is not None:
            self._follow(self._orders.order)
        self._front.start()
        self._link.start()
        tasks = [asyncio.create_task(reconciler.run()) for reconciler in self._reconcilers.values()]
        tasks += [asyncio.create_task(self._tick()), asyncio.create_task(self._take_orders())]
        ended = asyncio.create_task(stopping.wait())
        try:
            # A task that ends by itself has failed: better to end, and be started again, than to go on half.
            await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            await self._end(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _end(self, tasks: list["asyncio.Task[None]"]) -> None:
        log.event("agent ending")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.gather(self._front.close(), *(workers.close() for workers in self._workers.values()))
        self._reporter.close_window()
        self._reporter.tick()
        await self._link.stop()
        await self._reporter.close()
        await self._storage.do(self._spool.close)
        await self._status.end(self._status_now(self._reported()))
        log.event("agent ended")

    # -- what happens --------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for workers in self._workers.values():
                workers.tick()
            if self._is_report_due and self._link.is_up:
                self._describe()
            self._reporter.tick()
            now = asyncio.get_running_loop().time()
            if self._status.is_in_memory and now - self._status_written >= HEARTBEAT_S:
                self._write_status(self._reported())

    async def _take_orders(self) -> None:
        """Follow the newest order that was heard, one at a time; once more after the disk recovered."""
        while True:
            await self._order_came.wait()
            self._order_came.clear()
            envelope, self._newest_order = self._newest_order, None
            waiting = envelope is None
            order = await (self._orders.try_again() if envelope is None else self._orders.receive(envelope))
            if order is not None:
                self._follow(order)
            if order is not None or not waiting:
                self._describe()

    def _storage_changed(self) -> None:
        """The disk fails or works again: say so, and take up what waited for it."""
        state = self._storage.condition
        self._conditions.choose(
            ("storage-full", "storage-read-only", "storage-damaged"),
            f"storage-{state}" if state else "",
            self._storage.detail,
        )
        if not state and self._orders.is_waiting:
            self._order_came.set()

    def _heard(self, leaf: str, payload: bytes) -> None:
        if leaf == topics.DESIRED and payload:
            self._newest_order = payload
            self._order_came.set()
        elif leaf == topics.ACK:
            for digest in self._reporter.acknowledged(payload):
                self._tell_all(Acknowledged(digest))

    def _follow(self, order: Order) -> None:
        if order.options.window_s is not None:
            self._reporter.window_s = order.options.window_s
        for name, reconciler in self._reconcilers.items():
            reconciler.tell(Ordered(order.counter, order.deployments.get(name), order.options))

    # -- what is told --------------------------------------------------------------------------------------------

    def _link_up(self) -> None:
        self._tell_all(LinkUp(asyncio.get_running_loop().time()))
        self._publish_description()
        self._reporter.link_up()

    def _link_down(self) -> None:
        self._tell_all(LinkDown(asyncio.get_running_loop().time()))
        self._describe()

    def _tell_all(self, event: Event) -> None:
        for reconciler in self._reconcilers.values():
            reconciler.tell(event)

    def _describe(self) -> None:
        """Something changed: describe the device anew, once for all changes of this turn of the loop."""
        if not self._is_describing:
            self._is_describing = True
            asyncio.get_running_loop().call_soon(self._publish_description)

    def _publish_description(self) -> None:
        """To the fleet, now or when the link is up again; to the status file in any case."""
        self._is_describing = False
        reported = self._reported()
        self._is_report_due = not self._link.publish(topics.REPORTED, messages.encode(reported), retain=True)
        self._write_status(reported)

    def _reported(self) -> Reported:
        deployments: dict[str, DeploymentReport] = {}
        for name, reconciler in self._reconcilers.items():
            deployments[name] = reconciler.report()
            self._conditions.hold(name, reconciler.conditions())
        return Reported(
            device=self._device,
            boot=self._boot,
            seq=self._numbers.take(),
            order_counter=self._orders.counter,
            deployments=deployments,
            profile=self._platform.profile,
            isa=self._platform.isa,
            engines=self._platform.engines,
            agent_version=__version__,
            bundle_format=FORMAT,
            free_bytes=health.free_bytes(self._settings.state.root),
            free_memory_mb=health.free_memory_mb(),
            overlap=self._platform.overlap,
            labels=self._file.labels,
            refused=self._orders.refused,
            conditions=self._conditions.present(),
        )

    def _write_status(self, reported: Reported) -> None:
        loop = asyncio.get_running_loop()
        self._status_written = loop.time()
        task = loop.create_task(self._status.write(self._status_now(reported)))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _status_now(self, reported: Reported) -> AgentStatus:
        return AgentStatus(reported, self._http, self._link.is_up, datetime.now(UTC))

    def _loaded(self) -> dict[str, str | None]:
        """The digest that each deployment's serving worker loaded."""
        return {
            name: workers.serving.ready.digest
            if workers.serving is not None and workers.serving.ready is not None
            else None
            for name, workers in self._workers.items()
        }

    def _metrics(self) -> str:
        return collector.prometheus(self._collector.totals, self._loaded())

    def _vitals(self) -> Vitals:
        pids = [workers.serving.pid for workers in self._workers.values() if workers.serving is not None]
        return Vitals(
            cpu_percent=self._cpu.percent(),
            memory_mb=health.tree_memory_mb([os.getpid(), *pids]),
            temperature_c=health.temperature_c(),
            clock_ok=self._orders.clock_is_plausible(),
        )
