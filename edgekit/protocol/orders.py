"""Accepting an order (trust.md): pure, the clock passed in.

Always true
 1. An order is followed only by the fleet, device and enrolment it names.
 2. The counter of a followed order is above every counter followed before; the caller syncs it before acting.
 3. The same counter with the same bytes is a repeat, and does nothing; with other bytes it is refused.
 4. An expired order changes nothing: the running model stays.
 5. A device has the deployments of its enrolment file, and those that an operator added since (`Order.added`). One that
    it does not have holds the others up for nothing: they follow, and it is reported. An order that names only such is
    for another device in all but name, and refused.
"""

import hashlib
from datetime import datetime

import msgspec

from edgekit.errors import OrderRefusedError
from edgekit.wire.messages import Order


class Identity(msgspec.Struct, frozen=True):
    """Who this device is, and which deployments its enrolment allows."""

    fleet: str
    device: str
    enrolment: int
    profiles: tuple[str, ...]
    deployments: tuple[str, ...]


class Followed(msgspec.Struct, frozen=True):
    """The newest order followed: its counter and the sha256 of its payload. Starts at 0 and empty."""

    counter: int = 0
    payload_sha256: str = ""


def payload_digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def accept(
    order: Order, payload: bytes, identity: Identity, last: Followed, now: datetime
) -> Followed | None:
    """The new high-water mark if the order is to be followed, None if it is a repeat.

    `payload` are the signed bytes that `order` was read from.

    Raises: OrderRefusedError with the reason to report.
    """
    mine = (identity.fleet, identity.device, identity.enrolment)
    for what, theirs, own in zip(
        ("fleet", "device", "enrolment"), (order.fleet, order.device, order.enrolment), mine, strict=True
    ):
        if theirs != own:
            raise OrderRefusedError(f"the order is for {what} {theirs!r}, this is {own!r}")
    digest = payload_digest(payload)
    if order.counter == last.counter and digest == last.payload_sha256:
        return None
    if order.counter <= last.counter:
        raise OrderRefusedError(f"order {order.counter} is not above {last.counter}, the newest followed")
    if order.expires <= now:
        raise OrderRefusedError(f"order {order.counter} expired at {order.expires.isoformat()}")
    strange = unknown(order, identity)
    if strange and len(strange) == len(order.deployments):
        names = ", ".join(repr(name) for name in strange)
        raise OrderRefusedError(f"this device was not enrolled for what it names, deployment {names}")
    for name, bundle in order.deployments.items():
        if name not in strange:
            _check_bundle(name, bundle.target, bundle.sha256, identity)
    for name, shadow in order.shadows.items():
        _check_bundle(name, shadow.bundle.target, shadow.bundle.sha256, identity)
    return Followed(order.counter, digest)


def unknown(order: Order, identity: Identity) -> tuple[str, ...]:
    """The deployments of an order that this device does not have."""
    has = {*identity.deployments, *order.added}
    return tuple(name for name in order.deployments if name not in has)


def _check_bundle(name: str, target: str, sha256: str, identity: Identity) -> None:
    parts = target.split("/")
    if len(parts) != 4 or parts[3] != f"{sha256}.edgekit":
        raise OrderRefusedError(f"target {target!r} of {name!r} does not name its own digest")
    if parts[2] not in identity.profiles:
        raise OrderRefusedError(
            f"{name!r} is ordered for profile {parts[2]}, this device is {identity.profiles[0]}"
        )
