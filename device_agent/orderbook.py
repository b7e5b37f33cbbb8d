"""The newest order followed: verified, judged by the pure rules, and synced before anybody acts on it.

Always true
 1. `order` and `counter` say what is on disk. An order that could not be stored is not followed and not reported as
    accepted; it is kept in memory and tried again by `try_again`, or when it is heard again.
 2. The high-water mark lies in the order's own record, which is kept twice with checksums: one damaged copy loses
    nothing. With both lost the device says so, and what it follows next is bounded by the order's expiry alone.
"""

import sqlite3
import time
from datetime import UTC, datetime, timedelta

import msgspec

from device_agent import log
from device_agent.conditions import Conditions
from device_agent.folder import StateFolder
from device_agent.record import Record
from device_agent.storage import Storage
from edgekit.errors import MessageError, OrderRefusedError, SignatureRefusedError
from edgekit.protocol import clock, orders
from edgekit.protocol.orders import Followed, Identity
from edgekit.trust import dsse
from edgekit.wire import messages
from edgekit.wire.messages import Order

# No order was ever signed before this; a clock that says less is wrong.
AGENT_BUILT = datetime(2025, 6, 1, tzinfo=UTC)


class Kept(msgspec.Struct, frozen=True):
    """What is on disk: the high-water mark, the order that set it, and the two newest signed times."""

    followed: Followed = Followed()
    order: Order | None = None
    signed: tuple[datetime, ...] = ()


class OrderBook:
    """`refused` is why the newest order was not followed; empty once one is. Load it before anything else."""

    def __init__(
        self,
        state: StateFolder,
        storage: Storage,
        conditions: Conditions,
        identity: Identity,
        order_keys: dict[str, str],
    ) -> None:
        self._record = Record(state.order, Kept)
        self._storage = storage
        self._conditions = conditions
        self._identity = identity
        self._keys = order_keys
        self._kept = Kept()
        self._heard_at = time.monotonic()
        self._waiting: bytes | None = None
        self.refused = ""

    async def load(self) -> None:
        kept = await self._storage.do(self._record.load)
        self._kept = kept or Kept()
        if kept is None and self._record.trouble:
            lost = "both copies of the newest order were damaged and are set aside; waiting for the fleet's next one"
            self._conditions.notice("order-lost", lost)
        if self._kept.order is not None:
            self._note_unknown(self._kept.order)

    @property
    def order(self) -> Order | None:
        return self._kept.order

    @property
    def counter(self) -> int:
        return self._kept.followed.counter

    @property
    def is_waiting(self) -> bool:
        """Whether a good order could not be stored yet."""
        return self._waiting is not None

    def trusted_now(self) -> datetime:
        """What time it is as far as this device may know (`edgekit.protocol.clock`)."""
        passed = timedelta(seconds=time.monotonic() - self._heard_at)
        return clock.trusted(datetime.now(UTC), AGENT_BUILT, self._kept.signed, passed)

    def clock_is_plausible(self) -> bool:
        """Whether the system clock is not behind what was signed in the past."""
        return self.trusted_now() <= datetime.now(UTC)

    async def try_again(self) -> Order | None:
        """Store an order that could not be stored when it came."""
        return await self.receive(self._waiting) if self._waiting is not None else None

    async def receive(self, envelope: bytes) -> Order | None:
        """The order if it is to be followed now, already synced; None for a repeat or a refusal.

        Called by one task only: two orders at once would race for the record.
        """
        now = self.trusted_now()
        try:
            payload = dsse.verify(envelope, dsse.ORDER_TYPE, self._keys)
            order = messages.decode(payload, Order)
            followed = orders.accept(order, payload, self._identity, self._kept.followed, now)
        except (SignatureRefusedError, MessageError, OrderRefusedError) as error:
            self.refused = str(error)[:2000]
            log.trouble("order refused", reason=error)
            return None
        if followed is None:
            self.refused = ""
            return None
        kept = Kept(followed, order, clock.newest_two(self._kept.signed, order.issued))
        try:
            await self._storage.do(lambda: self._record.save(kept))
        except (OSError, sqlite3.Error) as error:
            self._waiting = envelope
            self.refused = f"order {order.counter} cannot be stored and is tried again: {error}"[:2000]
            log.trouble("order not stored", counter=order.counter, reason=error)
            return None
        self._kept, self._heard_at = kept, time.monotonic()
        self._waiting, self.refused = None, ""
        self._compare_clocks(order, now)
        self._note_unknown(order)
        log.event("order accepted", counter=order.counter, deployments=",".join(order.deployments) or "none")
        return order

    def _compare_clocks(self, order: Order, now: datetime) -> None:
        if clock.is_far_ahead(order.issued, now):
            detail = (
                f"order {order.counter} was signed at {order.issued.isoformat(timespec='seconds')}, here it is"
                f" {now.isoformat(timespec='seconds')}: one of the two clocks is wrong"
            )
            self._conditions.set("clock-disagrees", detail)
        else:
            self._conditions.clear("clock-disagrees")

    def _note_unknown(self, order: Order) -> None:
        """What an order names beside this device's deployments stops none of them, and is told."""
        names = ", ".join(orders.unknown(order, self._identity))
        if names:
            self._conditions.set("unknown-deployment", f"order {order.counter} names {names}, unknown here")
        else:
            self._conditions.clear("unknown-deployment")
