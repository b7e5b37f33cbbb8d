"""Drift of devices, kept in blocks (`fleet.rules.drift`), read a bounded piece at a time from what reports added up.

Always true
 1. A pass looks at each device and bundle once; what is named is decided when it is over, of all of them together.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, select, tuple_, update

from fleet.rules import drift as rules
from fleet.rules import telling
from fleet.rules.drift import Track
from fleet.rules.evidence import Sums
from fleet.rules.findings import Drifted
from fleet.rules.history import Gauges
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
_GAUGES = msgspec.json.Decoder(Gauges)


def gather(connection: Connection, after: Key, now: Now) -> Key | None:
    """Take in the blocks that became whole, of the next devices; where to go on, or None at the end."""
    key = tuple_(totals.c.device, totals.c.deployment, totals.c.digest)
    query = (
        select(
            totals.c.device,
            totals.c.deployment,
            totals.c.digest,
            totals.c.recent,
            drift.c.track,
            drift.c.found_since,
        )
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
    upsert(connection, drift, changed)
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
        "found_since": row.found_since,
    }


def judge(connection: Connection, now: Now) -> list[Drifted]:
    """Name those that drifted, of all that are measured; releases, the one with most devices first."""
    connection.execute(delete(drift).where(drift.c.seen_at < now.steady - FORGET_S))
    key = (drift.c.device, drift.c.deployment, drift.c.digest)
    query = (
        select(*key, drift.c.chance, drift.c.found_since)
        .join(devices, devices.c.id == drift.c.device)
        .where(devices.c.decommissioned_at.is_(None), drift.c.chance.is_not(None))
    )
    chances: dict[Key, float] = {}
    before: dict[Key, float] = {}
    measured: Counter[tuple[str, str]] = Counter()
    for device, deployment, digest, chance, found_since in connection.execute(query):
        chances[device, deployment, digest] = chance
        measured[deployment, digest] += 1
        if found_since is not None:
            before[device, deployment, digest] = found_since
    named = rules.discoveries(chances)
    for one in named ^ before.keys():
        change = update(drift).where(tuple_(*key) == tuple_(*one))
        connection.execute(change.values(found_since=now.wall if one in named else None))
    return _by_release(connection, measured) if named else []


def said(connection: Connection, digests: Collection[str], since: float) -> dict[str, list[dict[str, float]]]:
    """What each device said last of drift, by the digest of what it runs; of those that were heard since then."""
    found: dict[str, list[dict[str, float]]] = {}
    query = (
        select(totals.c.digest, totals.c.gauges)
        .join(devices, devices.c.id == totals.c.device)
        .where(totals.c.digest.in_(digests), devices.c.decommissioned_at.is_(None))
    )
    for digest, text in connection.execute(query):
        gauges = _GAUGES.decode(text)
        if gauges.drift and gauges.filed is not None and gauges.filed >= since:
            found.setdefault(digest, []).append(gauges.drift)
    return found


def _by_release(connection: Connection, measured: Mapping[tuple[str, str], int]) -> list[Drifted]:
    """Those that are named now, by what they run."""
    query = (
        select(drift, site_of(connection).label("site"), bundles.c.name, bundles.c.version, totals.c.gauges)
        .join(devices, devices.c.id == drift.c.device)
        .outerjoin(
            totals,
            (totals.c.device == drift.c.device)
            & (totals.c.deployment == drift.c.deployment)
            & (totals.c.digest == drift.c.digest),
        )
        .outerjoin(bundles, bundles.c.sha256 == drift.c.digest)
        .where(drift.c.found_since.is_not(None), devices.c.decommissioned_at.is_(None))
    )
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in connection.execute(query):
        release = f"{row.name}@{row.version}" if row.name is not None else row.digest[:12]
        groups.setdefault((release, row.deployment), []).append(row)
    found = [
        Drifted(
            release=release,
            deployment=deployment,
            digests=tuple(sorted({row.digest for row in those})),
            devices=tuple(sorted({row.device for row in those})),
            measured=sum(measured[deployment, digest] for digest in {row.digest for row in those}),
            sites=dict(Counter(row.site for row in those)),
            level=median(row.level for row in those),
            since=min(row.found_since for row in those),
            moved=telling.moved(_GAUGES.decode(row.gauges).drift for row in those if row.gauges),
        )
        for (release, deployment), those in groups.items()
    ]
    return sorted(found, key=lambda one: (-len(one.devices), one.release, one.deployment))
