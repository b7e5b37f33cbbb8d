"""The loop that moves rollouts on and orders out.

Always true
 1. One controller per database: it holds the lock for as long as it lives, and makes its changes on the connection
    that holds it.
 2. Each rollout is stepped in a transaction of its own: an error in one never undoes another.
 3. It remembers nothing that the database does not hold (but caches of what cannot change).
"""

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from edgekit.errors import ConflictError
from edgekit.wire import topics
from fleet.rules import selectors
from fleet.rules.members import Word
from fleet.rules.rollout import Command, Heard, Joined, Left, Rollout, Status, Tick
from fleet.server import changes, cohorts, planning
from fleet.server.database import Database
from fleet.server.link import Link
from fleet.server.store import blocked, devices, orders, rollouts, settings, telemetry
from fleet.server.store.blocked import BlockedError
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import Issuer

log = logging.getLogger(__name__)

# Any fixed number; it names the lock among all advisory locks of the PostgreSQL database.
_ADVISORY_LOCK = 0x656467656B6974
PUBLISH_AT_ONCE = 500
RECONCILE_S = 5.0
# A device gets this long to report that it accepted an order before the order is published again.
PATIENCE_S = 10.0
# After a reconnect the fleet listens this long before it draws conclusions.
LISTEN_FIRST_S = 3.0
_RENEW_S = 60.0
_PRUNE_S = 3600.0


class Controller:
    """Ticks in a thread of its own; `tick` can be called by hand in tests, with the clock passed in."""

    def __init__(
        self,
        database: Database,
        issuer: Issuer,
        link: Link,
        *,
        tick_s: float = 1.0,
        chores: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._link = link
        self._tick_s = tick_s
        self._chores = chores
        self._clock = clock
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._connection: Connection | None = None
        # (rollout, stage) → device → its past; what a past is never changes once the stage is open.
        self._pasts: dict[tuple[int, int], cohorts.Pasts] = {}
        self._last = {"reconcile": 0.0, "sign again": 0.0, "renew": 0.0, "prune": 0.0}

    def start(self) -> None:
        """Take the lock and begin. Raises: ConflictError if another controller works on this database."""
        connection = self._database.engine.connect()
        if self._database.is_postgresql:
            taken = connection.execute(
                text("SELECT pg_try_advisory_lock(:k)"), {"k": _ADVISORY_LOCK}
            ).scalar()
            connection.commit()
            if not taken:
                connection.close()
                raise ConflictError(
                    f"another fleet service works on the database {self._database.shown_url}; stop it first"
                )
        self._connection = connection
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if self._connection is not None:
            self._connection.close()

    def wake(self) -> None:
        """Something changed: do not wait for the next tick."""
        self._woken.set()

    def reconnected(self) -> None:
        """After the broker was away: who is online is to be heard afresh, and every order is published again."""
        try:
            with self._database.begin() as connection:
                devices.all_offline(connection)
                orders.publish_again(connection)
        except SQLAlchemyError:
            log.exception("preparing to publish orders again failed; the reconciler will do it")
        self.wake()

    def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                self._chores()
                assert self._connection is not None
                self.tick(self._connection, self._clock())
            except Exception:
                log.exception("a controller tick failed; going on with the next")
            self._woken.wait(self._tick_s)

    def tick(self, connection: Connection, now: float) -> None:
        """One round: rollouts, assignments, orders."""
        with connection.begin():
            is_frozen = settings.is_frozen(connection)
            active = rollouts.active_ids(connection)
        for rollout_id in active:
            try:
                with connection.begin():
                    self._step(connection, rollout_id, is_frozen=is_frozen, now=now)
            except BlockedError as error:
                with connection.begin():
                    self._pause(connection, rollout_id, str(error), now)
            except Exception:
                log.exception("stepping rollout r%d failed; the others go on", rollout_id)
        if not is_frozen:
            with connection.begin():
                self._follow_assignments(connection, now)
        self._upkeep(connection, now)
        self._publish(connection, now)

    def _step(self, connection: Connection, rollout_id: int, *, is_frozen: bool, now: float) -> None:
        rollout = rollouts.load(connection, rollout_id)
        rows = {row.id: row for row in devices.everyone(connection)}
        gone = tuple(device for device in rollout.members if device not in rows)
        if gone:
            rollout = changes.apply(connection, self._issuer, rollout, Left(gone), now=now)
        words = tuple(
            word for m in rollout.members.values() if (word := _word(rows.get(m.device), m.seen, m.is_online))
        )
        if words:
            rollout = changes.apply(connection, self._issuer, rollout, Heard(words), now=now)
        connected = self._link.connected_since
        if is_frozen or connected is None or now - connected < LISTEN_FIRST_S:
            return
        if rollout.status is Status.RUNNING:
            rollout = self._join(connection, rollout, rows, now)
        pasts = self._pasts.setdefault((rollout.id, rollout.stage), {})
        data = cohorts.gather(connection, rollout, rows, pasts, heard_since=connected, now=now)
        changes.apply(connection, self._issuer, rollout, Tick(data), now=now)

    def _pause(self, connection: Connection, rollout_id: int, why: str, now: float) -> None:
        """It cannot go where it would, be that back to a release that was blocked meanwhile: a person decides."""
        rollout = rollouts.load(connection, rollout_id)
        if rollout.status is Status.RUNNING:
            changes.apply(connection, self._issuer, rollout, Command("pause", why), now=now)

    def _join(
        self, connection: Connection, rollout: Rollout, rows: dict[str, DeviceRow], now: float
    ) -> Rollout:
        """Devices that match only now (enrolled since, or relabelled)."""
        spec = rollout.spec
        selector = selectors.parse(spec.selector)
        new = [
            row
            for row in rows.values()
            if row.id not in rollout.members and selector.matches(devices.labels_of(row))
        ]
        if not new:
            return rollout
        bundles = blocked.usable(connection, spec.name, spec.version)
        present = orders.desired_of(connection)
        taken = {d for other in rollouts.active(connection) if other.id != rollout.id for d in other.members}
        joining = []
        for row in new:
            now_runs = present.get((row.id, spec.deployment))
            choice = planning.choose(row, bundles, spec.deployment, now_runs)
            if choice.bundle is not None and row.id not in taken:
                joining.append(
                    planning.member_of(choice, rollout.label, now_runs, frozenset(), rollouts.moment(now))
                )
        if not joining:
            return rollout
        return changes.apply(connection, self._issuer, rollout, Joined(tuple(joining)), now=now)

    def _follow_assignments(self, connection: Connection, now: float) -> None:
        """A device that is to run nothing, and is in no rollout, gets what is assigned."""
        assigned = rollouts.all_assignments(connection)
        if not assigned:
            return
        present = orders.desired_of(connection)
        busy = {
            (device, rollout.spec.deployment)
            for rollout in rollouts.active(connection)
            for device in rollout.members
        }
        for row in devices.everyone(connection):
            for deployment in devices.deployments_of(row):
                if (row.id, deployment) in present or (row.id, deployment) in busy:
                    continue
                found = rollouts.assigned(assigned, row, deployment)
                if found is None:
                    continue
                bundles = blocked.usable(connection, found.name, found.version)
                choice = planning.choose(row, bundles, deployment, None)
                if choice.bundle is not None:
                    because = f"assignment {found.name}@{found.version}"
                    orders.set_desired(
                        connection, row.id, deployment, choice.bundle.sha256, because=because, now=now
                    )
                    orders.issue(connection, self._issuer, row.id, now)

    def _upkeep(self, connection: Connection, now: float) -> None:
        if self._is_due("reconcile", RECONCILE_S, now):
            with connection.begin():
                orders.publish_again(connection, _behind(connection, now))
        if self._is_due("sign again", RECONCILE_S, now):
            with connection.begin():
                keyid = self._issuer.key.keyid
                for device in orders.signed_by_another(connection, keyid, limit=PUBLISH_AT_ONCE):
                    orders.issue(connection, self._issuer, device, now)
        if self._is_due("renew", _RENEW_S, now):
            with connection.begin():
                for device in orders.due_for_renewal(connection, now, limit=100):
                    orders.issue(connection, self._issuer, device, now)
        if self._is_due("prune", _PRUNE_S, now):
            with connection.begin():
                telemetry.prune(connection, now)

    def _is_due(self, chore: str, every_s: float, now: float) -> bool:
        if now - self._last[chore] < every_s:
            return False
        self._last[chore] = now
        return True

    def _publish(self, connection: Connection, now: float) -> None:
        """Drain the outbox, a bounded number at a time; what the broker does not confirm stays."""
        if not self._link.is_connected:
            return
        with connection.begin():
            waiting = orders.unpublished(connection, PUBLISH_AT_ONCE)
        sent = [
            (
                row.device,
                row.counter,
                self._link.publish(row.device, topics.DESIRED, row.payload, qos=1, retain=True),
            )
            for row in waiting
        ]
        confirmed: dict[str, int] = {}
        deadline = time.monotonic() + 5
        for device, counter, message in sent:
            try:
                message.wait_for_publish(max(0.0, deadline - time.monotonic()))
            except (ValueError, RuntimeError) as error:
                log.warning("order %d of %s was not published: %s", counter, device, error)
                continue
            if message.is_published():
                confirmed[device] = counter
        if confirmed:
            with connection.begin():
                orders.published(connection, confirmed, now)


def _word(row: DeviceRow | None, seen: tuple[int, int, int], was_online: bool) -> Word | None:
    """What a device's row has to say that its member has not heard yet."""
    if row is None:
        return None
    newest = (row.enrolment, row.incarnation, row.reported_seq)
    if newest <= seen and row.is_online == was_online:
        return None
    reported = devices.reported_of(row)
    if reported is None:
        return Word(row.id, is_online=row.is_online)
    return Word(
        row.id,
        is_online=row.is_online,
        seen=newest,
        order_counter=reported.order_counter,
        deployments=reported.deployments,
        refused=reported.refused,
    )


def _behind(connection: Connection, now: float) -> list[str]:
    """Devices that are online and have had time to accept their newest order, but have not said so."""
    waited = orders.published_before(connection, now - PATIENCE_S)
    behind: list[str] = []
    for row in devices.everyone(connection):
        if not row.is_online or row.id not in waited:
            continue
        reported = devices.reported_of(row)
        if reported is None or reported.order_counter < row.order_counter:
            behind.append(row.id)
    return behind[:PUBLISH_AT_ONCE]
