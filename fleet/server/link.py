"""The fleet's connection to the broker. It moves bytes; what they mean is decided elsewhere.

Always true
 1. A message handed on is at most once in memory: the queue is bounded, and what does not fit is counted and dropped
    (devices send unacknowledged reports again).
 2. `reported` and `status` come through plain subscriptions, because shared ones get no retained messages.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.wire import topics
from fleet.server.broker import Address

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 20_000
# A client with keepalive 0 is dropped by iotcore 0.4.
KEEPALIVE_S = 15

Message = tuple[str, bytes]


class Link:
    """One paho client with reconnect; `messages` is what `ingest` reads."""

    def __init__(self, address: Address, fleet: str, *, shares_telemetry: bool) -> None:
        self.address = address
        self.messages: queue.Queue[Message] = queue.Queue(QUEUE_MESSAGES)
        self.overflowed = 0
        self.connected_since: float | None = None
        # Called (from the network thread) after each connect, once subscribed.
        self.on_connect: Callable[[], None] = lambda: None
        self._telemetry_group = "edgekit-fleet" if shares_telemetry else None
        self._lock = threading.Lock()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"edgekit-{fleet}", protocol=mqtt.MQTTv5
        )
        self._client.max_inflight_messages_set(100)
        self._client.reconnect_delay_set(min_delay=1, max_delay=15)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._received

    @property
    def is_connected(self) -> bool:
        return self.connected_since is not None

    def start(self) -> None:
        """Connect in the background; a broker that is down now is tried again until it answers."""
        self._client.connect_async(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(
        self, device: str, leaf: str, payload: bytes, *, qos: int, retain: bool
    ) -> mqtt.MQTTMessageInfo:
        return self._client.publish(topics.of(device, leaf), payload, qos=qos, retain=retain)

    def _connected(
        self, client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            log.warning("broker %s refused the connection: %s", self.address, code)
            return
        client.subscribe(
            [
                (topics.of_all(topics.REPORTED), SubscribeOptions(qos=1)),
                (topics.of_all(topics.STATUS), SubscribeOptions(qos=1)),
                (
                    topics.of_all(topics.TELEMETRY, group=self._telemetry_group),
                    SubscribeOptions(qos=1),
                ),
            ]
        )
        self.connected_since = time.time()
        log.info("connected to broker %s", self.address)
        self.on_connect()

    def _disconnected(
        self, _client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.connected_since is not None and code.is_failure:
            log.warning("lost broker %s (%s); trying again", self.address, code)
        self.connected_since = None

    def _received(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self.messages.put_nowait((message.topic, bytes(message.payload)))
        except queue.Full:
            with self._lock:
                self.overflowed += 1
