"""Devices that come to a rollout under way: enrolled since it began, or relabelled."""

from sqlalchemy import Connection

from fleet.rules import selectors
from fleet.rules.rollout import Joined, Rollout
from fleet.server import changes, fitting, placing
from fleet.server.clock import Now
from fleet.server.fitting import Side
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
    sides = [Side(p.deployment, blocked.usable(connection, p.name, p.version)) for p in spec.parts]
    present = orders.desired_of(connection, devices=names)
    taken = rollouts.busy(connection, names).keys() | experiments.busy(connection, names).keys()
    waits = placing.not_yet(connection, new, spec.deployments, present)
    moment = rollouts.moment(now.steady)
    found = []
    for row in new:
        mine = [(row.id, deployment) for deployment in spec.deployments]
        choice = fitting.choose_all(row, sides, present)
        if choice.bundles and taken.isdisjoint(mine) and row.id not in waits:
            had = [present.get(one) for one in mine]
            found.append(fitting.member_of(choice, rollout.label, had, frozenset(), moment))
    if not found:
        return rollout
    return changes.apply(connection, issuer, rollout, Joined(tuple(found)), now=now)
