"""What is told of drift to people: of each bundle that devices run, for the page and the API."""

from collections.abc import Callable, Mapping

from sqlalchemy import Connection, func, select

from fleet import api
from fleet.rules import seen, telling
from fleet.rules.seen import Compared
from fleet.server.schema_alerts import drift
from fleet.server.store import drift as drift_store
from fleet.server.store import glance, history, releases
from fleet.server.store.history import Told

DAY_S, HOUR_S = 86_400.0, 3600.0
# Bundles that are looked at: those on most devices.
MOST = 60


def running(connection: Connection) -> list[tuple[api.BundleView, int]]:
    """Bundles that devices run and on how many, the most first."""
    runs = glance.runs(connection)
    found = [
        (bundle, runs[bundle.sha256])
        for one in releases.everything(connection)
        for bundle in one.bundles
        if runs.get(bundle.sha256)
    ]
    return sorted(found, key=lambda one: -one[1])[:MOST]


def told(connection: Connection, sha256: str, now: float) -> Told:
    """What devices said in a day."""
    return history.told_of(connection, sha256, now - DAY_S)


def named(connection: Connection) -> dict[str, int]:
    """How many devices the fleet's rule names drifted, by digest."""
    query = (
        select(drift.c.digest, func.count()).where(drift.c.found_since.is_not(None)).group_by(drift.c.digest)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def said_last(
    connection: Connection, known: list[tuple[api.BundleView, int]], now: float
) -> dict[str, list[dict[str, float]]]:
    """What each device said last of drift, by digest, of those that were heard in the last hour."""
    return drift_store.said(connection, [bundle.sha256 for bundle, _ in known], now - HOUR_S)


def verdicts(devices: list[dict[str, float]]) -> dict[str, api.Said]:
    return {
        label: api.Said(one.devices, one.moved, one.index) for label, one in telling.said(devices).items()
    }


def compared(connection: Connection, sha256: str, found: Told) -> list[Compared]:
    """What devices saw and gave beside the reference; nothing where the reference is not known."""
    reference = releases.reference_of(connection, sha256)
    return [] if reference is None else seen.compare(reference, found.seen)


def confidence(found: list[Compared]) -> dict[str, api.Confidence]:
    return {
        one.label: api.Confidence(one.expected_mean, one.found_mean)
        for one in found
        if one.section == "confidence"
    }


def views(
    connection: Connection, now: float, look: Callable[[Connection, str, float], Told] = told
) -> list[api.DriftView]:
    """Of every bundle that devices run, what moved most first."""
    counts: Mapping[str, int] = named(connection)
    found, known = [], running(connection)
    by_device = said_last(connection, known, now)
    for bundle, devices in known:
        said = look(connection, bundle.sha256, now)
        found.append(
            api.DriftView(
                release=releases.title(bundle.name, bundle.version),
                profile=bundle.profile,
                sha256=bundle.sha256,
                devices=devices,
                named=counts.get(bundle.sha256, 0),
                said=verdicts(by_device.get(bundle.sha256, [])),
                confidence=confidence(compared(connection, bundle.sha256, said)),
                anomalies=said.anomalies,
            )
        )
    return sorted(found, key=rank)


def rank(one: api.DriftView) -> tuple[int, int, float]:
    """What moved most first: where most are named, then where most say so."""
    return -one.named, -one.moved, -max((thing.index for thing in one.said.values()), default=-1.0)
