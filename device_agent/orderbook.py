"""The newest order followed: verified, judged by the pure rules, and synced before anybody acts on it.

Always true
 1. `order` and `counter` say what is on disk. An order that could not be stored is not followed and not reported as
    accepted; it is kept in memory and tried again by `try_again`, or when it is heard again.
 2. The high-water mark lies in the order's own record, which is kept twice with checksums: one damaged copy loses
    nothing. With both lost the device says so, and what it follows next is bounded by the order's expiry alone.
 3. The mark belongs to one enrolment: orders name theirs, so those of an earlier one are refused whatever they count.
 4. The keys whose orders are followed are those that the publisher listed last, kept in the same record; where none
    were ever listed, those of the enrolment. An order that an unknown key signed is judged again when they change.
 5. An order that has expired by a clock that is wrong is judged again when the clock says something else.
"""

import asyncio
import sqlite3
from datetime import datetime

import msgspec

from device_agent import log
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.folder import StateFolder
from device_agent.record import Record
from device_agent.storage import Storage
from edgekit.errors import MessageError, OrderRefusedError, SignatureRefusedError
from edgekit.protocol import clock, orders
from edgekit.protocol.orders import Followed, Identity
from edgekit.trust import dsse
from edgekit.trust.orderkeys import OrderKeys
from edgekit.wire import messages
from edgekit.wire.messages import Order


class Kept(msgspec.Struct, frozen=True):
    """What is on disk: the high-water mark, the order that set it, and the two newest signed times."""

    followed: Followed = Followed()
    order: Order | None = None
    signed: tuple[datetime, ...] = ()
    enrolment: int = 0
    listed: OrderKeys | None = None


class OrderBook:
    """`refused` is why the newest order was not followed; empty once one is. Load it before anything else."""

    def __init__(
        self,
        state: StateFolder,
        storage: Storage,
        conditions: Conditions,
        identity: Identity,
        *,
        order_keys: dict[str, str],
        clock: Clock,
    ) -> None:
        self._record = Record(state.order, Kept)
        self._storage = storage
        self._conditions = conditions
        self._identity = identity
        self._first_keys = order_keys
        self._clock = clock
        self._kept = Kept()
        self._waiting: bytes | None = None
        self._late: tuple[bytes, datetime] | None = None
        self._unknown: bytes | None = None
        self._turn = asyncio.Lock()
        self.refused = ""

    async def load(self) -> None:
        kept = await self._storage.do(self._record.load)
        self._kept = kept or Kept()
        if self._kept.enrolment not in (0, self._identity.enrolment):
            self._kept = Kept(signed=self._kept.signed)
        self._clock.remember(self._kept.signed)
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

    @property
    def added(self) -> tuple[str, ...]:
        """The deployments that the fleet gave this device after it enrolled."""
        return self._kept.order.added if self._kept.order is not None else ()

    @property
    def keys(self) -> dict[str, str]:
        """Key id → ed25519 public key, in hex, of those whose orders are followed."""
        return self._first_keys if self._kept.listed is None else self._kept.listed.keys

    @property
    def lacks_key(self) -> bool:
        """Whether the newest order was signed by none of `keys`: perhaps they changed."""
        return self._unknown is not None

    @property
    def is_late_no_more(self) -> bool:
        """Whether the clock says by now that an order refused as expired has not."""
        return self._late is not None and self._clock.trusted() < self._late[1]

    async def trust(self, listed: OrderKeys | None) -> bool:
        """Follow the keys that the publisher lists from now on, even where the disk does not take them; whether they
        are others than before.
        """
        if listed is None or listed == self._kept.listed:
            return False
        async with self._turn:
            kept = msgspec.structs.replace(self._kept, listed=listed, enrolment=self._identity.enrolment)
            self._kept = kept
            log.event("the publisher lists other order keys", keys=",".join(listed.keys))
            try:
                await self._storage.do(lambda: self._record.save(kept))
            except (OSError, sqlite3.Error) as error:
                log.trouble(
                    "the order keys cannot be kept; they are followed until the next start", reason=error
                )
        return True

    async def try_again(self) -> Order | None:
        """Store an order that could not be stored when it came, had expired by the clock of then, or was signed by a
        key that was not known then.
        """
        if self._unknown is not None:
            return await self.receive(self._unknown)
        if self._waiting is not None:
            return await self.receive(self._waiting)
        return await self.receive(self._late[0]) if self._late is not None else None

    async def receive(self, envelope: bytes) -> Order | None:
        """The order if it is to be followed now, already synced; None for a repeat or a refusal."""
        async with self._turn:
            return await self._receive(envelope)

    async def _receive(self, envelope: bytes) -> Order | None:
        self._late = self._unknown = None
        try:
            payload = dsse.verify(envelope, dsse.ORDER_TYPE, self.keys)
            order = messages.decode(payload, Order)
            now = self._clock.trusted(order.issued)
            self._note_time(order, envelope, now)
            followed = orders.accept(order, payload, self._identity, self._kept.followed, now)
        except (SignatureRefusedError, MessageError, OrderRefusedError) as error:
            self.refused = str(error)[:2000]
            if isinstance(error, dsse.UnknownSignerError):
                self._unknown = envelope
            log.trouble("order refused", reason=error)
            return None
        if followed is None:
            self.refused = ""
            return None
        signed = clock.last_two(self._kept.signed, order.issued)
        kept = Kept(followed, order, signed, self._identity.enrolment, self._kept.listed)
        try:
            await self._storage.do(lambda: self._record.save(kept))
        except (OSError, sqlite3.Error) as error:
            self._waiting = envelope
            self.refused = f"order {order.counter} cannot be stored and is tried again: {error}"[:2000]
            log.trouble("order not stored", counter=order.counter, reason=error)
            return None
        self._kept = kept
        self._clock.remember(signed)
        self._waiting, self.refused = None, ""
        self._compare_clocks(order, now)
        self._note_unknown(order)
        log.event("order accepted", counter=order.counter, deployments=",".join(order.deployments) or "none")
        return order

    def _note_time(self, order: Order, envelope: bytes, now: datetime) -> None:
        """What a good signature says of the time, whether or not the order is followed."""
        mine = (self._identity.fleet, self._identity.device, self._identity.enrolment)
        if (
            order.fleet,
            order.device,
            order.enrolment,
        ) != mine or order.counter < self._kept.followed.counter:
            return
        self._clock.hear(order.issued, order.expires)
        if order.expires <= now:
            self._late = envelope, order.expires

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
