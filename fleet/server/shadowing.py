"""Shadows: which devices compare, what their orders say, and how it ends.

Always true
 1. A shadow holds no rollout up: it changes nothing that a device is to run, and a device may be in both.
 2. A device has one shadow of a deployment at a time.
 3. Where its bundle becomes what a device is to run, the device compares no more; when that is so everywhere, it has ended.
    A release that is blocked is compared nowhere.
"""

from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotPossibleError, UsageError
from fleet import api
from fleet.rules import collecting as percents
from fleet.rules import selectors
from fleet.server import fitting
from fleet.server.clock import Now
from fleet.server.store import audit, blocked, devices, known, orders, releases, shadows
from fleet.server.store.audit import Who
from fleet.server.store.orders import Issuer

ORDERS_AT_ONCE = 200
MOST_SHARE = 0.5


def start(connection: Connection, wanted: api.NewShadow, *, now: float, who: Who) -> int:
    """Its number. Raises: UsageError, NotFoundError, NotPossibleError, ConflictError, BlockedError."""
    name, version = releases.parse_title(wanted.release)
    blocked.check_release(connection, name, version)
    share = _share(wanted.share)
    deployment = wanted.deployment or name
    selector = selectors.parse(wanted.to)
    everyone = devices.everyone(connection)
    labels = {label for row in everyone for label in devices.labels_of(row)} | {"device", "profile"}
    selectors.check_names(selector, labels)
    usable = blocked.usable(connection, name, version)
    matching = [row for row in everyone if selector.matches(devices.labels_of(row))]
    present = orders.desired_of(connection, devices=[row.id for row in matching])
    taken = shadows.busy(connection, deployment, [row.id for row in matching])
    if taken:
        device, other = next(iter(sorted(taken.items())))
        raise ConflictError(
            f"{device} compares {shadows.label(other)} already; 'edgekit fleet shadow stop {shadows.label(other)}' ends it"
        )
    chosen: dict[str, str] = {}
    reasons: set[str] = set()
    for row in matching:
        choice = fitting.choose(row, usable, deployment, present.get((row.id, deployment)))
        if choice.bundle is None:
            reasons.add(choice.reason)
        else:
            chosen[row.id] = choice.bundle.sha256
    if not chosen:
        because = "; ".join(sorted(reasons)[:5]) or f"none matches {wanted.to!r}"
        raise NotPossibleError(f"no device can compare {wanted.release}: {because}")
    values = {
        "deployment": deployment, "name": name, "version": version, "selector": wanted.to, "share": share,
        "created_at": now, "created_by": who.name,
    }  # fmt: skip
    number = shadows.add(connection, values, chosen)
    detail = f"{wanted.release} beside {deployment} on {len(chosen)} devices ({wanted.to}), {share:.0%} of a processor"
    audit.append(connection, now, who, "shadow.start", shadows.label(number), detail, after=wanted)
    return number


def _share(text: str) -> float:
    share = percents.parse_percent(text)
    if share is None or share > MOST_SHARE:
        raise UsageError(f"--share {text!r}: write a share above 0 % and up to {MOST_SHARE:.0%}, e.g. 10%")
    return share


def stop(connection: Connection, number: int, *, now: float, who: Who) -> None:
    """Its devices delete it as soon as they hear. Raises: NotFoundError, ConflictError."""
    found = shadows.get(connection, number, lock=True)
    if found.status != shadows.RUNNING:
        raise ConflictError(f"shadow {shadows.label(number)} is {found.status} already")
    shadows.end(connection, number, shadows.STOPPED, f"stopped by {who}")
    audit.append(
        connection, now, who, "shadow.stop", shadows.label(number), before={"status": found.status},
        after={"status": shadows.STOPPED},
    )  # fmt: skip


def step(connection: Connection, issuer: Issuer, now: Now) -> bool:
    """End what has become pointless, and write some of the orders that are due; whether there may be more."""
    for found in shadows.running(connection):
        if shadows.is_served_everywhere(connection, found.id):
            shadows.end(connection, found.id, shadows.SERVED, "all its devices are to run it")
        elif not blocked.usable(connection, found.name, found.version):
            shadows.end(connection, found.id, shadows.STOPPED, "its release is blocked")
    waiting = shadows.due(connection, ORDERS_AT_ONCE)
    if waiting:
        locked = known.lock(connection, waiting)
        rows = {name: row for name, row in locked.items() if row.get("decommissioned_at") is None}
        orders.issue_all(connection, issuer, rows, now.wall)
        shadows.written(connection, waiting)
    return len(waiting) == ORDERS_AT_ONCE
