"""Brings messages to their targets, in a thread of its own.

Always true
 1. Only the controller's courier sends, and it takes each message by a change that only one can make (`store.alerts`).
 2. What a target did not take is tried again, with a pause that grows from `FIRST_PAUSE_S` to `MOST_PAUSE_S`, for `GIVE_UP_S`;
    a restart in between changes nothing. What it took is not sent again.
 3. A try that is cut off by the end of the process, after the receiver had it and before that was stored, is repeated
    with the same id: the receiver knows it by that. Nothing else is ever sent twice.
 4. Messages to one target arrive in their order; one that does not answer holds up no other for longer than a try.
 5. When the database takes nothing, no message can be stored that says so: that is told without it, once.
"""

import logging
import threading
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from edgekit.errors import FleetError
from fleet.server.clock import Clock
from fleet.server.database import Database
from fleet.server.sealing import Seal
from fleet.server.store import alert_targets, alerts
from fleet.server.store.alert_targets import TargetRow
from fleet.server.store.alerts import Body, MessageRow
from fleet.server.telling import TIMEOUT_S, NotToldError, Target, tell

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 5.0
MOST_PAUSE_S = 900.0
GIVE_UP_S = 24 * 3600.0
# A database that has refused for so long is told of.
REFUSES_S = 30.0
_LOOK_S = 1.0


class Courier:
    """`is_leading` says whether this service is the controller, `failing_since` since when (steady) the database refuses the
    controller's changes; `send_due` can be called by hand in tests.
    """

    def __init__(
        self,
        database: Database,
        seal: Seal,
        clock: Clock,
        fleet: str,
        *,
        is_leading: Callable[[], bool],
        failing_since: Callable[[], float | None] = lambda: None,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._database, self._seal, self._clock, self._fleet = database, seal, clock, fleet
        self._is_leading, self._failing_since = is_leading, failing_since
        self._first_pause_s = first_pause_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._targets: Sequence[TargetRow] = ()
        self._has_told_of_failure = False
        self.sent = 0
        self.failed = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                self.round()
            except SQLAlchemyError as error:
                # The controller finds the same, and says so; what is waiting waits.
                log.debug("the database does not answer: %s", error)
            except Exception:
                log.exception("alerts could not be sent; it is tried again")

    def round(self) -> None:
        """Raises: SQLAlchemyError."""
        since = self._failing_since()
        if since is not None:
            if self._clock.now().steady - since >= REFUSES_S:
                self._tell_of_failure()
        elif self._is_leading():
            self.send_due()
            self._tell_of_recovery()
        else:
            # Another service is the controller, and tells.
            self._targets, self._has_told_of_failure = (), False

    def send_due(self) -> int:
        """What is due, the oldest of each target; how many arrived. Raises: SQLAlchemyError."""
        with self._database.read() as connection:
            self._targets = alert_targets.everything(connection)
            rows = alerts.due(connection, self._clock.now().steady)
        return sum(self._send(row) for row in rows if not self._stopping.is_set())

    def _send(self, row: MessageRow) -> bool:
        pause = min(MOST_PAUSE_S, self._first_pause_s * 2 ** min(row.tries, 20))
        due_at = self._clock.now().steady + pause
        with self._database.begin() as connection:
            if not alerts.claim(connection, row, due_at):
                return False
        now = self._clock.now()
        try:
            tell(Target(row.target, row.kind, row.sealed), row.body, self._seal, now.wall)
        except (NotToldError, FleetError) as error:
            gives_up = now.wall - row.created_at >= GIVE_UP_S
            with self._database.begin() as connection:
                alerts.not_arrived(connection, row, str(error), None if gives_up else due_at)
            self.failed += 1
            log.warning(
                "target %s did not take %s: %s%s",
                row.target,
                row.message,
                error,
                "; given up" if gives_up else "",
            )
            return False
        with self._database.begin() as connection:
            alerts.arrived(connection, row, now.wall)
        self.sent += 1
        return True

    def _tell_of_failure(self) -> None:
        """Once, to whom was there when the database still answered."""
        if not self._has_told_of_failure:
            self._has_told_of_failure = True
            self._tell_all(
                "the database takes no changes: devices are not heard, rollouts stand still; look at its disk"
            )

    def _tell_of_recovery(self) -> None:
        if self._has_told_of_failure:
            self._has_told_of_failure = False
            self._tell_all("over: the database takes changes again")

    def _tell_all(self, text: str) -> None:
        now = self._clock.now()
        for target in self._targets:
            body = Body(
                "alerts", alerts.new_id(), self._fleet, alerts.moment(now.wall), f"{self._fleet}: {text}"
            )
            try:
                tell(
                    Target(target.name, target.kind, target.sealed),
                    msgspec.json.encode(body).decode(),
                    self._seal,
                    now.wall,
                )
            except (NotToldError, FleetError) as error:
                log.warning("target %s did not take that the database fails: %s", target.name, error)
