"""Assignments: what the devices of a selector run, by a completed rollout or by a person's word."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, exists, insert, literal, or_, select, update

from edgekit.errors import NotFoundError
from fleet.api import AssignmentView
from fleet.rules.placing import BY_ASSIGNMENT, Assignment, Assignments
from fleet.server.schema import assignments, bundles, desired
from fleet.server.store import audit, devices
from fleet.server.store.audit import Who
from fleet.server.store.upsert import among


def newest_first(connection: Connection) -> Assignments:
    query = select(assignments).order_by(assignments.c.id.desc())
    return Assignments(
        [
            Assignment(
                row.id,
                row.deployment,
                row.selector,
                row.name,
                row.version,
                row.rollout,
                row.probation_s,
                row.set_at,
            )
            for row in connection.execute(query)
        ]
    )


def concerned(connection: Connection, names: Sequence[str] | None) -> set[str]:
    """Devices, of all or of these, for which `fleet.rules.placing` may find a change that no mark asks for: they lack
    something, or have something that an assignment gave or that is older than an assignment of another release.
    """
    found = {row.id for row in devices.lacking(connection, names)}
    newer = assignments.c.deployment == desired.c.deployment, assignments.c.set_at > desired.c.set_at
    other = or_(assignments.c.name != bundles.c.name, assignments.c.version != bundles.c.version)
    title = literal(BY_ASSIGNMENT) + assignments.c.name + "@" + assignments.c.version
    same = assignments.c.deployment == desired.c.deployment, title == desired.c.because
    is_withdrawn = desired.c.because.startswith(BY_ASSIGNMENT, autoescape=True) & ~exists().where(*same)
    query = select(desired.c.device).join(bundles, bundles.c.sha256 == desired.c.sha256)
    query = query.where(exists().where(*newer, other) | is_withdrawn)
    if names is not None:
        query = query.where(among(connection, desired.c.device, names))
    return found | set(connection.execute(query).scalars())


def everything(connection: Connection) -> list[AssignmentView]:
    query = select(assignments).order_by(assignments.c.id.desc())
    return [
        AssignmentView(
            id=f"a{row.id}",
            release=f"{row.name}@{row.version}",
            to=row.selector,
            deployment=row.deployment,
            because=f"r{row.rollout}" if row.rollout else "assigned",
            at=datetime.fromtimestamp(row.set_at, UTC),
        )
        for row in connection.execute(query)
    ]


def add(
    connection: Connection,
    name: str,
    version: str,
    selector: str,
    deployment: str,
    *,
    moves: int,
    probation_s: float | None = None,
    now: float,
    who: Who,
) -> str:
    """A person's own; its id. `moves` devices are to change by it."""
    values = {"deployment": deployment, "selector": selector, "name": name, "version": version}
    row = (
        insert(assignments)
        .values(**values, rollout=0, probation_s=probation_s, set_at=now)
        .returning(assignments.c.id)
    )
    label = f"a{connection.execute(row).scalar_one()}"
    after = {"release": f"{name}@{version}", "to": selector, "deployment": deployment, "moves": moves}
    audit.append(connection, now, who, "assignment.add", label, after=after)
    return label


def remove(connection: Connection, label: str, reason: str, *, now: float, who: Who) -> None:
    """Devices go on with what they run; who comes later gets what was assigned before. Raises: NotFoundError."""
    digits = label.removeprefix("a")
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    row = connection.execute(select(assignments).where(assignments.c.id == number)).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no assignment {label[:20]!r}; 'edgekit fleet assignments' lists them (a1, a2, …)"
        )
    connection.execute(delete(assignments).where(assignments.c.id == number))
    # On their own account from now on: only what a rollback takes away is taken from who has it.
    title = f"{row.name}@{row.version}"
    by_it = desired.c.deployment == row.deployment, desired.c.because == f"{BY_ASSIGNMENT}{title}"
    connection.execute(update(desired).where(*by_it).values(because=f"kept {title}"))
    before = {"release": f"{row.name}@{row.version}", "to": row.selector, "deployment": row.deployment}
    audit.append(connection, now, who, "assignment.remove", f"a{number}", reason, before=before)
