"""Experiments and their devices.

Always true
 1. A window is added to a device's row in the transaction that takes its report, once, by one UPDATE that reads nothing.
 2. An order that is still to be written stands in the device's row: it is written wherever that was interrupted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from edgekit.errors import NotFoundError
from fleet.rules.experiment import Unit, Verdict, observed, parse_goal
from fleet.rules.sums import filed_at
from fleet.server.clock import Now
from fleet.server.schema_experiments import experiments, points, units
from fleet.server.store.upsert import among

RUNNING, STOPPED, ADOPTED = "running", "stopped", "adopted"
ExperimentRow = Row[Any]


class NewUnit(NamedTuple):
    """A device that joins."""

    device: str
    arm: str
    target: str
    previous: str | None


def label(number: int) -> str:
    return f"e{number}"


def parse_id(text: str) -> int:
    """`e7` or `7`. Raises: NotFoundError."""
    digits = text.removeprefix("e")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise NotFoundError(
            f"{text!r} is no experiment id; 'edgekit fleet experiment list' shows them (e1, e2, …)"
        )
    return int(digits)


def next_id(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(experiments.c.id), 0))).scalar_one()) + 1


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(insert(experiments).values(**values))


def get(connection: Connection, number: int, *, lock: bool = False) -> ExperimentRow:
    """Raises: NotFoundError."""
    query = select(experiments).where(experiments.c.id == number)
    found = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if found is None:
        raise NotFoundError(
            f"there is no experiment {label(number)}; 'edgekit fleet experiment list' shows them"
        )
    return found


def everything(connection: Connection) -> list[ExperimentRow]:
    """Newest first."""
    return list(connection.execute(select(experiments).order_by(experiments.c.id.desc())))


def running(connection: Connection) -> list[ExperimentRow]:
    query = select(experiments).where(experiments.c.status == RUNNING)
    return list(connection.execute(query.order_by(experiments.c.id)))


def last_point(connection: Connection, number: int) -> float | None:
    """When the newest was noted; wall time."""
    query = select(func.max(points.c.at)).where(points.c.experiment == number)
    return connection.execute(query).scalar()


def add_point(connection: Connection, number: int, at: float, verdict: Verdict) -> None:
    values = {
        "experiment": number, "at": at, "difference": verdict.difference, "low": verdict.low, "high": verdict.high,
        "devices": verdict.a.measured + verdict.b.measured,
    }  # fmt: skip
    connection.execute(insert(points).values(**values))


def points_of(connection: Connection, number: int) -> list[Row[Any]]:
    """The oldest first."""
    query = select(points).where(points.c.experiment == number)
    return list(connection.execute(query.order_by(points.c.at)))


def plan(connection: Connection, number: int, devices: int) -> None:
    """How many devices it begins with."""
    connection.execute(update(experiments).where(experiments.c.id == number).values(planned=devices))


def turn(connection: Connection, number: int, status: str, reason: str, now: float) -> None:
    connection.execute(
        update(experiments)
        .where(experiments.c.id == number)
        .values(status=status, reason=reason, updated_at=now)
    )


def join(connection: Connection, number: int, new: Iterable[NewUnit], now: float) -> None:
    """Devices come in; those that run their arm's release already need no order."""
    rows = [
        {
            "experiment": number, "device": unit.device, "arm": unit.arm, "target": unit.target,
            "previous": unit.previous, "wanted": unit.target, "is_due": unit.previous != unit.target,
            "joined_at": now,
        }
        for unit in sorted(new)
    ]  # fmt: skip
    if rows:
        connection.execute(insert(units), rows)


def send(connection: Connection, number: int, wanted: Mapping[str, str]) -> None:
    """These are to run something else from now on ("" for no model)."""
    rows = [{"at": device, "to": digest} for device, digest in sorted(wanted.items())]
    if rows:
        change = update(units).where(units.c.experiment == number, units.c.device == bindparam("at"))
        connection.execute(change.values(wanted=bindparam("to"), is_due=True), rows)


def forget(connection: Connection, device: str) -> None:
    """A device is deleted: the experiments under way go on without it, and ended ones keep what they counted."""
    ended = select(experiments.c.id).where(experiments.c.status != RUNNING)
    connection.execute(delete(units).where(units.c.device == device, units.c.experiment.not_in(ended)))
    connection.execute(update(units).where(units.c.device == device).values(is_due=False))


def due(connection: Connection, limit: int) -> list[Row[Any]]:
    """Devices whose order is still to be written: experiment, device, wanted, deployment."""
    query = select(units.c.experiment, units.c.device, units.c.wanted, experiments.c.deployment)
    query = query.join(experiments, experiments.c.id == units.c.experiment).where(units.c.is_due)
    return list(connection.execute(query.order_by(units.c.experiment, units.c.device).limit(limit)))


def written(connection: Connection, number: int, devices: Sequence[str]) -> None:
    theirs = units.c.experiment == number, among(connection, units.c.device, devices)
    connection.execute(update(units).where(*theirs).values(is_due=False))


def members(connection: Connection, number: int, devices: Sequence[str]) -> set[str]:
    """Those of these devices that are in it."""
    theirs = units.c.experiment == number, among(connection, units.c.device, devices)
    return set(connection.execute(select(units.c.device).where(*theirs)).scalars())


def rows_of(connection: Connection, number: int) -> list[Row[Any]]:
    return list(
        connection.execute(select(units).where(units.c.experiment == number).order_by(units.c.device))
    )


def units_of(connection: Connection, number: int) -> list[Unit]:
    return [
        Unit(
            row.device, row.arm, row.joined_at, row.windows, row.requests, row.errors, row.observed, row.total
        )
        for row in rows_of(connection, number)
    ]


def busy(connection: Connection, devices: Sequence[str]) -> dict[tuple[str, str], int]:
    """(device, deployment) → the experiment that has it, of these devices."""
    query = select(units.c.device, experiments.c.deployment, experiments.c.id)
    query = query.join(experiments, experiments.c.id == units.c.experiment)
    query = query.where(among(connection, units.c.device, devices))
    found = connection.execute(query.where((experiments.c.status == RUNNING) | units.c.is_due))
    return {(device, deployment): number for device, deployment, number in found}


def record(connection: Connection, new: Iterable[Any], now: Now) -> None:
    """Add what reports say of experiments under way. `new` are `telemetry.Arrived`, their devices locked."""
    open_ones = {row.id: row for row in running(connection)}
    if not open_ones:
        return
    arrived: dict[str, list[Any]] = {}
    for item in new:
        arrived.setdefault(item.known.id, []).append(item)
    columns = (units.c.experiment, units.c.device, units.c.target, units.c.joined_at)
    query = select(*columns).where(units.c.experiment.in_(list(open_ones)))
    changes = []
    for row in connection.execute(query.where(among(connection, units.c.device, sorted(arrived)))).all():
        added = _added(row, open_ones[row.experiment], arrived[row.device], now)
        if added["w"]:
            changes.append({"e": row.experiment, "d": row.device} | added)
    if changes:
        sums = {"windows": "w", "requests": "r", "errors": "f", "observed": "n", "total": "t"}
        change = update(units).where(units.c.experiment == bindparam("e"), units.c.device == bindparam("d"))
        values = {name: units.c[name] + bindparam(short) for name, short in sums.items()}
        connection.execute(change.values(**values), changes)


def _added(unit: Any, experiment: Any, items: Iterable[Any], now: Now) -> dict[str, float]:
    goal = parse_goal(experiment.goal)
    added = {"w": 0, "r": 0, "f": 0, "n": 0.0, "t": 0.0}
    for item in items:
        report = item.report
        ended = filed_at(
            report.started, report.length_s, clock_ok=report.clock_ok, walls=(now.wall, now.unstepped),
            steady=now.steady,
        )  # fmt: skip
        if ended is None or ended - report.length_s < unit.joined_at:
            continue
        for window in report.deployments:
            if window.deployment == experiment.deployment and window.digest == unit.target:
                count, total = observed(goal, window)
                for key, value in zip(added, (1, window.requests, window.errors, count, total), strict=True):
                    added[key] += value
    return added
