"""What alerts are found from, read from all devices and rollouts at once: counts by the database, names where few."""

import msgspec
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    String,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    type_coerce,
)

from fleet.rules.evidence import SILENT_AT_LEAST_S, SILENT_WINDOWS, USUAL_WINDOW_S
from fleet.rules.findings import DEVICE_SILENT_S, Expiry, Silent, Site, Stopped
from fleet.rules.rollout import Rollout, Status
from fleet.server.clock import Now
from fleet.server.schema import certificates, devices, rollouts
from fleet.server.schema_access import access_tokens, users
from fleet.server.schema_audit import audit

# At least as long; three windows of a device that reports seldom.
SITE_SILENT_S = max(300.0, SILENT_AT_LEAST_S)
_RECENT_S = 86_400.0
_USED_LATELY_S = 30 * 86_400.0
_TURNED = ("rollout.turn", "rollout.pause", "rollout.abort", "rollout.rollback")
_DAY = 86_400.0
_STANDS = (Status.RUNNING, Status.PAUSED, Status.ROLLING_BACK, Status.ABORTING)
_WENT_BACK = (Status.ROLLED_BACK, Status.ABORTED)


def site_of(connection: Connection) -> ColumnElement[str]:
    """The label `site`, empty where there is none."""
    is_postgresql = connection.dialect.name == "postgresql"
    labels = cast(devices.c.labels, JSON) if is_postgresql else type_coerce(devices.c.labels, JSON)
    return func.coalesce(cast(labels["site"].as_string(), String), "")


def _heard(hears_since: float) -> ColumnElement[float]:
    """Since when a device is silent at the earliest: time in which the fleet did not hear counts against nobody."""
    heard = devices.c.last_seen_at
    return case((heard < hears_since, literal(hears_since)), else_=heard)


def _is_silent(now: float, hears_since: float, at_least: float) -> ColumnElement[bool]:
    usual = SILENT_WINDOWS * func.coalesce(devices.c.window_s, USUAL_WINDOW_S)
    patience = case((usual > at_least, usual), else_=literal(at_least))
    return now - _heard(hears_since) > patience


def _expected() -> ColumnElement[bool]:
    """Devices that should be heard: in service, with an identity, and heard before."""
    return and_(
        devices.c.decommissioned_at.is_(None),
        devices.c.credential_hash.is_not(None),
        devices.c.last_seen_at.is_not(None),
    )


def sites(connection: Connection, now: Now, hears_since: float) -> list[Site]:
    site = site_of(connection)
    is_silent = _is_silent(now.steady, hears_since, SITE_SILENT_S)
    query = (
        select(site, func.count(), func.count().filter(is_silent), func.max(devices.c.last_seen_at))
        .where(_expected())
        .group_by(site)
        .order_by(site)
    )
    ahead = now.wall - now.steady
    return [
        Site(name, count, silent, last + ahead) for name, count, silent, last in connection.execute(query)
    ]


def silent(connection: Connection, now: Now, hears_since: float) -> list[Silent]:
    query = (
        select(devices.c.id, site_of(connection), devices.c.last_seen_at)
        .where(_expected(), _is_silent(now.steady, hears_since, DEVICE_SILENT_S))
        .order_by(devices.c.id)
    )
    ahead = now.wall - now.steady
    return [Silent(name, site, last + ahead) for name, site, last in connection.execute(query)]


def copies(connection: Connection) -> list[str]:
    query = select(devices.c.id).where(devices.c.is_duplicate, devices.c.decommissioned_at.is_(None))
    return list(connection.execute(query.order_by(devices.c.id)).scalars())


def stopped(connection: Connection, now: Now) -> list[Stopped]:
    """Rollouts under way, and those that went back within a day, with who turned them."""
    query = select(rollouts.c.state).where(
        or_(
            rollouts.c.status.in_([status.value for status in _STANDS]),
            and_(
                rollouts.c.status.in_([status.value for status in _WENT_BACK]),
                rollouts.c.updated_at > now.wall - _RECENT_S,
            ),
        )
    )
    found = [msgspec.json.decode(state, type=Rollout) for state in connection.execute(query).scalars()]
    return [Stopped(one, "" if one.status is Status.RUNNING else _turner(connection, one)) for one in found]


def _turner(connection: Connection, rollout: Rollout) -> str:
    """Who paused it or turned it back; an end that only came of that is the fleet's word on another's."""
    query = (
        select(audit.c.actor, audit.c.action, audit.c.after)
        .where(audit.c.subject == rollout.label, audit.c.action.in_(_TURNED))
        .order_by(audit.c.id.desc())
        .limit(8)
    )
    for actor, action, after in connection.execute(query):
        is_end = action == "rollout.turn" and any(f'"{status.value}"' in after for status in _WENT_BACK)
        if not is_end:
            return str(actor)
    return "fleet"


def expiries(connection: Connection, wall: float) -> list[Expiry]:
    """Tokens in use and people, whose access ends."""
    tokens = select(access_tokens.c.name, access_tokens.c.expires_at).where(
        access_tokens.c.revoked_at.is_(None),
        access_tokens.c.expires_at > wall - _DAY,
        access_tokens.c.last_used_at > wall - _USED_LATELY_S,
    )
    found = [
        Expiry(f"token {name}", at, 7 * _DAY, f"edgekit fleet token add {name} … makes a new one")
        for name, at in connection.execute(tokens)
    ]
    people = select(users.c.name, users.c.expires_at).where(
        users.c.blocked_at.is_(None), users.c.expires_at > wall - _DAY
    )
    return found + [
        Expiry(f"user {name}", at, 7 * _DAY, f"edgekit fleet user change {name} --expires …")
        for name, at in connection.execute(people)
    ]


def certificates_ending(
    connection: Connection, now: Now, within_s: float
) -> tuple[int, list[str], float | None]:
    """How many devices that are heard have not renewed their certificate in time, some of them, and when the first ends."""
    newest = (
        select(certificates.c.device, func.max(certificates.c.not_after).label("ends"))
        .join(
            devices,
            and_(devices.c.id == certificates.c.device, devices.c.enrolment == certificates.c.enrolment),
        )
        .where(_expected(), certificates.c.revoked_at.is_(None), devices.c.last_seen_at > now.steady - _DAY)
        .group_by(certificates.c.device)
        .subquery()
    )
    query = (
        select(newest.c.device, newest.c.ends)
        .where(newest.c.ends < now.wall + within_s)
        .order_by(newest.c.ends)
    )
    rows = connection.execute(query).all()
    return len(rows), [row.device for row in rows[:5]], rows[0].ends if rows else None


def by_state(connection: Connection) -> dict[str, int]:
    """Devices in service: online, offline, never heard."""
    query = (
        select(
            func.count(),
            func.count().filter(devices.c.is_online),
            func.count().filter(devices.c.last_seen_at.is_(None)),
            func.count().filter(devices.c.is_duplicate),
            func.count().filter(devices.c.troubles != ""),
        )
        .select_from(devices)
        .where(devices.c.decommissioned_at.is_(None))
    )
    total, online, never, copied, troubled = connection.execute(query).one()
    return {
        "online": online,
        "offline": total - online - never,
        "never_heard": never,
        "copied": copied,
        "troubled": troubled,
    }
