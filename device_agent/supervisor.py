"""The process that stays up: ties link, orders, updates, workers and telemetry together.

Always true
 1. It never imports numpy or an engine, and never opens a bundle before its digest was checked.
 2. Serving the last good model waits for nothing but its own worker: not for the broker, nor for the fleet.
 3. It ends on SIGTERM or Ctrl-C with every request begun answered, its status published, and exit code 0.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from device_agent import collector, durable, enrol, front, health, identity, log, probe
from device_agent.collector import Collector
from device_agent.folder import StateFolder
from device_agent.front import Front
from device_agent.identity import DeviceIdentity
from device_agent.link import Link, LinkHooks
from device_agent.orderbook import OrderBook
from device_agent.probe import Platform
from device_agent.process import Served
from device_agent.reporter import Numbers, Reporter, Vitals
from device_agent.spool import Spool
from device_agent.storage import Storage
from device_agent.update.events import Acknowledged, Ordered
from device_agent.update.fetch import Source
from device_agent.update.reconciler import Reconciler
from edgekit import __version__
from edgekit.errors import UsageError
from edgekit.manifest import FORMAT
from edgekit.wire import messages, topics
from edgekit.wire.enrolment import EnrolmentFile
from edgekit.wire.messages import DeploymentReport, Order, Reported

TICK_S = 0.5


@dataclass(frozen=True)
class Settings:
    """What `edgekit agent run` was asked for. `profile` None means: find it."""

    state: StateFolder
    http: str
    enrolment: EnrolmentFile | None
    profile: str | None
    window_s: float
    log_json: bool


class AgentStatus(msgspec.Struct, frozen=True):
    """`status.json`: the device as it last described itself, for `edgekit agent status`."""

    reported: Reported
    http: str
    is_online: bool
    written: datetime


async def run(settings: Settings) -> None:
    """The agent, until it is told to end.

    Raises: UsageError and other EdgeKitErrors for what a user can mend.
    """
    stopping = _stop_on_signals()
    _allow_descriptors()
    lock = settings.state.lock()
    try:
        listener = front.listen(settings.http)
        platform = await probe.find(settings.profile)
        for engine, trouble in platform.broken.items():
            log.trouble("an engine is installed but does not work", engine=engine, why=trouble)
        known = identity.load(settings.state)
        if known is None:
            known = await _or_stop(_enrol(settings, platform), stopping)
            if known is None:
                listener.close()
                return
        elif settings.enrolment is not None and settings.enrolment.fleet != known.file.fleet:
            log.trouble(
                "this state folder is enrolled with another fleet; --enrolment is not used",
                fleet=known.file.fleet,
            )
        agent = Agent(settings, platform, known, listener)
        await agent.run(stopping)
    finally:
        os.close(lock)


async def _enrol(settings: Settings, platform: Platform) -> DeviceIdentity:
    if settings.enrolment is None:
        raise UsageError(
            f"{settings.state.root}: this device has not joined a fleet yet; give --enrolment FILE, which"
            " 'edgekit fleet enroll' makes"
        )
    return await enrol.enrol(settings.state, settings.enrolment, platform.profile)


async def _or_stop(
    work: Coroutine[Any, Any, DeviceIdentity], stopping: asyncio.Event
) -> DeviceIdentity | None:
    """The work's result, or None if the agent was told to end first."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def _allow_descriptors() -> None:
    """As many open files as the system lets this process have; every connection is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Agent:
    """One running agent. Everything here happens in the event loop's thread."""

    def __init__(
        self, settings: Settings, platform: Platform, known: DeviceIdentity, listener: socket.socket
    ) -> None:
        state = settings.state
        self._settings = settings
        self._platform = platform
        self._file = known.file
        self._device = known.answer.device
        self._boot = identity.next_boot(state, known.answer.enrolment)
        self._numbers = Numbers()
        self._orders = OrderBook(state, known.for_orders(platform.profiles), known.file.order_keys)
        self._collector = Collector()
        self._cpu = health.CpuMeter()
        self._is_reporting_due = False
        self._storage = Storage(self._describe)
        stamp = f"{__version__} {sorted(platform.engines.items())}"
        source = Source(
            artifact_url=known.file.artifact_url,
            allowed_hosts=known.file.allowed_hosts,
            publisher_keys=known.file.publisher_keys,
            credential=known.answer.credential,
        )
        names = tuple(known.file.deployments)
        self._reconcilers = {name: self._make_reconciler(name, names, source, stamp) for name in names}
        self._workers = {name: reconciler.workers for name, reconciler in self._reconcilers.items()}
        self._front = Front(listener, self._workers, self._metrics)
        hooks = LinkHooks(self._link_up, self._describe, self._heard)
        self._link = Link(known.file.broker, self._device, self._boot, hooks)
        self._spool = Spool(state.spool)
        self._reporter = Reporter(
            self._device,
            self._boot,
            self._numbers,
            self._spool,
            window_s=settings.window_s,
            close_window=lambda: self._collector.close_window(self._loaded().items()),
            vitals=self._vitals,
            send=lambda payload: self._link.publish(topics.TELEMETRY, payload),
        )

    def _make_reconciler(self, name: str, names: tuple[str, ...], source: Source, stamp: str) -> Reconciler:
        folder = self._settings.state.deployment(name)
        served = Served(
            deployment=name,
            deployments=names,
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
            changed=self._describe,
            counted=self._collector.add,
            died=lambda digest: self._collector.add(collector.death(name, digest)),
        )

    def _given_back(self, descriptor: int, prefix: bytes) -> None:
        self._front.given_back(descriptor, prefix)

    async def run(self, stopping: asyncio.Event) -> None:
        log.event(
            "agent started", device=self._device, profile=self._platform.profile, http=self._settings.http,
            engines=",".join(f"{name} {version}" for name, version in self._platform.engines.items()) or "none",
            incarnation=self._boot.incarnation, pid=os.getpid(),
        )  # fmt: skip
        if self._orders.order is not None:
            self._follow(self._orders.order)
        self._front.start()
        self._link.start()
        tasks = [asyncio.create_task(reconciler.run()) for reconciler in self._reconcilers.values()]
        tasks.append(asyncio.create_task(self._tick()))
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
        self._spool.close()
        with contextlib.suppress(OSError):
            self._write_status(self._reported())
        log.event("agent ended")

    # -- what happens --------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for workers in self._workers.values():
                workers.tick()
            if self._is_reporting_due and self._link.is_up:
                self._publish_description()
            self._reporter.tick()

    def _heard(self, leaf: str, payload: bytes) -> None:
        if leaf == topics.DESIRED and payload:
            order = self._orders.receive(payload)
            if order is not None:
                self._follow(order)
            self._describe()
        elif leaf == topics.ACK:
            for digest in self._reporter.acknowledged(payload):
                for reconciler in self._reconcilers.values():
                    reconciler.tell(Acknowledged(digest))

    def _follow(self, order: Order) -> None:
        if order.options.window_s is not None:
            self._reporter.window_s = order.options.window_s
        for name, reconciler in self._reconcilers.items():
            reconciler.tell(Ordered(order.counter, order.deployments.get(name), order.options))

    # -- what is told --------------------------------------------------------------------------------------------

    def _link_up(self) -> None:
        self._publish_description()
        self._reporter.link_up()

    def _describe(self) -> None:
        """Something changed: describe the device anew, once for all changes of this turn of the loop."""
        if not self._is_reporting_due:
            self._is_reporting_due = True
            asyncio.get_running_loop().call_soon(self._publish_description)

    def _publish_description(self) -> None:
        reported = self._reported()
        self._is_reporting_due = not self._link.publish(
            topics.REPORTED, messages.encode(reported), retain=True
        )
        self._write_status(reported)

    def _reported(self) -> Reported:
        deployments: dict[str, DeploymentReport] = {
            name: reconciler.report() for name, reconciler in self._reconcilers.items()
        }
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
            labels=self._file.labels,
            refused=self._orders.refused,
        )

    def _write_status(self, reported: Reported) -> None:
        status = AgentStatus(reported, self._settings.http, self._link.is_up, datetime.now(UTC))
        durable.write(self._settings.state.status, msgspec.json.encode(status))

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
