"""What a person looks at: counts and pages of rows, made by the database, whole rollouts and fleets never read for them.

Always true
 1. What comes back is bounded, by the rows of a page or by the number of states, stages and profiles.
 2. A page goes on where the one before ended, by the values that it is sorted by: nothing is skipped or shown twice
    because rows came or went before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, not_, select, true

from edgekit.errors import UsageError
from fleet.audit_entry import Entry
from fleet.rules import filters
from fleet.rules.members import Member
from fleet.rules.rollout import ACTIVE, Rollout
from fleet.server.schema import desired, devices, members, rollouts
from fleet.server.schema_audit import audit
from fleet.server.store import audit as audit_store
from fleet.server.store import finding
from fleet.server.store import members as member_store
from fleet.server.store.devices import DeviceRow
from fleet.server.store.finding import Wanted

# Counting goes no further than this: "more than 10,000" is what a person needs to know.
MOST_COUNTED = 10_000


class Tally(NamedTuple):
    """How many devices of a rollout are alike; `stage` is None of those that were not told to move yet."""

    profile: str
    stage: int | None
    state: str
    is_held: bool
    many: int


def tallies(connection: Connection, rollout: int) -> list[Tally]:
    alike = (members.c.profile, members.c.stage, members.c.state, members.c.is_held)
    query = select(*alike, func.count()).where(members.c.rollout == rollout).group_by(*alike)
    return [Tally(*row) for row in connection.execute(query)]


def heads(connection: Connection, *, before: int = 2**31 - 1, limit: int = 50) -> list[Rollout]:
    """Rollouts without their members, newest first, from below a number on."""
    query = select(rollouts.c.state).where(rollouts.c.id < before).order_by(rollouts.c.id.desc()).limit(limit)
    return [_head(state) for state in connection.execute(query).scalars()]


def active_heads(connection: Connection, limit: int = 50) -> list[Rollout]:
    """Those under way, newest first."""
    under_way = rollouts.c.status.in_([status.value for status in ACTIVE])
    query = select(rollouts.c.state).where(under_way).order_by(rollouts.c.id.desc()).limit(limit)
    return [_head(state) for state in connection.execute(query).scalars()]


def head(connection: Connection, rollout: int) -> Rollout | None:
    state = connection.execute(select(rollouts.c.state).where(rollouts.c.id == rollout)).scalar()
    return None if state is None else _head(state)


def _head(state: bytes) -> Rollout:
    return msgspec.json.decode(state, type=Rollout)


def members_page(
    connection: Connection, rollout: int, *, states: Sequence[str], after: str = "", limit: int = 50
) -> list[Member]:
    """Members in some of these states by name, from behind a name on: the order of the key, so nothing is sorted."""
    query = select(members.c.device).where(members.c.rollout == rollout, members.c.device > after)
    query = query.where(members.c.state.in_(states)).order_by(members.c.device).limit(limit)
    names = list(connection.execute(query).scalars())
    found = member_store.of(connection, rollout, names)
    return [found[name] for name in names]


class DeviceCounts(NamedTuple):
    """Devices in service, by what the fleet knows of each without asking further."""

    online: int
    behind: int
    offline: int
    new: int
    cloned: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.online + self.behind + self.offline + self.new + self.cloned


_STATES: dict[str, ColumnElement[bool]] = {
    "cloned": devices.c.is_duplicate,
    "new": and_(not_(devices.c.is_duplicate), devices.c.enrolment == 0),
    "offline": and_(not_(devices.c.is_duplicate), devices.c.enrolment > 0, not_(devices.c.is_online)),
    "behind": and_(
        not_(devices.c.is_duplicate), devices.c.enrolment > 0, devices.c.is_online,
        devices.c.reported_counter < devices.c.order_counter,
    ),
    "online": and_(
        not_(devices.c.is_duplicate), devices.c.enrolment > 0, devices.c.is_online,
        devices.c.reported_counter >= devices.c.order_counter,
    ),
}  # fmt: skip
STATES = tuple(_STATES)


def state_of(row: DeviceRow) -> str:
    """Which of `STATES` a device's row is in."""
    if row.is_duplicate:
        return "cloned"
    if not row.enrolment:
        return "new"
    if not row.is_online:
        return "offline"
    return "behind" if row.reported_counter < row.order_counter else "online"


def device_counts(connection: Connection, where: str = "") -> DeviceCounts:
    """Of all devices in service, or of those that a selector matches."""
    columns = [func.count().filter(_STATES[name]) for name in DeviceCounts._fields]
    query = select(*columns).select_from(devices).where(_within(connection, where))
    return DeviceCounts(*(int(number) for number in connection.execute(query).one()))


class Browse(NamedTuple):
    """A look at devices: `where` a filter, `text` a part of the name, `state` one of `STATES`, `sort` and `after` as in
    `finding`; `now` is steady.
    """

    where: str = ""
    text: str = ""
    state: str = ""
    sort: str = "device"
    after: str = ""
    now: float = 0.0


def browse(connection: Connection, wanted: Browse, limit: int) -> finding.Page:
    """The next devices in service. Raises: UsageError for a filter, state, sort or place that is none."""
    sought = Wanted(filters.parse(wanted.where), filters.sort(wanted.sort), wanted.now, _also(wanted))
    return finding.page(connection, sought, wanted.after, limit)


def how_many(connection: Connection, wanted: Browse) -> int:
    """Devices that match, counted up to one more than `MOST_COUNTED`."""
    matches = finding.condition(connection, filters.parse(wanted.where), wanted.now), _also(wanted)
    some = select(devices.c.id).where(*matches).limit(MOST_COUNTED + 1).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def _also(wanted: Browse) -> ColumnElement[bool]:
    """Raises: UsageError."""
    found: ColumnElement[bool] = true()
    if wanted.text:
        found = and_(found, devices.c.id.icontains(wanted.text, autoescape=True))
    if wanted.state:
        if wanted.state not in _STATES:
            raise UsageError(f"state: {wanted.state[:40]!r} is none; there are {', '.join(STATES)}")
        found = and_(found, _STATES[wanted.state])
    return found


def _within(connection: Connection, scope: str) -> ColumnElement[bool]:
    """Devices in service that a selector's text (all if empty) reaches."""
    return finding.condition(connection, filters.within("", scope))


def runs(connection: Connection) -> dict[str, int]:
    """Digest → how many devices are ordered to run it."""
    query = select(desired.c.sha256, func.count()).group_by(desired.c.sha256)
    return {digest: int(count) for digest, count in connection.execute(query)}


class Look(NamedTuple):
    """Which entries of the audit log: parts of who, what and whom; `before` an id."""

    actor: str = ""
    action: str = ""
    subject: str = ""
    before: int = 2**31 - 1


def entries(connection: Connection, look: Look, limit: int, since: float = 0.0) -> list[Entry]:
    """Entries, the newest first."""
    query = select(audit).where(audit.c.id < look.before)
    if since:
        query = query.where(audit.c.at >= since)
    if look.actor:
        query = query.where(audit.c.actor.icontains(look.actor, autoescape=True))
    if look.action:
        query = query.where(audit.c.action.istartswith(look.action, autoescape=True))
    if look.subject:
        query = query.where(audit.c.subject == look.subject)
    query = query.order_by(audit.c.id.desc()).limit(limit)
    return [audit_store.entry(row) for row in connection.execute(query)]


def is_within(connection: Connection, rollout: int, where: str) -> bool:
    """Whether a rollout has devices, all in service, and a selector matches each of them."""
    theirs = members.outerjoin(devices, devices.c.id == members.c.device)
    of_it = select(members.c.device).select_from(theirs).where(members.c.rollout == rollout)
    fits = and_(devices.c.id.is_not(None), _within(connection, where))
    outside = connection.execute(of_it.where(not_(fits)).limit(1)).scalar()
    return outside is None and connection.execute(of_it.limit(1)).scalar() is not None


class Previous(NamedTuple):
    """What devices that were told to move ran before: its title ("" for nothing), and how many of them have settled."""

    title: str
    succeeded: int
    others: int


def previous(connection: Connection, rollout: int) -> list[Previous]:
    """Where devices of a rollout would go back to, most of them first."""
    is_there = members.c.state == "succeeded"
    query = (
        select(members.c.previous_title, func.count().filter(is_there), func.count().filter(not_(is_there)))
        .where(members.c.rollout == rollout, members.c.order_counter > 0, members.c.state != "rolled_back")
        .group_by(members.c.previous_title)
    )
    found = [Previous(*row) for row in connection.execute(query)]
    return sorted(found, key=lambda one: -(one.succeeded + one.others))
