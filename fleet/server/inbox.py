"""Messages between the network thread and ingest.

Always true
 1. Only telemetry and results are ever dropped, when more than `TELEMETRY` of them wait: devices send unacknowledged ones
    again.
 2. `reported` and `status` are kept in their order. Where very many wait, older ones give way to newer ones of the same
    topic: both are states, of which the newest is the truth.
"""

import threading
from collections import deque
from typing import NamedTuple

from edgekit.wire import topics

TELEMETRY = 20_000
STATES = 50_000
# How long reports wait for others, so that they are stored together; states wait for nobody.
LINGER_S = 0.05
_SENT_AGAIN = tuple(f"/{leaf}" for leaf in topics.TAKEN_IN)


class Message(NamedTuple):
    """`received` is steady (None: now); `is_retained` if the broker keeps it on its topic. `ticket` is what the broker
    is told by once the message is stored: (number of the connection, packet identifier), None if it knows already.
    """

    topic: str
    payload: bytes
    received: float | None = None
    is_retained: bool = False
    ticket: tuple[int, int] | None = None


class Inbox:
    """A queue with two lanes: states are taken before telemetry."""

    def __init__(self, telemetry: int = TELEMETRY, states: int = STATES) -> None:
        self._most_telemetry, self._thin_at, self._most_states = telemetry, states, states
        self._telemetry: deque[Message] = deque()
        self._states: deque[Message] = deque()
        self._filled = threading.Condition()
        self.overflowed = 0

    def __len__(self) -> int:
        return len(self._states) + len(self._telemetry)

    def put(self, message: Message) -> None:
        with self._filled:
            if not message.topic.endswith(_SENT_AGAIN):
                self._states.append(message)
                if len(self._states) > self._thin_at:
                    self._thin_out()
            elif len(self._telemetry) < self._most_telemetry:
                self._telemetry.append(message)
            else:
                self.overflowed += 1
            self._filled.notify()

    def take(self, most: int, *, timeout_s: float) -> list[Message]:
        """Up to `most` messages; empty if none came within `timeout_s`."""
        with self._filled:
            self._filled.wait_for(lambda: self._states or self._telemetry, timeout_s)
            if self._telemetry and not self._states:
                self._filled.wait_for(lambda: self._states or len(self._telemetry) >= most, LINGER_S)
            return self._take(most)

    def _take(self, most: int) -> list[Message]:
        taken: list[Message] = []
        for lane in (self._states, self._telemetry):
            while lane and len(taken) < most:
                taken.append(lane.popleft())
        if not self._states:
            self._thin_at = self._most_states
        return taken

    def _thin_out(self) -> None:
        newest = {message.topic: at for at, message in enumerate(self._states)}
        self._states = deque(m for at, m in enumerate(self._states) if newest[m.topic] == at)
        # With more topics than that, looking at each message again would take all the time there is.
        self._thin_at = max(self._most_states, 2 * len(self._states))
