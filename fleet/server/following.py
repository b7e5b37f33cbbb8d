"""Devices that are in no rollout get what is assigned to them (`fleet.rules.following`).

A device that runs something already changes only while it is online, and inside the maintenance windows of the rollout
that made the assignment.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection

from fleet.rules import following as rules
from fleet.rules import windows
from fleet.rules.following import Assigned, Has
from fleet.rules.pace import ZONE, Pace
from fleet.server import planning
from fleet.server.clock import Now
from fleet.server.store import blocked, devices, known, news, orders, rollouts
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import DesiredRow, Issuer
from fleet.server.store.releases import BundleRow
from fleet.server.store.rollouts import AssignmentRow

# So many devices change in one transaction.
AT_ONCE = 500
# Devices that wait for their window are looked at again this often.
LOOK_AGAIN_S = 60.0
_ALWAYS = Pace()


class Kept(NamedTuple):
    """What was followed for: another state of the assignments concerns every device. None: everyone is looked at."""

    state: object = None
    again_at: float | None = None


class Change(NamedTuple):
    deployment: str
    sha256: str | None
    because: str


class Assignments:
    """All assignments, and the bundles of their releases, as far as they were asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.rows = rollouts.all_assignments(connection)
        self._bundles: dict[tuple[str, str], dict[str, BundleRow]] = {}
        self._paces: dict[int, Pace] = {}

    def of(self, row: DeviceRow, deployment: str) -> tuple[AssignmentRow | None, str | None]:
        """What is assigned to a device, and the bundle of it that it can run."""
        found = rollouts.assigned(self.rows, row, deployment)
        if found is None:
            return None, None
        title = (found.name, found.version)
        if title not in self._bundles:
            self._bundles[title] = blocked.usable(self._connection, *title)
        choice = planning.choose(row, self._bundles[title], deployment, None)
        return found, choice.bundle.sha256 if choice.bundle is not None else None

    def pace(self, assignment: AssignmentRow) -> Pace:
        """How fast the rollout that left the assignment was to go."""
        number = assignment.rollout
        if number not in self._paces:
            self._paces[number] = rollouts.paces(self._connection, [number]).get(number, _ALWAYS)
        return self._paces[number]


def follow(connection: Connection, issuer: Issuer, fresh: set[str] | None, kept: Kept, now: Now) -> Kept:
    """Orders for those that change; what to hand in next time, once this has committed."""
    assignments = Assignments(connection)
    state = ([row.id for row in assignments.rows], rollouts.active_ids(connection))
    is_late = kept.again_at is not None and time.monotonic() >= kept.again_at
    if fresh is None or state != kept.state or is_late:
        rows, present = devices.everyone(connection), orders.desired_of(connection)
        kept = Kept(state)
    else:
        rows = devices.some(connection, sorted(fresh))
        present = orders.desired_of(connection, devices=sorted(fresh))
    if not rows:
        return kept
    changes, waits = _changes(connection, assignments, rows, present, now)
    some = sorted(changes)[:AT_ONCE]
    locked = known.lock(connection, some)
    for device in locked:
        for deployment, sha256, because in changes[device]:
            orders.set_desired(connection, device, deployment, sha256, because=because, now=now.wall)
    orders.issue_all(connection, issuer, locked, now.wall)
    # A rollout that it is to join takes it from there.
    news.note(connection, some)
    if len(some) < len(changes):
        return Kept()
    return kept._replace(again_at=time.monotonic() + LOOK_AGAIN_S if waits else kept.again_at)


def _changes(
    connection: Connection,
    assignments: Assignments,
    rows: Iterable[DeviceRow],
    present: dict[tuple[str, str], DesiredRow],
    now: Now,
) -> tuple[dict[str, list[Change]], bool]:
    """What each device changes, and whether any waits for its time."""
    busy = rollouts.busy(connection)
    found: dict[str, list[Change]] = {}
    waits = False
    for row in rows:
        for deployment in devices.deployments_of(row):
            desired = present.get((row.id, deployment))
            if (row.id, deployment) in busy or (desired is None and not assignments.rows):
                continue
            has = Has(desired.sha256, desired.because, desired.set_at) if desired is not None else None
            assignment, sha256 = assignments.of(row, deployment)
            assigned = Assigned(sha256, assignment.set_at) if assignment is not None else None
            is_change, wanted = rules.change(has, assigned)
            if not is_change:
                continue
            if assignment is not None and has is not None:
                if not row.is_online:
                    continue
                if not _is_open(row, assignments.pace(assignment), now):
                    waits = True
                    continue
            title = f"{assignment.name}@{assignment.version}" if assignment is not None else "none"
            found.setdefault(row.id, []).append(Change(deployment, wanted, f"{rules.BY_ASSIGNMENT}{title}"))
    return found, waits


def _is_open(row: DeviceRow, pace: Pace, now: Now) -> bool:
    if not pace.windows:
        return True
    zone = devices.labels_of(row).get(ZONE) or pace.zone
    return windows.left_s(pace.windows, zone, rollouts.moment(now.wall)) > 0
