"""The newest order followed: verified, judged by the pure rules, and synced before anybody acts on it."""

from datetime import UTC, datetime

import msgspec

from device_agent import durable, log
from device_agent.folder import StateFolder
from edgekit.errors import EdgeKitError, MessageError, OrderRefusedError, SignatureRefusedError
from edgekit.protocol import orders
from edgekit.protocol.orders import Followed, Identity
from edgekit.trust import dsse
from edgekit.wire import messages
from edgekit.wire.messages import Order

# No order was ever signed before this; a clock that says less is wrong.
AGENT_BUILT = datetime(2025, 6, 1, tzinfo=UTC)


class Kept(msgspec.Struct, frozen=True):
    """What is on disk: the high-water mark and the order that set it."""

    followed: Followed = Followed()
    order: Order | None = None


class OrderBook:
    """`refused` is why the newest order was not followed; empty once one is."""

    def __init__(self, state: StateFolder, identity: Identity, order_keys: dict[str, str]) -> None:
        self._state = state
        self._identity = identity
        self._keys = order_keys
        self._kept = self._load()
        self.refused = ""

    @property
    def order(self) -> Order | None:
        return self._kept.order

    @property
    def counter(self) -> int:
        return self._kept.followed.counter

    def trusted_now(self) -> datetime:
        """The system clock, or the newest signed time where that is later."""
        issued = self._kept.order.issued if self._kept.order is not None else AGENT_BUILT
        return max(datetime.now(UTC), issued, AGENT_BUILT)

    def clock_is_plausible(self) -> bool:
        """Whether the system clock is not behind what was signed in the past."""
        return self.trusted_now() <= datetime.now(UTC)

    def receive(self, envelope: bytes) -> Order | None:
        """The order if it is to be followed now, already synced; None for a repeat or a refusal."""
        try:
            payload = dsse.verify(envelope, dsse.ORDER_TYPE, self._keys)
            order = messages.decode(payload, Order)
            followed = orders.accept(order, payload, self._identity, self._kept.followed, self.trusted_now())
        except (SignatureRefusedError, MessageError, OrderRefusedError) as error:
            self.refused = str(error)[:2000]
            log.trouble("order refused", reason=error)
            return None
        self.refused = ""
        if followed is None:
            return None
        self._kept = Kept(followed, order)
        durable.write(self._state.order, msgspec.json.encode(self._kept))
        log.event("order accepted", counter=order.counter, deployments=",".join(order.deployments) or "none")
        return order

    def _load(self) -> Kept:
        """Raises: EdgeKitError if the file is damaged: going on would follow old orders again."""
        if not self._state.order.is_file():
            return Kept()
        try:
            return msgspec.json.decode(self._state.order.read_bytes(), type=Kept)
        except msgspec.DecodeError as error:
            raise EdgeKitError(
                f"{self._state.order}: damaged ({error}); enrol again with a new state folder"
            ) from error
