"""Rollouts under way, a step at a time: what was heard of each one's devices, and what follows from it.

Always true
 1. Each rollout is stepped in a transaction of its own: an error in one never undoes another.
 2. What is kept of a rollout between steps is thrown away by whatever goes wrong in one, and read anew.
"""

import logging
from collections.abc import Callable, Collection

from sqlalchemy import Connection

from fleet.rules.evidence import StageEvidence
from fleet.rules.rollout import RETURNING, Command, Due, Heard, Left, Status, Tick
from fleet.server import changes, joining, parting
from fleet.server.clock import Clock, Now
from fleet.server.lock import Lock, LostError
from fleet.server.store import groups, rollouts
from fleet.server.store.blocked import BlockedError
from fleet.server.store.orders import Issuer
from fleet.server.watched import Watched

log = logging.getLogger(__name__)

# After a reconnect the fleet listens this long before it draws conclusions.
LISTEN_FIRST_S = 3.0
# Transactions of orders that one tick gives out for a rollout; the rest waits for the next tick.
CHUNKS_AT_ONCE = 10

News = set[str] | None


class Stepper:
    """`tell` logs what goes wrong, once for as long as it stays the same, and says whether it did."""

    def __init__(self, lock: Lock, issuer: Issuer, clock: Clock, tell: Callable[[str], bool]) -> None:
        self._lock = lock
        self._issuer = issuer
        self._clock = clock
        self._tell = tell
        self._watched: dict[int, Watched] = {}

    def forget(self) -> None:
        """All that is kept; the database has it."""
        self._watched = {}

    def step(
        self,
        active: Collection[int],
        fresh: News,
        hears_since: float | None,
        *,
        is_frozen: bool,
        now: Now,
    ) -> None:
        """One step of each. `fresh` are devices that something is new about, `hears_since` (steady) is since when the fleet
        hears its devices. Raises: LostError.
        """
        self._watched = {number: kept for number, kept in self._watched.items() if number in active}
        for rollout_id in active:
            self._step(rollout_id, fresh, hears_since, is_frozen=is_frozen, now=now)

    def _step(
        self, rollout_id: int, fresh: News, hears_since: float | None, *, is_frozen: bool, now: Now
    ) -> None:
        try:
            with self._lock.begin() as connection:
                watched = self._turn(connection, rollout_id, fresh, hears_since, is_frozen=is_frozen, now=now)
            self._watched[rollout_id] = watched
            for _ in range(CHUNKS_AT_ONCE - 1):
                if not self._more_orders(rollout_id, is_frozen=is_frozen, now=now):
                    break
        except LostError:
            raise
        except BlockedError as error:
            self._watched.pop(rollout_id, None)
            with self._lock.begin() as connection:
                self._pause(connection, rollout_id, str(error), now)
        except Exception as error:
            self._watched.pop(rollout_id, None)
            if self._tell(f"stepping rollout r{rollout_id} failed ({error}); the others go on"):
                log.exception("its traceback")

    def _turn(
        self,
        connection: Connection,
        rollout_id: int,
        fresh: News,
        connected: float | None,
        *,
        is_frozen: bool,
        now: Now,
    ) -> Watched:
        """One step of a rollout. What is kept of it is taken out first: it comes back when this has committed."""
        kept = self._watched.pop(rollout_id, None)
        head, revision = rollouts.lock(connection, rollout_id)
        if kept is None or kept.revision != revision or fresh is None:
            kept = Watched.load(connection, head, revision)
            fresh = set(kept.rollout.members)
        concerned = kept.read(connection, fresh)
        gone = tuple(device for device in concerned if device not in kept.rows)
        if gone:
            kept.rollout = changes.apply(connection, self._issuer, kept.rollout, Left(gone), now=now)
        if changed := groups.marked_of(connection, concerned, head.spec.deployments):
            kept.rollout = parting.part(
                connection, self._issuer, kept.rollout, changed, now=now, is_frozen=is_frozen
            )
        concerned = [device for device in concerned if device in kept.rollout.members]
        words = kept.words(connection, concerned)
        if words:
            kept.rollout = changes.apply(connection, self._issuer, kept.rollout, Heard(words), now=now)
        if not is_frozen and connected is not None and now.steady - connected >= LISTEN_FIRST_S:
            if kept.rollout.status is Status.RUNNING:
                kept.rollout = joining.join(connection, self._issuer, kept.rollout, fresh, now)
                kept.read(connection, fresh - set(concerned))
            event = Tick(StageEvidence())
            if kept.rollout.judged_from is not None:
                event = Tick(
                    kept.evidence(
                        connection, concerned, deaf=self._clock.deaf, heard_since=connected, now=now.steady
                    )
                )
            kept.rollout = changes.apply(connection, self._issuer, kept.rollout, event, now=now)
        elif kept.rollout.status in RETURNING:
            kept.rollout = changes.apply(connection, self._issuer, kept.rollout, Due(), now=now)
        kept.revision = rollouts.revision(connection, rollout_id)
        return kept

    def _pause(self, connection: Connection, rollout_id: int, why: str, now: Now) -> None:
        """It cannot go where it would, be that back to a release that was blocked meanwhile: a person decides."""
        rollout = rollouts.load(connection, rollout_id)
        if rollout.status is Status.RUNNING:
            changes.apply(connection, self._issuer, rollout, Command("pause", why), now=now)

    def _more_orders(self, rollout_id: int, *, is_frozen: bool, now: Now) -> bool:
        """Another transaction of orders that are due; whether there were any."""
        kept = self._watched.pop(rollout_id)
        if is_frozen and kept.rollout.status not in RETURNING:
            self._watched[rollout_id] = kept
            return False
        with self._lock.begin() as connection:
            if rollouts.lock(connection, rollout_id)[1] != kept.revision:
                return False
            before = kept.rollout
            kept.rollout = changes.apply(connection, self._issuer, before, Due(), now=now)
            kept.revision = rollouts.revision(connection, rollout_id)
        self._watched[rollout_id] = kept
        return kept.rollout is not before
