"""Devices that come to a rollout under way: enrolled since it began, or relabelled."""

from sqlalchemy import Connection

from fleet.rules import selectors
from fleet.rules.rollout import Joined, Rollout
from fleet.server import changes, fitting, placing
from fleet.server.clock import Now
from fleet.server.store import blocked, devices, experiments, orders, rollouts
from fleet.server.store.orders import Issuer


def join(connection: Connection, issuer: Issuer, rollout: Rollout, fresh: set[str], now: Now) -> Rollout:
    """The rollout with those of `fresh` that match only now, once they are at rest with what is assigned to them."""
    spec = rollout.spec
    selector = selectors.parse(spec.selector)
    strangers = sorted(fresh - rollout.members.keys())
    new = [row for row in devices.some(connection, strangers) if selector.matches(devices.labels_of(row))]
    if not new:
        return rollout
    names = [row.id for row in new]
    bundles = blocked.usable(connection, spec.name, spec.version)
    present = orders.desired_of(connection, devices=names)
    taken = rollouts.busy(connection, names).keys() | experiments.busy(connection, names).keys()
    waits = placing.not_yet(connection, new, spec.deployment, present)
    moment = rollouts.moment(now.steady)
    found = []
    for row in new:
        now_runs = present.get((row.id, spec.deployment))
        choice = fitting.choose(row, bundles, spec.deployment, now_runs)
        if choice.bundle is not None and (row.id, spec.deployment) not in taken and row.id not in waits:
            found.append(fitting.member_of(choice, rollout.label, now_runs, frozenset(), moment))
    if not found:
        return rollout
    return changes.apply(connection, issuer, rollout, Joined(tuple(found)), now=now)
