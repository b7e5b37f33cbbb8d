"""The process that stays up: ties link, orders, updates, workers and telemetry together.

Always true
 1. It never imports numpy or an engine, and never opens a bundle before its digest was checked.
 2. Serving the last good model waits for nothing but its own worker: not for the broker, nor for the fleet.
 3. It ends on SIGTERM or Ctrl-C with every request begun answered, its status published, and exit code 0.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from device_agent import collector, identity, log, spending
from device_agent.collector import Collector
from device_agent.commands.acts import Acts
from device_agent.commands.desk import Desk, Speaker, extended
from device_agent.commands.measuring import Bench
from device_agent.conditions import Conditions
from device_agent.config import Settings, Who
from device_agent.front import Front
from device_agent.identity import Start
from device_agent.link import Link, LinkHooks
from device_agent.listen import Listener
from device_agent.orderbook import OrderBook
from device_agent.passing import Passer
from device_agent.probe import Platform
from device_agent.process import Served
from device_agent.renewal import Renewal
from device_agent.reporter import Numbers, Reporter
from device_agent.samples import keeper
from device_agent.shadow.keeper import Means
from device_agent.shadow.shadows import Shadows
from device_agent.sources.keeper import Ground, SourceKeeper
from device_agent.spool import Spool
from device_agent.status import StatusFile
from device_agent.storage import Storage
from device_agent.telling import Subject, Telling
from device_agent.tuf.lookup import Lookup
from device_agent.tuf.watch import Watch
from device_agent.update.events import Acknowledged, Event, LinkDown, LinkUp, Ordered
from device_agent.update.fetch import Source
from device_agent.update.reconciler import Reconciler
from device_agent.watching import Watching
from device_agent.workers import Workers
from edgekit import __version__
from edgekit.trust.orderkeys import OrderKeys
from edgekit.wire import topics
from edgekit.wire.messages import Order

TICK_S = 0.5


class Agent:
    """One running agent. Everything here happens in the event loop's thread."""

    @classmethod
    async def made(
        cls,
        settings: Settings,
        platform: Platform,
        who: Who,
        listeners: Sequence[Listener],
        storage: Storage,
    ) -> "Agent":
        """An agent whose start is counted, with the newest order read."""
        start = await storage.do(lambda: identity.begin(settings.state, who.identity.answer.enrolment))
        agent = cls(settings, platform, who, listeners, storage=storage, start=start)
        await agent._load()
        return agent

    def __init__(
        self,
        settings: Settings,
        platform: Platform,
        who: Who,
        listeners: Sequence[Listener],
        *,
        storage: Storage,
        start: Start,
    ) -> None:
        state, known = settings.state, who.identity
        self._storage = storage
        self.conditions = Conditions()
        self._clock = who.clock
        self._status = StatusFile(state, storage)
        self._start = start
        self._settings = settings
        self._platform = platform
        self._http = ", ".join(listener.url for listener in listeners)
        self._file = known.file
        self._device = known.answer.device
        self._boot = start.boot
        self._numbers = Numbers(start.last_seq)
        me = known.for_orders(platform.profiles)
        self._orders = OrderBook(
            state, storage, self.conditions, me, order_keys=known.file.order_keys, clock=who.clock
        )
        self._newest_order: bytes | None = None
        self._order_came = asyncio.Event()
        self._collector = Collector()
        self._lookup = Lookup(state.metadata, known.file, who.clock, self._order_keys_heard)
        self._watch = Watch(self._lookup)
        self._spending = spending.made(settings, storage, who, self.conditions)
        self._lookup.traffic = self._spending.traffic
        self._watching = Watching(state, storage, who.clock)
        self._source = Source(
            known.file.artifact_url, who.access, self._lookup.check, self._spending.model_waits
        )
        self._samples = keeper.made(state, storage, who, self._spending.may_send)
        self._passer = Passer(settings.file.guard)
        self._names = tuple(known.file.deployments)
        self._reconcilers: dict[str, Reconciler] = {}
        self._workers: dict[str, Workers] = {}
        means = Means(self._source, storage, platform.overlap, self._collector.add, self._describe)
        self._shadows = Shadows(state, means)
        self._running: set[asyncio.Task[None]] = set()
        self._front = Front(listeners, self._names, self._workers, self._metrics, settings.secured)
        self._renewal = Renewal(
            state, storage, self.conditions, who.access, who.clock, known=known, key=who.key
        )
        hooks = LinkHooks(self._link_up, self._link_down, self._heard, self._renewal.nudge)
        self._link = Link(known.file.broker, who.access, self._device, self._boot, hooks)
        self._sources = SourceKeeper(
            Ground.of(
                settings, self._device, storage, self.conditions,
                connect=lambda descriptor: self._given_back(descriptor, b""), changed=self._describe,
            )
        )  # fmt: skip
        subject = Subject(
            device=self._device,
            boot=self._boot,
            labels=known.file.labels,
            http=self._http,
            settings=settings,
            platform=platform,
            clock=who.clock,
            conditions=self.conditions,
            orders=self._orders,
            reconcilers=self._reconcilers,
            workers=self._workers,
            traffic=self._spending.traffic,
            drift=self._watching.tracks,
            shadows=self._shadows,
            sources=self._sources,
        )
        self.restarting = asyncio.Event()
        self._bench = Bench(state, self._source, platform.isa, settings.account)
        self._desk = Desk(
            state,
            storage,
            self.conditions,
            who.clock,
            identity=lambda: extended(me, tuple(self._reconcilers)),
            keys=lambda: self._orders.keys,
            speaker=Speaker(
                self._device,
                self._boot,
                self._numbers,
                lambda payload: self._link.publish(topics.RESULT, payload),
            ),
            act=Acts(state, self._reconcilers, self.restarting.set, self._bench).act,
        )
        self._telling = Telling(subject, self._numbers, self._link, self._status)
        self._spool = Spool(state.spool)
        self._reporter = Reporter(
            self._device,
            self._boot,
            self._numbers,
            storage,
            self._spool,
            window_s=settings.window_s,
            close_window=lambda: self._samples.judged(
                self._telling.judged(self._collector.close_window(self._telling.loaded().items()))
            ),
            vitals=self._telling.vitals,
            send=lambda payload: self._link.publish(topics.TELEMETRY, payload),
            spaced=self._spending.window_s,
            set_aside=lambda: self.conditions.notice(
                "spool-set-aside", "the spool was damaged and is begun anew; reports in it are lost"
            ),
        )

    async def _load(self) -> None:
        """Read what the disk has, and tell what is wrong with it."""
        await self._status.prepare()
        await self._orders.load()
        for name in dict.fromkeys((*self._names, *self._orders.added)):
            self._add(name)
        await self._desk.load()
        with suppress(OSError):
            # What a measurement left that was cut off; the next one takes it away otherwise.
            await self._bench.clear()
        self.conditions.changed = self._telling.describe
        self._storage.changed = self._storage_changed
        if self._start.error is not None:
            self._storage.note(self._start.error)
        self._storage_changed()
        if self._start.damaged:
            self.conditions.notice(
                "boot-damaged", f"{', '.join(self._start.damaged)} was damaged and set aside"
            )

    def _add(self, name: str) -> Reconciler:
        """A deployment from now on."""
        folder = self._settings.state.deployment(name)
        served = Served(
            deployment=name,
            deployments=self._names,
            state=folder.state,
            private=self._settings.private,
            cache=folder.cache,
            log_json=self._settings.log_json,
            given_back=self._given_back,
            sampling=lambda: self._samples.sampling(name),
            sampled=lambda descriptor: self._samples.take(name, descriptor),
            passed_over=self._samples.passed_over,
            account=self._settings.account,
            guard=self._settings.file.guard,
            passer=self._passer,
        )
        made = Reconciler(
            folder,
            served,
            self._source,
            self._storage,
            overlap=self._platform.overlap,
            stamp={"edgekit": __version__, **self._platform.engines},
            serves_despite=self._settings.serves_despite_change,
            changed=self._telling.describe,
            counted=self._collector.add,
            died=lambda digest: self._collector.add(collector.death(name, digest)),
        )
        self._reconcilers[name] = made
        self._workers[name] = made.workers
        self._shadows.add(name, served, made.workers)
        return made

    def _describe(self) -> None:
        self._telling.describe()

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
        for work in (
            self._tick(),
            self._take_orders(),
            self._renewal.run(),
            self._watch.run(),
            self._desk.run(),
            self._samples.run(),
            self._sources.run(),
        ):
            self._run(work)
        for follower in (*self._reconcilers.values(), *self._shadows):
            self._run(follower.run())
        ends = [asyncio.create_task(event.wait()) for event in (stopping, self.restarting)]
        try:
            # A task that ends by itself has failed: better to end, and be started again, than to go on half.
            while not any(task.done() for task in (*ends, *self._running)):
                await asyncio.wait([*self._running, *ends], return_when=asyncio.FIRST_COMPLETED, timeout=1)
        finally:
            for end in ends:
                end.cancel()
            tasks = list(self._running)
            await self._end(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.add(asyncio.create_task(work))

    async def _end(self, tasks: list["asyncio.Task[None]"]) -> None:
        log.event("agent ending")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._sources.close()
        await asyncio.gather(self._front.close(), *(workers.close() for workers in self._workers.values()))
        self._reporter.close_window()
        self._reporter.tick()
        await self._link.stop()
        await self._spending.save()
        await self._watching.save()
        await self._reporter.close()
        await self._storage.do(self._spool.close)
        await self._telling.end()
        log.event("agent ended")

    # -- what happens --------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for workers in self._workers.values():
                workers.tick()
            self._shadows.tick()
            self._sources.tick()
            self._telling.tick()
            self._spending.tick()
            self._watching.tick()
            self._reporter.tick()
            self._desk.tick()
            if self._orders.is_late_no_more:
                self._order_came.set()

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
            if self._orders.lacks_key:
                self._watch.nudge()
            if order is not None or not waiting:
                self._telling.describe()

    async def _order_keys_heard(self, listed: OrderKeys | None) -> None:
        if await self._orders.trust(listed) and self._orders.lacks_key:
            self._order_came.set()

    def _storage_changed(self) -> None:
        """The disk fails or works again: say so, and take up what waited for it."""
        state = self._storage.condition
        self.conditions.choose(
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
        elif leaf == topics.COMMAND and payload:
            self._desk.heard(payload)
        elif leaf == topics.ACK:
            self._desk.acknowledged(payload)
            for digest in self._reporter.acknowledged(payload):
                self._tell_all(Acknowledged(digest))

    def _follow(self, order: Order) -> None:
        self._spending.is_forced = order.options.despite_budget
        self._samples.follow(order)
        if order.options.window_s is not None:
            self._reporter.window_s = order.options.window_s
        for name in order.added:
            if name not in self._reconcilers:
                log.event("deployment added", deployment=name)
                added = self._add(name)
                added.tell(LinkUp(asyncio.get_running_loop().time()))
                self._run(added.run())
                self._run(self._shadows.of(name).run())
        for name, reconciler in self._reconcilers.items():
            reconciler.tell(Ordered(order.counter, order.deployments.get(name), order.options))
        self._shadows.follow(order)

    def _link_up(self) -> None:
        self._tell_all(LinkUp(asyncio.get_running_loop().time()))
        self._telling.publish()
        self._reporter.link_up()
        self._desk.link_up()
        self._samples.nudge()

    def _link_down(self) -> None:
        self._tell_all(LinkDown(asyncio.get_running_loop().time()))
        self._telling.describe()

    def _tell_all(self, event: Event) -> None:
        for reconciler in self._reconcilers.values():
            reconciler.tell(event)

    def _metrics(self) -> str:
        counted = collector.prometheus(self._collector.totals, self._telling.loaded())
        return counted + self._telling.prometheus() + self._spending.prometheus() + self._samples.prometheus()
