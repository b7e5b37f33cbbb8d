"""Experiments: who takes part, their orders, and how they end.

Always true
 1. A device takes part only if it can run both releases: otherwise the arms would differ in more than the release.
 2. It is in no rollout and no other experiment of that deployment at the same time.
 3. Orders are written a bounded number at a time, from what stands in the devices' rows (`is_due`).
 4. What is known of the difference is kept as it goes on, and once more when it ends.
 5. Stopped, each device goes back to what it ran before; adopted, all follow the better arm, and the selector with them.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, insert

from edgekit.errors import ConflictError, NotPossibleError
from fleet import api
from fleet.rules import experiment as rules
from fleet.rules import selectors
from fleet.server import fitting, schema
from fleet.server.clock import Now
from fleet.server.store import audit, blocked, devices, experiments, orders, releases, rollouts
from fleet.server.store.audit import Who
from fleet.server.store.devices import DeviceRow
from fleet.server.store.experiments import ExperimentRow, NewUnit
from fleet.server.store.orders import Issuer

ORDERS_AT_ONCE = 200


def start(connection: Connection, wanted: api.NewExperiment, *, now: Now, who: Who) -> ExperimentRow:
    """Raises: NotPossibleError, NotFoundError, ConflictError, BlockedError."""
    (name_a, version_a), (name_b, version_b) = (releases.parse_title(text) for text in (wanted.a, wanted.b))
    if (name_a, version_a) == (name_b, version_b):
        raise NotPossibleError("an experiment compares two releases; A and B are the same")
    for name, version in ((name_a, version_a), (name_b, version_b)):
        blocked.check_release(connection, name, version)
    share = rules.parse_split(wanted.split)
    rules.parse_goal(wanted.goal)
    selector = selectors.parse(wanted.to)
    everyone = devices.everyone(connection)
    known = {label for row in everyone for label in devices.labels_of(row)} | {"device", "profile"}
    selectors.check_names(selector, known)
    number = experiments.next_id(connection)
    values = {
        "id": number, "status": experiments.RUNNING, "deployment": wanted.deployment or name_a, "name_a": name_a,
        "version_a": version_a, "name_b": name_b, "version_b": version_b, "selector": wanted.to, "share": share,
        "goal": wanted.goal, "planned": 0, "reason": "", "created_at": now.steady, "updated_at": now.steady,
    }  # fmt: skip
    experiments.add(connection, values)
    found = experiments.get(connection, number)
    new, reasons = _eligible(connection, found, everyone)
    if len(new) < 2 * rules.SMALLEST_ARM:
        because = "; ".join(sorted(reasons)[:5])
        raise NotPossibleError(
            f"{len(new)} devices could take part, {2 * rules.SMALLEST_ARM} are needed to see anything"
            f"{f' ({because})' if because else ''}"
        )
    experiments.join(connection, number, new, now.steady)
    experiments.plan(connection, number, len(new))
    detail = (
        f"{wanted.a} against {wanted.b} to {wanted.to}, {wanted.split}, {wanted.goal}, {len(new)} devices"
    )
    audit.append(
        connection, now.wall, who, "experiment.start", experiments.label(number), detail, after=wanted
    )
    return experiments.get(connection, number)


def step(connection: Connection, issuer: Issuer, fresh: Iterable[str] | None, now: Now) -> bool:
    """New devices join, and some of the orders that are due are written; whether there may be more."""
    for found in experiments.running(connection):
        rows = devices.everyone(connection) if fresh is None else devices.some(connection, sorted(fresh))
        members = experiments.members(connection, found.id, [row.id for row in rows])
        strangers = [row for row in rows if row.id not in members]
        if strangers:
            new, _ = _eligible(connection, found, strangers)
            experiments.join(connection, found.id, new, now.steady)
    waiting = experiments.due(connection, ORDERS_AT_ONCE)
    by_experiment: dict[tuple[int, str], dict[str, tuple[str | None]]] = {}
    for row in waiting:
        by_experiment.setdefault((row.experiment, row.deployment), {})[row.device] = (row.wanted or None,)
    for (number, deployment), moves in by_experiment.items():
        because = f"experiment {experiments.label(number)}"
        try:
            orders.move(connection, issuer, (deployment,), moves, because=because, now=now.wall)
        except blocked.BlockedError as error:
            experiments.turn(connection, number, experiments.STOPPED, str(error), now.steady)
        # Out of service, or blocked: there is nobody to tell, or nothing to say.
        experiments.written(connection, number, sorted(moves))
    return len(waiting) == ORDERS_AT_ONCE


def note(connection: Connection, now: Now) -> None:
    """Keep what is known of experiments that was not kept for long. A verdict reads every unit: no chore of each tick."""
    for found in experiments.running(connection):
        begun = found.created_at + now.wall - now.steady
        if rules.is_to_note(begun, experiments.last_point(connection, found.id), now.wall):
            judged = verdict(connection, found, now)
            if judged.difference is not None:
                experiments.add_point(connection, found.id, now.wall, judged)


def stop(connection: Connection, number: int, *, now: Now, who: Who) -> ExperimentRow:
    """Each device goes back to what it ran before. Raises: NotFoundError, ConflictError."""
    found = _running(connection, number, "stop")
    rows = experiments.rows_of(connection, number)
    back = {row.device: row.previous or "" for row in rows if row.previous != row.wanted}
    experiments.send(connection, number, back)
    return _end(connection, found, experiments.STOPPED, f"stopped by {who}", now=now, who=who)


def adopt(connection: Connection, number: int, arm: str, *, now: Now, who: Who) -> ExperimentRow:
    """All follow one arm, and its release is assigned to the selector. Raises: NotFoundError, ConflictError."""
    found = _running(connection, number, "adopt")
    name, version = (found.name_a, found.version_a) if arm == "A" else (found.name_b, found.version_b)
    blocked.check_release(connection, name, version)
    bundles = blocked.usable(connection, name, version)
    wanted = {}
    for row in experiments.rows_of(connection, number):
        device = devices.find(connection, row.device)
        if device is None:
            continue
        bundle = fitting.bundle_for(device, bundles)
        if bundle is not None and bundle.sha256 != row.wanted:
            wanted[row.device] = bundle.sha256
    experiments.send(connection, number, wanted)
    values = {
        "deployment": found.deployment, "selector": found.selector, "name": name, "version": version,
        "rollout": 0, "set_at": now.wall,
    }  # fmt: skip
    connection.execute(insert(schema.assignments).values(**values))
    reason = f"{arm} ({releases.title(name, version)}) adopted by {who}"
    return _end(connection, found, experiments.ADOPTED, reason, now=now, who=who)


def _running(connection: Connection, number: int, verb: str) -> ExperimentRow:
    found = experiments.get(connection, number, lock=True)
    if found.status != experiments.RUNNING:
        raise ConflictError(f"experiment {experiments.label(number)} is {found.status}; it cannot {verb} now")
    return found


def _end(
    connection: Connection, found: ExperimentRow, status: str, reason: str, *, now: Now, who: Who
) -> ExperimentRow:
    experiments.turn(connection, found.id, status, reason, now.steady)
    judged = verdict(connection, found, now)
    if judged.difference is not None and experiments.last_point(connection, found.id) != now.wall:
        experiments.add_point(connection, found.id, now.wall, judged)
    audit.append(
        connection, now.wall, who, f"experiment.{'adopt' if status == experiments.ADOPTED else 'stop'}",
        experiments.label(found.id), f"{reason}; {judged.words}"[:2000], before={"status": found.status},
        after={"status": status},
    )  # fmt: skip
    return experiments.get(connection, found.id)


def verdict(connection: Connection, found: ExperimentRow, now: Now) -> rules.Verdict:
    units = experiments.units_of(connection, found.id)
    return rules.judge(rules.parse_goal(found.goal), units, found.share, found.planned, now.steady)


def _eligible(
    connection: Connection, found: ExperimentRow, rows: Iterable[DeviceRow]
) -> tuple[list[NewUnit], set[str]]:
    """Who joins, and the reasons of those that match and do not."""
    selector = selectors.parse(found.selector)
    usable = {
        "A": blocked.usable(connection, found.name_a, found.version_a),
        "B": blocked.usable(connection, found.name_b, found.version_b),
    }
    matching = [row for row in rows if selector.matches(devices.labels_of(row))]
    names = [row.id for row in matching]
    present = orders.desired_of(connection, devices=names)
    taken = rollouts.busy(connection, names).keys() | experiments.busy(connection, names).keys()
    new, reasons = [], set()
    for row in matching:
        now_runs = present.get((row.id, found.deployment))
        choices = {
            arm: fitting.choose(row, bundles, found.deployment, None) for arm, bundles in usable.items()
        }
        unfit = next((choice.reason for choice in choices.values() if choice.bundle is None), None)
        if unfit is None and (row.id, found.deployment) in taken:
            unfit = "is in a rollout or another experiment"
        if unfit is not None:
            reasons.add(unfit)
            continue
        arm = rules.arm_of(experiments.label(found.id), row.id, found.share)
        bundle = choices[arm].bundle
        assert bundle is not None
        new.append(NewUnit(row.id, arm, bundle.sha256, now_runs.sha256 if now_runs is not None else None))
    return new, reasons
