"""The loop that moves rollouts on and orders out.

Always true
 1. One controller per database: it makes its changes on the connection that holds the lock, and makes none without it.
    A service that does not get the lock, or loses it, waits for it: it follows, and takes over within `FOLLOW_S`.
 2. It remembers nothing that the database does not hold (but caches, which it throws away when it takes over).
 3. Durations are measured in steady time (`clock`); what is due by the loop's own rhythm by the monotonic clock.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from fleet.rules.experiment import NOTE_S
from fleet.rules.retention import DEFAULT, Retention
from fleet.server import collecting, queue, shadowing, trials
from fleet.server.alarms import LOOK_S, Alarms
from fleet.server.clock import Clock, Now
from fleet.server.database import Database
from fleet.server.draining import drain, drain_commands
from fleet.server.link import Link
from fleet.server.lock import Lock, LostError
from fleet.server.placing import Placer
from fleet.server.pruning import Pruning
from fleet.server.rhythm import Rhythm
from fleet.server.stepping import CHUNKS_AT_ONCE, News, Stepper
from fleet.server.store import (
    commands,
    devices,
    events,
    experiments,
    known,
    news,
    orders,
    rollouts,
    settings,
    workers,
)
from fleet.server.store.orders import Issuer

log = logging.getLogger(__name__)

PUBLISH_AT_ONCE = 500
RECONCILE_S = 5.0
# A device gets this long to report that it accepted an order before the order is published again.
PATIENCE_S = 10.0
# How often a service that follows tries to become the controller.
FOLLOW_S = 1.0
_KEEP_TIME_S = 5.0
_RENEW_S = 60.0

# What a database says that is away, locked or full.
_AWAY = (OperationalError, InterfaceError)


class Controller:
    """Ticks in a thread of its own; `tick` can be called by hand in tests, once `follow` has said that it leads."""

    def __init__(
        self,
        database: Database,
        issuer: Issuer,
        link: Link,
        clock: Clock,
        *,
        tick_s: float = 1.0,
        chores: Callable[[], None] = lambda: None,
        on_lead: Callable[[], None] = lambda: None,
        on_lose: Callable[[], None] = lambda: None,
        has_workers: bool = False,
        retention: Retention = DEFAULT,
        samples: Path | None = None,
        alarms: Alarms | None = None,
        took: Callable[[float], object] = lambda _seconds: None,
    ) -> None:
        """With `has_workers` others take the reports in: the fleet hears its devices while one of them does. `took` is
        told how long each tick took; `samples` is where their files are.
        """
        self._database = database
        self._issuer = issuer
        self._link = link
        self._clock = clock
        self._tick_s = tick_s
        self._chores = chores
        self._on_lead, self._on_lose = on_lead, on_lose
        self._has_workers = has_workers
        self._alarms, self._took = alarms, took
        # Since when (steady) the database refuses what the controller would change.
        self.failing_since: float | None = None
        self._hears_since: float | None = None
        self._lock = Lock(database)
        self._pruning = Pruning(self._lock, retention, samples)
        self._is_leading = False
        self._told = ""
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._stepper = Stepper(self._lock, issuer, clock, self._tell)
        self._placer = Placer()
        # The rollouts, under way and queued, for which no queued one could begin.
        self._waited: object = None
        self._rhythm = Rhythm()

    @property
    def is_leading(self) -> bool:
        return self._is_leading

    def start(self) -> None:
        """Take the lock if it is free, and begin; otherwise this service follows."""
        if not self.follow():
            log.warning(
                "another service is the controller of %s; this one serves the API, and takes over when that ends",
                self._database.shown_url,
            )
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._lock.release()

    def wake(self) -> None:
        """Something changed: do not wait for the next tick."""
        self._woken.set()

    def follow(self) -> bool:
        """Become the controller if nobody is; whether this service is."""
        if self._is_leading:
            return True
        try:
            if not self._lock.take():
                self.failing_since = None
                return False
            with self._lock.begin() as connection:
                self._clock.resume(connection)
                self._clock.keep(connection, is_hearing=False)
        except (SQLAlchemyError, LostError) as error:
            self._tell(
                f"the database does not answer: {str(error).strip().partition(chr(10))[0]}; trying again"
            )
            self._lock.release()
            self._fails()
            return False
        self._stepper.forget()
        self._placer, self._waited, self._rhythm = Placer(), None, Rhythm()
        if self._alarms is not None:
            self._alarms.begin_anew()
        self._is_leading = True
        self._told = ""
        log.info("this service is the controller of %s", self._database.shown_url)
        self._on_lead()
        return True

    def reconnected(self) -> None:
        """After the broker was away: who is online is to be heard afresh, and every order is published again."""
        try:
            with self._database.begin() as connection:
                devices.all_offline(connection)
                orders.publish_again(connection)
                news.anyone(connection)
        except SQLAlchemyError:
            log.exception("preparing to publish orders again failed; the reconciler will do it")
        self.wake()

    def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                self._chores()
                if self.follow():
                    began = time.monotonic()
                    self.tick(self._clock.now())
                    self.failing_since = None
                    self._took(time.monotonic() - began)
            except LostError:
                self._fails()
                self._lose()
            except Exception as error:
                self._stepper.forget()
                self._waited = None
                if isinstance(error, _AWAY):
                    self._fails()
                # The same failure again and again is one line, not a traceback a second.
                if self._tell(f"a controller tick failed ({error}); going on with the next"):
                    log.exception("its traceback")
            self._woken.wait(self._tick_s if self._is_leading else FOLLOW_S)

    def _fails(self) -> None:
        # Each tick tries to write until one can: one that only reads proves nothing.
        self._rhythm.again("time")
        if self.failing_since is None:
            self.failing_since = self._clock.now().steady

    def _lose(self) -> None:
        self._is_leading = False
        log.warning("the controller's lock on %s is lost; this service follows", self._database.shown_url)
        self._on_lose()

    def _tell(self, text: str) -> bool:
        """Log a warning, once for as long as it stays the same."""
        if text == self._told:
            return False
        self._told = text
        log.warning("%s", text)
        return True

    def tick(self, now: Now) -> None:
        """One round: rollouts, assignments, orders. Raises: LostError if this service is not the controller any more."""
        with self._lock.begin() as connection:
            self._listen(connection, now)
            if self._rhythm.is_due("time", _KEEP_TIME_S):
                self._clock.keep(connection, is_hearing=self._hears_since is not None)
            is_frozen = settings.is_frozen(connection)
            active = rollouts.active_ids(connection)
            fresh = news.take(connection)
            if fresh is None or fresh:
                events.note(connection, "device", fresh or ())
        self._stepper.step(active, fresh, self._hears_since, is_frozen=is_frozen, now=now)
        if not is_frozen:
            self._try(fresh, now)
            self._follow_assignments(fresh, now)
            self._leave_queue(active, now)
        self._collect(now)
        self._shadow(now)
        self._upkeep(now)
        self._publish(now)
        self._look(now)

    def _look(self, now: Now) -> None:
        """What is wrong with the fleet; an error in finding that out harms nothing else."""
        if self._alarms is None or not self._rhythm.is_due("alarms", LOOK_S):
            return
        try:
            with self._lock.begin() as connection:
                self._alarms.look(connection, now, self._hears_since)
        except (LostError, *_AWAY):
            raise
        except Exception:
            log.exception("looking for what is wrong failed; going on")

    def _listen(self, connection: Connection, now: Now) -> None:
        """Since when the fleet hears its devices; while it does not, nothing is judged."""
        since = self._link.connected_since
        if not self._has_workers or since is None:
            self._hears_since = since
            return
        if not any(worker.is_hearing for worker in workers.there(connection, now.steady)):
            if self._hears_since is not None:
                log.warning("no worker takes reports in; rollouts wait until one does")
            self._hears_since = None
        elif self._hears_since is None:
            self._clock.hears_again()
            self._hears_since = now.steady
        else:
            self._hears_since = max(self._hears_since, since)

    def _try(self, fresh: News, now: Now) -> None:
        """Experiments: who joins, and orders that are due."""
        for _ in range(CHUNKS_AT_ONCE):
            with self._lock.begin() as connection:
                if not trials.step(connection, self._issuer, fresh, now):
                    break
            fresh = set()
        if self._rhythm.is_due("note experiments", NOTE_S):
            with self._lock.begin() as connection:
                trials.note(connection, now)

    def _collect(self, now: Now) -> None:
        """Samples: orders that say who may keep any. Also of a frozen fleet: that somebody stopped it must be heard."""
        with self._lock.begin() as connection:
            collecting.mark(connection)
        for _ in range(CHUNKS_AT_ONCE):
            with self._lock.begin() as connection:
                if not collecting.step(connection, self._issuer, now):
                    break

    def _shadow(self, now: Now) -> None:
        """Shadows: orders that say what is compared. Also of a frozen fleet, which may stop one."""
        for _ in range(CHUNKS_AT_ONCE):
            with self._lock.begin() as connection:
                if not shadowing.step(connection, self._issuer, now):
                    break

    def _follow_assignments(self, fresh: News, now: Now) -> None:
        """A device gets what is assigned to where it is, where no rollout has it (`placing`)."""
        with self._lock.begin() as connection:
            self._placer.follow(connection, self._issuer, fresh, now)

    def _leave_queue(self, active: list[int], now: Now) -> None:
        """Rollouts that waited begin. They are looked at when another rollout or an experiment came or ended: only that
        lets one begin.
        """
        with self._lock.begin() as connection:
            waiting = [rollout.id for rollout in rollouts.queued(connection)]
            tried = [found.id for found in experiments.running(connection)] if waiting else []
        if not waiting or (state := (tuple(active), tuple(waiting), tuple(tried))) == self._waited:
            return
        for rollout_id in waiting:
            with self._lock.begin() as connection:
                queue.leave(connection, self._issuer, rollout_id, now)
        self._waited = state

    def _upkeep(self, now: Now) -> None:
        if self._rhythm.is_due("reconcile", RECONCILE_S):
            with self._lock.begin() as connection:
                late = orders.behind(connection, now.steady - PATIENCE_S, PUBLISH_AT_ONCE)
                if late:
                    orders.publish_again(connection, late)
        if self._rhythm.is_due("sign again", RECONCILE_S):
            with self._lock.begin() as connection:
                keyid = self._issuer.key.keyid
                settings.note_order_key(connection, keyid)
                others = orders.signed_by_another(connection, keyid, limit=PUBLISH_AT_ONCE)
                orders.issue_all(connection, self._issuer, known.lock(connection, others), now.wall)
        if self._rhythm.is_due("renew", _RENEW_S):
            with self._lock.begin() as connection:
                due = orders.due_for_renewal(connection, now.wall, limit=100)
                orders.issue_all(connection, self._issuer, known.lock(connection, due), now.wall)
        self._pruning.step(now)

    def _publish(self, now: Now) -> None:
        """Drain the outbox, a bounded number at a time; what the broker does not confirm stays."""
        if not self._link.is_connected:
            return
        with self._lock.begin() as connection:
            waiting = orders.unpublished(connection, PUBLISH_AT_ONCE)
            asked = commands.unpublished(connection, now.wall, now.steady, PUBLISH_AT_ONCE)
        confirmed = drain(self._link, waiting)
        sent = drain_commands(self._link, asked)
        if sent:
            with self._lock.begin() as connection:
                commands.published(connection, sent, now.steady)
        if confirmed:
            with self._lock.begin() as connection:
                orders.published(connection, confirmed, now.steady)
