"""The block list: releases and bundles that no new order may name, from the moment on that they are on it.

What runs them already goes on with it; taking it away is a rollout of another release. The list is the fleet's own and
stops nobody who holds the order key: taking the bundle out of the targets does, once the publisher's key is at hand.
"""

import re
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select

from edgekit.errors import ConflictError, NotFoundError, UsageError
from fleet.api import BlockedView
from fleet.server.schema import blocked, bundles, desired
from fleet.server.store import audit, releases
from fleet.server.store.audit import Who
from fleet.server.store.releases import BundleRow

_DIGEST = re.compile(r"^[0-9a-f]{64}$")


class BlockedError(ConflictError):
    """An order would name what is blocked."""


def checked(subject: str) -> str:
    """NAME@VERSION or a sha256. Raises: UsageError."""
    if not _DIGEST.match(subject):
        try:
            releases.parse_title(subject)
        except UsageError as error:
            raise UsageError(f"{subject[:80]!r}: write NAME@VERSION, or a bundle's whole sha256") from error
    return subject


def add(connection: Connection, subject: str, reason: str, *, now: float, who: Who) -> bool:
    """Whether it was not on the list yet."""
    if connection.execute(select(blocked.c.subject).where(blocked.c.subject == subject)).scalar():
        return False
    connection.execute(insert(blocked).values(subject=subject, reason=reason, actor=who.name, at=now))
    audit.append(connection, now, who, "release.block", subject, reason)
    return True


def remove(connection: Connection, subject: str, reason: str, *, now: float, who: Who) -> None:
    """Raises: NotFoundError."""
    if not connection.execute(delete(blocked).where(blocked.c.subject == subject)).rowcount:
        raise NotFoundError(f"{subject[:80]} is not blocked; 'edgekit fleet blocked' shows what is")
    audit.append(connection, now, who, "release.unblock", subject, reason)


def everything(connection: Connection) -> tuple[BlockedView, ...]:
    query = select(blocked).order_by(blocked.c.at.desc(), blocked.c.subject)
    return tuple(
        BlockedView(row.subject, row.reason, row.actor, datetime.fromtimestamp(row.at, UTC))
        for row in connection.execute(query)
    )


def usable(connection: Connection, name: str, version: str) -> dict[str, BundleRow]:
    """The bundles of a release, by profile, that orders may name. Raises: NotFoundError if there is no such release."""
    return {
        profile: row
        for profile, row in releases.by_profile(connection, name, version).items()
        if _why(connection, row) is None
    }


def check(connection: Connection, sha256: str) -> None:
    """Raises: BlockedError if no order may name this bundle."""
    row = connection.execute(select(bundles).where(bundles.c.sha256 == sha256)).one_or_none()
    why = _why(connection, row) if row is not None else None
    if row is not None and why is not None:
        raise BlockedError(_told(row, why))


def check_release(connection: Connection, name: str, version: str) -> None:
    """Raises: BlockedError if all of a release is blocked."""
    found = releases.by_profile(connection, name, version)
    whys = {profile: _why(connection, row) for profile, row in found.items()}
    if all(whys.values()):
        profile, why = next(iter(whys.items()))
        raise BlockedError(_told(found[profile], why or ""))


def withdraw(connection: Connection, device: str) -> None:
    """A device that begins anew gets nothing that is blocked, whatever it ran before."""
    query = select(desired.c.deployment, bundles).join(bundles, bundles.c.sha256 == desired.c.sha256)
    for row in connection.execute(query.where(desired.c.device == device)).all():
        if _why(connection, row) is not None:
            gone = (desired.c.device == device) & (desired.c.deployment == row.deployment)
            connection.execute(delete(desired).where(gone))


def _why(connection: Connection, row: BundleRow) -> str | None:
    """The reason, perhaps empty, if this bundle or its release is on the list."""
    subjects = (row.sha256, releases.title(row.name, row.version))
    found = connection.execute(select(blocked.c.reason).where(blocked.c.subject.in_(subjects))).first()
    return str(found.reason) if found is not None else None


def _told(row: BundleRow, why: str) -> str:
    reason = f" ({why})" if why else ""
    return (
        f"{releases.title(row.name, row.version)} for {row.profile} is blocked{reason};"
        " 'edgekit fleet blocked' shows the list, 'edgekit fleet unblock' takes it off"
    )
