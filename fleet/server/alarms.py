"""Looks at the fleet for what is wrong, and writes down what there is to tell. The controller calls it, and nobody else.

Always true
 1. Alerts and the messages about them are changed in one transaction, the controller's.
 2. What is counted from all devices is looked at once a minute, what runs out in days once an hour; drift a bounded piece
    of all devices at a time.
 3. Between looks it remembers only where it stands, which a service that takes over finds anew.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from fleet.rules import findings as rules
from fleet.rules.alerts import Finding, step
from fleet.rules.findings import Expiry
from fleet.server.clock import Now
from fleet.server.rhythm import Rhythm
from fleet.server.store import alerts, drift, troubles, watching, workers

log = logging.getLogger(__name__)

LOOK_S = 10.0
_MINUTE_S = 60.0
_HOUR_S = 3600.0
_CERTIFICATE_S = 14 * 86_400.0
# A target that has not taken a message for so long is itself told of.
_TARGET_LATE_S = 900.0
Looked = tuple[tuple[str, ...], list[Finding]]


@dataclass(frozen=True)
class Own:
    """What the service knows of itself. `late_since` is steady; `overflowed` counts up."""

    fleet: str
    broker: str
    url: str = ""
    is_connected: Callable[[], bool] = lambda: True
    late_since: Callable[[], float | None] = lambda: None
    overflowed: Callable[[], int] = lambda: 0
    is_audit_whole: Callable[[], bool] = lambda: True
    expiries: Callable[[float], list[Expiry]] = lambda _now: []
    disks: tuple[Path, ...] = ()
    has_workers: bool = False


@dataclass
class Alarms:
    """`look` at most every `LOOK_S`."""

    own: Own
    _rhythm: Rhythm = field(default_factory=Rhythm)
    _overflowed: int = 0
    _cursor: drift.Key | None = drift.START

    def begin_anew(self) -> None:
        """When a service becomes the controller."""
        self._rhythm, self._cursor = Rhythm(), drift.START
        self._overflowed = self.own.overflowed()

    def look(self, connection: Connection, now: Now, hears_since: float | None) -> int:
        """One look, `hears_since` being since when (steady) the fleet hears its devices; how many messages were written."""
        looked: list[Looked] = [
            self._service(connection, now),
            self._rollouts(connection, now),
            self._disks(),
        ]
        if self._rhythm.is_due("minute", _MINUTE_S):
            looked += [self._devices(connection), self._queue()]
            if hears_since is not None:
                looked.append(self._silence(connection, now, hears_since))
        if self._rhythm.is_due("hour", _HOUR_S):
            looked.append(self._expiries(connection, now))
        if (drifted := self._drift(connection, now)) is not None:
            looked.append(drifted)
        kinds = {kind for some, _ in looked for kind in some}
        found = [one for _, some in looked for one in some]
        known = alerts.standing(connection)
        done = step(known, found, kinds, wall=now.wall, steady=now.steady)
        numbers = alerts.save(connection, done.changed)
        alerts.forget(connection, done.forgotten)
        if self._rhythm.is_due("prune", _HOUR_S):
            alerts.prune(connection, now.wall)
        if not done.told:
            return 0
        return alerts.tell(connection, done.told, numbers, fleet=self.own.fleet, url=self.own.url, now=now)

    def _service(self, connection: Connection, now: Now) -> Looked:
        own = self.own
        found = rules.of_ingest(own.late_since(), now.steady)
        if not own.is_connected():
            found.append(Finding("broker-lost", own.broker, f"the service has lost the broker {own.broker}"))
        if own.has_workers and not any(one.is_hearing for one in workers.there(connection, now.steady)):
            found.append(
                Finding(
                    "no-workers", "workers", "no worker takes reports in: the fleet does not hear its devices"
                )
            )
        if not own.is_audit_whole():
            words = "the audit log does not follow from what was signed of it: it is not signed any further"
            found.append(Finding("audit-broken", "audit", words))
        found += [
            Finding("target-failing", name, f"alerts do not reach the target {name}: {why}")
            for name, why in alerts.late(connection, now.wall - _TARGET_LATE_S)
        ]
        return ("ingest-late", "broker-lost", "no-workers", "audit-broken", "target-failing"), found

    def _rollouts(self, connection: Connection, now: Now) -> Looked:
        found = rules.of_rollouts(watching.stopped(connection, now), now.steady)
        return ("rollout-stopped", "rollout-waits"), found

    def _devices(self, connection: Connection) -> Looked:
        said = list(troubles.everyones(connection))
        refused = {one.digest for _, some in said for one in some if one.digest}
        found = rules.of_troubles(said, troubles.titles(connection, refused))
        found += rules.of_copies(watching.copies(connection))
        return ("device-condition", "release-refused", "device-copied"), found

    def _silence(self, connection: Connection, now: Now, hears_since: float) -> Looked:
        found = rules.of_sites(watching.sites(connection, now, hears_since))
        silent_sites = frozenset(one.subject for one in found)
        found += rules.of_silent(watching.silent(connection, now, hears_since), silent_sites)
        return ("site-silent", "device-silent"), found

    def _disks(self) -> Looked:
        found: list[Finding] = []
        for place in self.own.disks:
            try:
                usage = shutil.disk_usage(place)
            except OSError as error:
                found.append(
                    Finding("storage", str(place), f"{place}: cannot be looked at ({error.strerror})")
                )
                continue
            found += rules.of_disk(str(place), usage.free, usage.total)
        return ("storage",), found

    def _queue(self) -> Looked:
        before, self._overflowed = self._overflowed, self.own.overflowed()
        return ("queue-full",), rules.of_queue(self._overflowed - before)

    def _expiries(self, connection: Connection, now: Now) -> Looked:
        ending = [*self.own.expiries(now.wall), *watching.expiries(connection, now.wall)]
        count, names, first = watching.certificates_ending(connection, now, _CERTIFICATE_S)
        if first is not None:
            shown = ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")
            words = f"{count} devices have not renewed theirs in time: {shown}"
            ending.append(Expiry("device certificates", first, _CERTIFICATE_S, words))
        return ("expiring",), rules.of_expiries(ending, now.wall)

    def _drift(self, connection: Connection, now: Now) -> Looked | None:
        """A piece of a pass over all devices; what was found once the pass is over."""
        if self._cursor is None:
            if not self._rhythm.is_due("drift", _MINUTE_S):
                return None
            self._cursor = drift.START
        self._cursor = drift.gather(connection, self._cursor, now)
        if self._cursor is not None:
            return None
        return ("drift",), rules.of_drift(drift.judge(connection, now))
