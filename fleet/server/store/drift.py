"""Drift of devices, kept in blocks (`fleet.rules.drift`), read a bounded piece at a time from what reports added up.

Always true
 1. A pass looks at each device and bundle once; what is named is decided when it is over, of all of them together.
"""

from statistics import median
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, select, tuple_, update

from fleet.rules import drift as rules
from fleet.rules.drift import Track
from fleet.rules.evidence import Sums
from fleet.rules.findings import Drifted
from fleet.server.clock import Now
from fleet.server.schema import bundles, devices, totals
from fleet.server.schema_alerts import drift
from fleet.server.store.upsert import upsert
from fleet.server.store.watching import site_of

AT_ONCE = 2000
# Of a bundle that a device runs no longer nothing new is said.
FORGET_S = 3 * 86_400.0
Key = tuple[str, str, str]
START: Key = ("", "", "")
_TRACK = msgspec.json.Decoder(Track)


class _Recent(msgspec.Struct, gc=False):
    """Of `fleet.rules.sums.Recent`, what this is about."""

    older: Sums = Sums()


_RECENT = msgspec.json.Decoder(_Recent)


def gather(connection: Connection, after: Key, now: Now) -> Key | None:
    """Take in the blocks that became whole, of the next devices; where to go on, or None at the end."""
    key = tuple_(totals.c.device, totals.c.deployment, totals.c.digest)
    query = (
        select(totals.c.device, totals.c.deployment, totals.c.digest, totals.c.recent, drift.c.track)
        .outerjoin(
            drift,
            (drift.c.device == totals.c.device)
            & (drift.c.deployment == totals.c.deployment)
            & (drift.c.digest == totals.c.digest),
        )
        .where(key > tuple_(*after))
        .order_by(totals.c.device, totals.c.deployment, totals.c.digest)
        .limit(AT_ONCE)
    )
    rows = connection.execute(query).all()
    changed = []
    for row in rows:
        if f'"{rules.METRIC}"' not in row.recent:
            continue
        before = _TRACK.decode(row.track) if row.track else Track()
        track = before.grown(_RECENT.decode(row.recent).older)
        if track is not before:
            changed.append(_row(row, track, now.steady))
    _write(connection, changed)
    return (rows[-1].device, rows[-1].deployment, rows[-1].digest) if len(rows) == AT_ONCE else None


def _row(row: Any, track: Track, now: float) -> dict[str, Any]:
    return {
        "device": row.device,
        "deployment": row.deployment,
        "digest": row.digest,
        "track": msgspec.json.encode(track).decode(),
        "blocks": len(track.blocks),
        "seen_at": now,
        "chance": rules.chance(track.blocks),
        "level": track.level,
    }


def _write(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    keys = [(row["device"], row["deployment"], row["digest"]) for row in rows]
    since: dict[Key, float] = {}
    for at in range(0, len(keys), 500):
        query = select(drift.c.device, drift.c.deployment, drift.c.digest, drift.c.found_since).where(
            tuple_(drift.c.device, drift.c.deployment, drift.c.digest).in_(keys[at : at + 500]),
            drift.c.found_since.is_not(None),
        )
        since |= {(d, p, g): found for d, p, g, found in connection.execute(query)}
    upsert(
        connection,
        drift,
        [row | {"found_since": since.get(key)} for key, row in zip(keys, rows, strict=True)],
    )


def judge(connection: Connection, now: Now) -> list[Drifted]:
    """Name those that drifted, of all that are measured; releases, the one with most devices first."""
    connection.execute(delete(drift).where(drift.c.seen_at < now.steady - FORGET_S))
    query = (
        select(drift, site_of(connection).label("site"), bundles.c.name, bundles.c.version)
        .join(devices, devices.c.id == drift.c.device)
        .outerjoin(bundles, bundles.c.sha256 == drift.c.digest)
        .where(devices.c.decommissioned_at.is_(None), drift.c.chance.is_not(None))
    )
    rows = {(row.device, row.deployment, row.digest): row for row in connection.execute(query)}
    named = rules.discoveries({key: row.chance for key, row in rows.items()})
    for key, row in rows.items():
        is_named = key in named
        if is_named != (row.found_since is not None):
            change = update(drift).where(
                tuple_(drift.c.device, drift.c.deployment, drift.c.digest) == tuple_(*key)
            )
            connection.execute(change.values(found_since=now.wall if is_named else None))
    return _by_release(rows, named, now.wall)


def _by_release(rows: dict[Key, Any], named: set[Key], wall: float) -> list[Drifted]:
    measured: dict[tuple[str, str], int] = {}
    groups: dict[tuple[str, str], list[Any]] = {}
    for key, row in rows.items():
        release = f"{row.name}@{row.version}" if row.name is not None else row.digest[:12]
        measured[release, row.deployment] = measured.get((release, row.deployment), 0) + 1
        if key in named:
            groups.setdefault((release, row.deployment), []).append(row)
    found = []
    for (release, deployment), those in groups.items():
        sites: dict[str, int] = {}
        for row in those:
            sites[row.site] = sites.get(row.site, 0) + 1
        found.append(
            Drifted(
                release=release,
                deployment=deployment,
                digests=tuple(sorted({row.digest for row in those})),
                devices=tuple(sorted({row.device for row in those})),
                measured=measured[release, deployment],
                sites=sites,
                level=median(row.level for row in those),
                since=min(row.found_since or wall for row in those),
            )
        )
    return sorted(found, key=lambda one: (-len(one.devices), one.release, one.deployment))
