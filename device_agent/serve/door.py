"""The door: who may send a body, and whose turn it is. No sockets and no numpy; the caller gives the time.

Always true
 1. No byte of a body is received before its request has a place: one of `slots`, and its bytes within `total_bytes`.
 2. Bodies above `SMALL_BYTES` never take more than `LARGE_SHARE` of the bytes, so a few that announce much leave room.
 3. Where there is no room, the one that sends slowest goes first: before a body that is here already at once, before
    others once it has had `SLOW_AFTER_S`. Then a request of the client that holds most, if it
    holds more than the newcomer would (longest queue drop). A request whose engine call began keeps its place.
 4. Turns go round by client: one with many requests waiting does not keep another's from being next.

Source: McKenney (1990), "Stochastic Fairness Queueing", for dropping from the longest queue and serving round robin.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import EngineError

SLOTS = 128
SMALL_BYTES = 1 << 20
LARGE_SHARE = 0.75
# A body that is not here after this time counts as slow once there is no room for others.
SLOW_AFTER_S = 1.0
QUEUE_WAIT_S = 30.0
Phase = Literal["receiving", "waiting", "running", "gone"]


class BusyError(EngineError):
    """There is no place for the request now, or it lost the one it had."""

    code = "busy"
    http_status = 503


@dataclass(eq=False)
class Ticket:
    """A request's place. `lose` is called, once, when it is taken away while the body is still being received."""

    client: str
    held: int
    since: float
    lose: Callable[[str], None]
    received: int = 0
    phase: Phase = "receiving"
    turn: "asyncio.Future[None] | None" = None

    def rate(self, now: float) -> float:
        return self.received / max(now - self.since, 1e-3)


class Door:
    """Places of one process."""

    def __init__(self, total_bytes: int, slots: int = SLOTS) -> None:
        self.total_bytes = total_bytes
        self.slots = slots
        self.held = 0
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.turned_away = 0

    def enter(
        self, client: str, announced: int, now: float, lose: Callable[[str], None], at_hand: int = 0
    ) -> Ticket:
        """A place for a body of `announced` bytes, of which `at_hand` came with its head. Raises: BusyError."""
        ticket = Ticket(
            client, announced, now, lose, at_hand, "waiting" if at_hand >= announced else "receiving"
        )
        self._make_room(ticket, announced, announced, 1, now)
        self.tickets[ticket] = None
        self.held += announced
        return ticket

    def grow(self, ticket: Ticket, total: int, now: float) -> None:
        """Room for `total` bytes of a body whose length was not announced. Raises: BusyError; the place is lost then."""
        if total <= ticket.held or ticket.phase == "gone":
            return
        try:
            self._make_room(ticket, total, total - ticket.held, 0, now)
        except BusyError:
            self.leave(ticket)
            raise
        self.held += total - ticket.held
        ticket.held = total

    def arrived(self, ticket: Ticket) -> None:
        """The whole body is here."""
        if ticket.phase == "receiving":
            ticket.phase = "waiting"

    def leave(self, ticket: Ticket) -> None:
        """Give the place back; safe to repeat."""
        if ticket.phase == "gone":
            return
        ticket.phase = "gone"
        del self.tickets[ticket]
        self.held -= ticket.held

    def _make_room(self, wanting: Ticket, size: int, bytes_: int, slots: int, now: float) -> None:
        """`bytes_` and `slots` more for a body of `size` bytes in all. Raises: BusyError."""
        reach = int(self.total_bytes * (LARGE_SHARE if size > SMALL_BYTES else 1))
        while self.held + bytes_ > reach or len(self.tickets) + slots > self.slots:
            is_about_bytes = self.held + bytes_ > reach
            victim = self._slowest(wanting, now) or self._of_longest(wanting, is_about_bytes, bytes_)
            if victim is None:
                self.turned_away += 1
                raise BusyError(f"{len(self.tickets)} requests are here already; try again shortly")
            self._take_away(victim)

    def _slowest(self, wanting: Ticket, now: float) -> Ticket | None:
        """Who sends slowest; to a body that is here already everybody is slow who still sends."""
        allowed = 0.0 if wanting.phase == "waiting" else SLOW_AFTER_S
        late = [
            ticket
            for ticket in self.tickets
            if ticket.phase == "receiving" and ticket is not wanting and now - ticket.since >= allowed
        ]
        return min(late, key=lambda ticket: ticket.rate(now), default=None)

    def _of_longest(self, wanting: Ticket, is_about_bytes: bool, bytes_: int) -> Ticket | None:
        """A request of the client that holds most, if it holds more than the newcomer's would with this one."""
        holdings: Counter[str] = Counter()
        for ticket in self.tickets:
            holdings[ticket.client] += ticket.held if is_about_bytes else 1
        mine = holdings[wanting.client] + (bytes_ if is_about_bytes else 1)
        longest, most = max(holdings.items(), key=lambda entry: entry[1], default=("", 0))
        if longest == wanting.client or most <= mine:
            return None
        droppable = [
            ticket
            for ticket in self.tickets
            if ticket.client == longest and ticket.phase in ("receiving", "waiting")
        ]
        receiving = [ticket for ticket in droppable if ticket.phase == "receiving"]
        return next(reversed(receiving or droppable), None)

    def _take_away(self, ticket: Ticket) -> None:
        was = ticket.phase
        self.leave(ticket)
        self.turned_away += 1
        if was == "receiving":
            ticket.lose("the body came too slowly, or too much at once, while others wait; try again shortly")
        elif ticket.turn is not None and not ticket.turn.done():
            ticket.turn.set_exception(BusyError("others with fewer requests came first; try again shortly"))


class Lane:
    """Turns at something of which `width` can be used at once, round by client."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()

    async def enter(self, ticket: Ticket) -> None:
        """Until it is this ticket's turn. Raises: BusyError if that takes too long, or it lost its place."""
        if ticket.phase == "gone":
            raise BusyError("the request lost its place to others; try again shortly")
        if self._free:
            self._free -= 1
            return
        ticket.turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(ticket.client, deque()).append(ticket)
        try:
            async with asyncio.timeout(QUEUE_WAIT_S):
                await ticket.turn
        except BaseException as error:
            self._withdraw(ticket)
            if isinstance(error, TimeoutError):
                raise BusyError(
                    f"its turn did not come within {QUEUE_WAIT_S:.0f} s; try again later"
                ) from error
            raise
        finally:
            ticket.turn = None

    def leave(self) -> None:
        """The turn is over; the next client's oldest request has it."""
        while self._waiting:
            client, queue = next(iter(self._waiting.items()))
            ticket = queue.popleft()
            if queue:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
            if ticket.turn is not None and not ticket.turn.done():
                ticket.turn.set_result(None)
                return
        self._free += 1

    def _withdraw(self, ticket: Ticket) -> None:
        turn = ticket.turn
        if turn is not None and turn.done() and not turn.cancelled() and turn.exception() is None:
            # Its turn came in the same moment: pass it on.
            self.leave()
            return
        queue = self._waiting.get(ticket.client)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self._waiting[ticket.client]
