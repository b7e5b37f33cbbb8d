"""Devices get what is assigned to where they are.

Always true
 1. What is decided is `fleet.rules.placing`'s; here it is carried out in the caller's transaction.
 2. A mark goes only once its deployment is settled: in no rollout, and as it is assigned.
 3. One pass gives out a bounded number of orders, and looks at a bounded number of marked devices; it goes on where it
    was, and forgets nothing that the database does not hold. Who is to change and does not yet (more than go at once, a
    maintenance window that is closed) is marked.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from sqlalchemy import Connection

from edgekit.wire.messages import OrderOptions
from fleet.rules import placing as rules
from fleet.rules.pace import Pace
from fleet.rules.placing import BY_ASSIGNMENT, Assignment, Assignments, Given, Has
from fleet.server import fitting
from fleet.server.clock import Now
from fleet.server.store import (
    assignments,
    blocked,
    devices,
    experiments,
    groups,
    known,
    news,
    orders,
    rollouts,
)
from fleet.server.store.devices import DeviceRow
from fleet.server.store.groups import Mark
from fleet.server.store.orders import DesiredRow, Issuer
from fleet.server.store.releases import BundleRow

AT_ONCE = 500
# Where a device is: whoever changes one of these marks it.
_WHERE = ("labels", "deployments", "enrolment", "profile")


@dataclass
class Bundles:
    """What assignments are about, read once each in a transaction: bundles of releases by profile, paces of rollouts."""

    connection: Connection
    _paces: dict[int, Pace] = field(default_factory=dict)
    _known: dict[tuple[str, str], dict[str, BundleRow]] = field(default_factory=dict)

    def of(self, name: str, version: str) -> dict[str, BundleRow]:
        if (name, version) not in self._known:
            self._known[name, version] = blocked.usable(self.connection, name, version)
        return self._known[name, version]

    def pace(self, rollout: int) -> Pace | None:
        """How fast a rollout was to go; None for a person's own word."""
        if rollout and rollout not in self._paces:
            self._paces |= rollouts.paces(self.connection, [rollout])
        return self._paces.get(rollout)

    def fit(self, name: str, version: str, profile: str) -> BundleRow | None:
        """The release's bundle for this hardware."""
        found = self.of(name, version)
        return next((found[one] for one in fitting.chain_of(profile) if one in found), None)

    def assigned(
        self, all_of_them: Assignments, row: DeviceRow, deployment: str
    ) -> tuple[BundleRow | None, str]:
        """What is assigned to a deployment of this device and would run there, and why not or on whose account."""
        found = _holding(all_of_them, row, deployment)
        if found is None:
            return None, ""
        choice = fitting.choose(row, self.of(found.name, found.version), deployment, None)
        if choice.bundle is None:
            return None, f"{found.title} is assigned to it, but it {choice.reason}"
        for other in _together(all_of_them, row, found):
            beside = fitting.choose(row, self.of(other.name, other.version), other.deployment, None)
            if beside.bundle is None:
                return None, f"{found.title} is assigned to it with {other.title}, but it {beside.reason}"
        return choice.bundle, f"{BY_ASSIGNMENT}{found.title}"


@dataclass(frozen=True)
class _Get:
    """What a deployment changes to; None is no model."""

    deployment: str
    sha256: str | None
    because: str
    probation_s: float | None


class Placer:
    """Remembers only how far it has come."""

    def __init__(self) -> None:
        # What everybody was looked at for last: another state of it may concern every device.
        self._followed: object = None
        self._after = ("", 0)

    def follow(self, connection: Connection, issuer: Issuer, fresh: Collection[str] | None, now: Now) -> None:
        """Devices that are to run nothing, or that are to be placed again, get what is assigned."""
        all_of_them = assignments.newest_first(connection)
        tried = tuple(found.id for found in experiments.running(connection))
        state = (all_of_them.ids, tuple(rollouts.active_ids(connection)), tried)
        is_whole = fresh is None or state != self._followed
        marks = groups.marked(connection, self._after, AT_ONCE)
        after = (marks[-1].device, marks[-1].id) if len(marks) == AT_ONCE else ("", 0)
        names = {mark.device for mark in marks}
        if is_whole or all_of_them.ids:
            names |= assignments.concerned(connection, None if is_whole else sorted(fresh or ()))
        rows = devices.some(connection, sorted(names))
        look = _Look(
            all_of_them,
            Bundles(connection),
            orders.desired_of(connection, devices=sorted(names)),
            rollouts.busy(connection, sorted(names)).keys()
            | experiments.busy(connection, sorted(names)).keys(),
            {(mark.device, mark.deployment) for mark in marks},
            now,
        )
        found = {row.id: look.at(row) for row in rows}
        gets = {name: looked.gets for name, looked in found.items() if looked.gets}
        some = sorted(gets)[:AT_ONCE]
        settled = [
            mark
            for mark in marks
            if (mark.device, mark.deployment) not in look.busy
            and (mark.device not in gets or mark.device in some)
            and (mark.device not in found or mark.deployment not in found[mark.device].waits)
        ]
        later = {(name, get.deployment) for name in gets.keys() - set(some) for get in gets[name]}
        later |= {(name, one) for name, looked in found.items() for one in looked.waits_for_window}
        groups.mark_new(connection, later - look.marked)
        _carry_out(connection, issuer, _Step(rows, {name: gets[name] for name in some}, settled), now)
        self._followed, self._after = state, after


@dataclass(frozen=True)
class _Looked:
    """What a device gets, for which deployments something is assigned that it cannot have yet, and which of those only
    wait for their maintenance window.
    """

    gets: list[_Get]
    waits: set[str]
    waits_for_window: set[str]


@dataclass(frozen=True)
class _Look:
    """What is known in one pass."""

    all_of_them: Assignments
    bundles: Bundles
    present: Mapping[tuple[str, str], DesiredRow]
    busy: Collection[tuple[str, str]]
    marked: AbstractSet[tuple[str, str]]
    now: Now

    def at(self, row: DeviceRow) -> _Looked:
        looked = _Looked([], set(), set())
        for deployment in devices.deployments_of(row):
            if (row.id, deployment) not in self.busy:
                self._at(row, deployment, looked)
        return looked

    def _at(self, row: DeviceRow, deployment: str, looked: _Looked) -> None:
        has = _has(self.all_of_them, deployment, self.present.get((row.id, deployment)))
        holding = _holding(self.all_of_them, row, deployment)
        if holding is None:
            if rules.changes(has, None, is_marked=False):
                looked.gets.append(_Get(deployment, None, f"{BY_ASSIGNMENT}none", None))
            return
        is_marked = (row.id, deployment) in self.marked
        if not (is_marked or rules.may_change(has, holding)):
            return
        bundle, why = self.bundles.assigned(self.all_of_them, row, deployment)
        given = Given(bundle.sha256 if bundle is not None else None, holding.set_at)
        others = _together(self.all_of_them, row, holding)
        if bundle is None or any((row.id, other.deployment) in self.busy for other in others):
            looked.waits.add(deployment)
        elif rules.changes(has, given, is_marked=is_marked):
            group = [deployment, *(other.deployment for other in others)]
            if all(self._lacks(row, one) for one in group) or self._is_time(row, holding.rollout):
                looked.gets.append(_Get(deployment, bundle.sha256, why, holding.probation_s))
                return
            looked.waits.add(deployment)
            # Who is away is heard of when it comes back.
            if row.is_online:
                looked.waits_for_window.add(deployment)

    def _lacks(self, row: DeviceRow, deployment: str) -> bool:
        """Whether it runs nothing there, or what it may not keep."""
        has = _has(self.all_of_them, deployment, self.present.get((row.id, deployment)))
        return has is None or has.is_withdrawn

    def _is_time(self, row: DeviceRow, rollout: int) -> bool:
        pace = self.bundles.pace(rollout)
        if pace is None:
            return True
        return row.is_online and rules.is_open(pace, fitting.zone_of(row), rollouts.moment(self.now.wall))


def _holding(all_of_them: Assignments, row: DeviceRow, deployment: str) -> Assignment | None:
    return all_of_them.holding(devices.labels_of(row), deployment, devices.deployments_of(row))


def _together(all_of_them: Assignments, row: DeviceRow, one: Assignment) -> list[Assignment]:
    return all_of_them.together(one, devices.labels_of(row), devices.deployments_of(row))


def _has(all_of_them: Assignments, deployment: str, found: DesiredRow | None) -> Has | None:
    if found is None:
        return None
    return Has(found.sha256, found.set_at, all_of_them.withdrew(deployment, found.because))


def will_follow(all_of_them: Assignments, row: DeviceRow, deployment: str, found: DesiredRow | None) -> bool:
    """Whether what holds for a deployment of this device is to take the place of what it has, without a mark."""
    holding = _holding(all_of_them, row, deployment)
    return holding is not None and rules.may_change(_has(all_of_them, deployment, found), holding)


@dataclass(frozen=True)
class _Step:
    rows: Sequence[DeviceRow]
    gets: dict[str, list[_Get]]
    settled: list[Mark]


def _carry_out(connection: Connection, issuer: Issuer, step: _Step, now: Now) -> None:
    """Orders for who gets something, and no mark where it is settled."""
    was = {row.id: row for row in step.rows}
    locked = known.lock(connection, {*step.gets, *(mark.device for mark in step.settled)})
    # Who changed between the look and the lock is looked at again: its mark is there still.
    changed = {
        name
        for name, one in locked.items()
        if name in was and any(one.get(column) != getattr(was[name], column) for column in _WHERE)
    }
    ordering = {name: one for name, one in locked.items() if name in step.gets and name not in changed}
    for name in ordering:
        for get in step.gets[name]:
            orders.set_desired(
                connection, name, get.deployment, get.sha256, because=get.because, now=now.wall
            )
    groups.settle(connection, [mark for mark in step.settled if mark.device not in changed])
    options = {
        name: OrderOptions(probation_s=probation_s)
        for name in ordering
        if (probation_s := _probation_s(step.gets[name])) is not None
    }
    orders.issue_all(connection, issuer, ordering, now.wall, options)
    # A rollout may take them in from here on.
    news.note(connection, ordering.keys())


def _probation_s(gets: Sequence[_Get]) -> float | None:
    """The longest that is asked for; None leaves it as the device was told last."""
    return max((get.probation_s for get in gets if get.probation_s is not None), default=None)


def not_yet(
    connection: Connection,
    rows: Sequence[DeviceRow],
    deployments: Sequence[str],
    present: dict[tuple[str, str], DesiredRow],
) -> set[str]:
    """Which of these, that a rollout would take in, are first to get what is assigned, or to come to rest with it."""
    all_of_them, bundles = assignments.newest_first(connection), Bundles(connection)

    def is_ready(row: DeviceRow, deployment: str) -> bool:
        if (has := present.get((row.id, deployment))) is None:
            return bundles.assigned(all_of_them, row, deployment)[0] is None
        reported = devices.reported_of(row)
        if reported is None or not (reported.order_counter >= row.order_counter or reported.refused):
            return False
        return rules.is_at_rest(has.sha256, reported.deployments.get(deployment))

    return {row.id for row in rows if not all(is_ready(row, one) for one in deployments)}
