"""What `/metrics` reads from the database: the fleet in numbers, by aggregate queries."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from sqlalchemy import JSON, Connection, Float, cast, func, select, type_coerce

from fleet.rules.gates import Outcome
from fleet.rules.rollout import ACTIVE, Rollout
from fleet.server.schema import bundles, members, outbox, rollouts, totals
from fleet.server.schema_alerts import alerts, drift, messages
from fleet.server.store import settings, watching, workers
from fleet.server.store.alerts import WAITING


class Release(NamedTuple):
    """Of a bundle on all devices, ever: counts, and seconds that its engine took. `devices` run it by their own word."""

    deployment: str
    release: str
    profile: str
    windows: int
    requests: int
    errors: int
    infer_s: float
    devices: int


class RolloutFigures(NamedTuple):
    label: str
    release: str
    status: str
    stage: int
    stages: int
    members: Mapping[str, int]
    gates: Mapping[str, Outcome]


class Figures(NamedTuple):
    """One reading. `workers` are (name, whether it hears, reports stored)."""

    is_frozen: bool
    devices: Mapping[str, int]
    rollouts: Mapping[str, int]
    active: tuple[RolloutFigures, ...]
    releases: tuple[Release, ...]
    alerts: Mapping[tuple[str, str], int]
    messages_waiting: int
    outbox: int
    drifted: Mapping[str, int]
    workers: tuple[tuple[str, bool, int], ...]
    dropped: Mapping[tuple[str, str], int]


def read(connection: Connection, steady: float) -> Figures:
    by_status = select(rollouts.c.status, func.count()).group_by(rollouts.c.status)
    by_alert = (
        select(alerts.c.kind, alerts.c.severity, func.count())
        .where(alerts.c.opened_at.is_not(None), alerts.c.ended.is_(None))
        .group_by(alerts.c.kind, alerts.c.severity)
    )
    waiting = select(func.count()).select_from(messages).where(messages.c.state == WAITING)
    unpublished = select(func.count()).select_from(outbox).where(outbox.c.published_at.is_(None))
    drifted = (
        select(bundles.c.name, bundles.c.version, func.count())
        .join(drift, drift.c.digest == bundles.c.sha256)
        .where(drift.c.found_since.is_not(None))
        .group_by(bundles.c.name, bundles.c.version)
    )
    return Figures(
        is_frozen=settings.is_frozen(connection),
        devices=watching.by_state(connection),
        rollouts={key: int(count) for key, count in connection.execute(by_status)},
        active=_active(connection),
        releases=_releases(connection),
        alerts={(kind, severity): count for kind, severity, count in connection.execute(by_alert)},
        messages_waiting=connection.execute(waiting).scalar_one(),
        outbox=connection.execute(unpublished).scalar_one(),
        drifted={f"{name}@{version}": count for name, version, count in connection.execute(drifted)},
        workers=tuple((w.name, w.is_hearing, w.stored) for w in workers.there(connection, steady)),
        dropped=workers.dropped(connection),
    )


def _active(connection: Connection) -> tuple[RolloutFigures, ...]:
    """Rollouts under way."""
    query = select(rollouts.c.state).where(rollouts.c.status.in_([status.value for status in ACTIVE]))
    found = []
    for state in connection.execute(query.order_by(rollouts.c.id)).scalars():
        rollout = msgspec.json.decode(state, type=Rollout)
        counted = (
            select(members.c.state, func.count())
            .where(members.c.rollout == rollout.id)
            .group_by(members.c.state)
        )
        found.append(
            RolloutFigures(
                rollout.label,
                f"{rollout.spec.name}@{rollout.spec.version}",
                rollout.status.value,
                rollout.stage + 1,
                len(rollout.spec.stages),
                {key: int(count) for key, count in connection.execute(counted)},
                {verdict.gate: verdict.outcome for verdict in rollout.verdicts},
            )
        )
    return tuple(found)


def _releases(connection: Connection) -> tuple[Release, ...]:
    is_postgresql = connection.dialect.name == "postgresql"
    sketch = cast(totals.c.infer_ms, JSON) if is_postgresql else type_coerce(totals.c.infer_ms, JSON)
    sums = (
        select(
            totals.c.deployment,
            totals.c.digest,
            func.sum(totals.c.windows).label("windows"),
            func.sum(totals.c.requests).label("requests"),
            func.sum(totals.c.errors).label("errors"),
            func.sum(cast(sketch["total"].as_float(), Float)).label("infer_ms"),
            func.count().label("devices"),
        )
        .group_by(totals.c.deployment, totals.c.digest)
        .subquery()
    )
    query = (
        select(sums, bundles.c.name, bundles.c.version, bundles.c.profile)
        .outerjoin(bundles, bundles.c.sha256 == sums.c.digest)
        .order_by(sums.c.deployment, sums.c.digest)
    )
    return tuple(
        Release(
            row.deployment,
            f"{row.name}@{row.version}" if row.name is not None else row.digest[:12],
            row.profile or "",
            int(row.windows),
            int(row.requests),
            int(row.errors),
            float(row.infer_ms or 0.0) / 1000,
            int(row.devices),
        )
        for row in connection.execute(query)
    )
