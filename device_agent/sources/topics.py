"""MQTT topics as a source.

Always true
 1. A message of QoS 1 is acknowledged only after its answer is on disk: until then the broker keeps it, and sends it again
    to the next connection. So it is answered at least once; where its sender gave it an `id` (a user property), once.
 2. A message of QoS 0 cannot be asked for again: it waits on disk, within the backlog's bound; beyond that the oldest go,
    counted.
 3. The broker sends at most `in_flight` messages ahead: a slow model slows the topic, not the memory.
"""

import contextlib
import hashlib
import queue
import uuid
from typing import NamedTuple

import msgspec

from device_agent.agentfile import MqttSource
from device_agent.sources.ask import Refused
from device_agent.sources.broker import Connection, Heard, MQTTMessage, property_of
from device_agent.sources.feed import About, Feed, Given
from device_agent.sources.outbox import Remember, is_seen, see

LOOK_S = 0.2


class _Waiting(msgspec.Struct, frozen=True):
    """What is said about a message of QoS 0 that waits on disk."""

    uid: str
    content_type: str
    about: About


class _Came(NamedTuple):
    """A message of QoS 1, and over which connection it came."""

    message: MQTTMessage
    connection: int


class Topics:
    def __init__(self, spec: MqttSource, client: str) -> None:
        self._spec = spec
        # None: something waits on disk.
        self._came: queue.SimpleQueue[_Came | None] = queue.SimpleQueue()
        # Answered, but not acknowledged: the connection was lost in between. The broker sends just these again.
        self._unacknowledged: set[tuple[int, str, bytes]] = set()
        self._feed: Feed
        heard = Heard(self._up, self._heard)
        self._connection = Connection(spec, client, heard, in_flight=spec.in_flight)

    def run(self, feed: Feed) -> None:
        """See `feed.Source`."""
        self._feed = feed
        self._connection.start()
        try:
            while True:
                self._turn(feed)
        finally:
            self._connection.close()

    def _turn(self, feed: Feed) -> None:
        feed.wait_for_room()
        if not self._connection.is_up:
            feed.tally.waits(f"{self._spec.broker}: {self._connection.trouble}")
        if (waiting := feed.outbox.next_waiting()) is not None:
            self._answer_waiting(feed, *waiting)
            return
        came: _Came | None = None
        with contextlib.suppress(queue.Empty):
            came = self._came.get(timeout=LOOK_S)
        if came is not None:
            self._answer(feed, came)

    def _answer(self, feed: Feed, came: _Came) -> None:
        message, connection = came
        if connection != self._connection.number:
            # The broker sends it again over this connection.
            return
        key = (message.mid, message.topic, bytes(message.payload))
        if message.dup and key in self._unacknowledged:
            self._unacknowledged.discard(key)
            self._connection.acknowledge(message)
            return
        given = self._given(message)
        feed.tally.count("read")
        sent = property_of(message, "id")
        if not (sent and feed.outbox.remember(lambda db: is_seen(db, given.uid))):
            remember: Remember | None = (lambda db: see(db, given.uid)) if sent else None
            feed.keep(given, feed.answer(given), remember)
        if connection == self._connection.number and self._connection.is_up:
            self._connection.acknowledge(message)
        else:
            self._unacknowledged.add(key)

    def _answer_waiting(self, feed: Feed, number: int, about: bytes, body: bytes) -> None:
        said = msgspec.json.decode(about, type=_Waiting)
        given = Given(said.uid, said.content_type, body, said.about)
        found: msgspec.Raw | Refused = feed.answer(given)
        feed.keep(given, found, feed.outbox.done_waiting(number))

    def _given(self, message: MQTTMessage) -> Given:
        """An id of its sender's makes the answer's; otherwise each time it is read it is another."""
        sent = property_of(message, "id")
        uid = uuid.uuid4().hex
        if sent:
            text = f"{self._spec.name}\n{message.topic}\n{sent}"
            uid = hashlib.sha256(text.encode()).hexdigest()[:32]
        about: About = {
            "topic": message.topic,
            "qos": message.qos,
            **({"id": sent} if sent else {}),
            **({"redelivered": True} if message.dup else {}),
        }
        content_type = property_of(message, "ContentType") or self._spec.content_type
        return Given(uid, content_type, bytes(message.payload), about)

    # -- in the connection's thread ------------------------------------------------------------------------------

    def _up(self, _number: int, is_same_session: bool) -> None:
        if not is_same_session:
            self._unacknowledged.clear()
        self._connection.subscribe(self._spec.topics)

    def _heard(self, message: MQTTMessage) -> None:
        if message.qos > 0:
            self._came.put(_Came(message, self._connection.number))
            return
        given = self._given(message)
        self._feed.tally.count("read")
        about = msgspec.json.encode(_Waiting(given.uid, given.content_type, given.about))
        self._feed.tally.count("dropped", self._feed.outbox.keep_waiting(about, given.body))
        self._came.put(None)
