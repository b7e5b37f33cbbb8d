"""A worker's connection to the broker: its part of the reports, each confirmed only once it is stored.

Always true
 1. The broker gets its PUBACK after the transaction that holds the report (or after it was dropped for what it is), never
    before; a broker whose worker stores nothing sends it no more than `RECEIVE_MAXIMUM` reports (MQTT 5, 3.1.2.11.3).
 2. A worker has no session that outlives its connection: reports meant for one that died are given to the others, and
    those that were on their way to it are sent again by their devices, which have no acknowledgement.
"""

import logging
import secrets
import threading
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.wire import topics
from fleet.server.clock import Clock
from fleet.server.inbox import Inbox, Message
from fleet.server.link import KEEPALIVE_S, Login, reachable
from fleet.server.places import Address

log = logging.getLogger(__name__)

# Two batches: while one is stored the next one comes.
RECEIVE_MAXIMUM = 1000


class Intake:
    """One paho client with reconnect and manual acknowledgements; what `ingest` reads."""

    def __init__(self, address: Address, group: str, login: Login, clock: Clock) -> None:
        self.address = address
        self.is_connected = False
        self._topics = [topics.of_all(leaf, group=group) for leaf in topics.TAKEN_IN]
        self._clock = clock
        self._inbox = Inbox()
        # Goes up with each connection: a packet identifier means nothing on another one.
        self._connection = 0
        self._lock = threading.Lock()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            # A broker that knows certificates makes the certificate's name of it.
            client_id=f"edgekit-worker-{secrets.token_hex(8)}",
            protocol=mqtt.MQTTv5,
            manual_ack=True,
        )
        if login.tls is not None:
            self._client.tls_set_context(login.tls)
        if login.user:
            self._client.username_pw_set(login.user, login.password)
        self._client.reconnect_delay_set(min_delay=1, max_delay=15)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._received

    def start(self) -> None:
        """Connect in the background; a broker that is down now is tried again until it answers."""
        wanted = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho types none of it
        wanted.ReceiveMaximum = RECEIVE_MAXIMUM
        host, port = reachable(self.address.host), self.address.port
        self._client.connect_async(host, port, keepalive=KEEPALIVE_S, clean_start=True, properties=wanted)
        self._client.loop_start()

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.is_connected = False

    def take(self, most: int, *, timeout_s: float) -> list[Message]:
        return self._inbox.take(most, timeout_s=timeout_s)

    def publish(
        self, device: str, leaf: str, payload: bytes, *, qos: int, retain: bool
    ) -> mqtt.MQTTMessageInfo:
        return self._client.publish(topics.of(device, leaf), payload, qos=qos, retain=retain)

    def clear(self, topic: str) -> None:
        """Nothing: a shared subscription brings no retained messages (MQTT 5, 4.8.2)."""

    def confirm(self, batch: list[Message]) -> None:
        with self._lock:
            for message in batch:
                if message.ticket is not None and message.ticket[0] == self._connection:
                    self._client.ack(message.ticket[1], 1)

    def _connected(
        self, client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            log.warning("broker %s refused the connection: %s", self.address, code)
            return
        with self._lock:
            self._connection += 1
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._topics])
        self._clock.hears_again()
        self.is_connected = True
        log.info("connected to broker %s", self.address)

    def _disconnected(
        self, _client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.is_connected and code.is_failure:
            log.warning("lost broker %s (%s); trying again", self.address, code)
        self.is_connected = False

    def _received(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        ticket = (self._connection, message.mid)
        received = self._clock.now().steady
        self._inbox.put(Message(message.topic, bytes(message.payload), received, False, ticket))
