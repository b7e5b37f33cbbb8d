"""The fleet's connection to the broker. It moves bytes; what they mean is decided elsewhere.

Always true
 1. What it receives goes into the inbox, which is bounded.
 2. `reported` and `status` come through plain subscriptions, because shared ones get no retained messages.
"""

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.wire import topics
from fleet.server.clock import Clock
from fleet.server.inbox import Inbox, Message
from fleet.server.places import Address

log = logging.getLogger(__name__)

# A client with keepalive 0 is dropped by iotcore 0.4.
KEEPALIVE_S = 15


@dataclass(frozen=True)
class Login:
    """How the service shows the broker who it is."""

    tls: ssl.SSLContext | None = None
    user: str = ""
    password: str | None = None

    def __repr__(self) -> str:
        return f"Login(tls={self.tls is not None}, user={self.user!r})"


class Link:
    """One paho client with reconnect; `inbox` is what `ingest` reads. `connected_since` is steady."""

    def __init__(
        self,
        address: Address,
        fleet: str,
        login: Login,
        clock: Clock,
        *,
        telemetry_group: str | None = None,
        has_telemetry: bool = True,
    ) -> None:
        """Without `has_telemetry` others take the reports in (`intake`)."""
        self.address = address
        self.inbox = Inbox()
        self.connected_since: float | None = None
        self._clock = clock
        # Called (from the network thread) after each connect, once subscribed.
        self.on_connect: Callable[[], None] = lambda: None
        self._telemetry_group = telemetry_group
        self._has_telemetry = has_telemetry
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"edgekit-{fleet}", protocol=mqtt.MQTTv5
        )
        if login.tls is not None:
            self._client.tls_set_context(login.tls)
        if login.user:
            self._client.username_pw_set(login.user, login.password)
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
        self._client.connect_async(reachable(self.address.host), self.address.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect; `start` connects again."""
        self._client.disconnect()
        self._client.loop_stop()
        self.connected_since = None

    def take(self, most: int, *, timeout_s: float) -> list[Message]:
        return self.inbox.take(most, timeout_s=timeout_s)

    def confirm(self, batch: list[Message]) -> None:
        """Nothing: it was confirmed when it came. Telemetry is sent again until it is acknowledged, states are retained."""

    def publish(
        self, device: str, leaf: str, payload: bytes, *, qos: int, retain: bool
    ) -> mqtt.MQTTMessageInfo:
        return self._client.publish(topics.of(device, leaf), payload, qos=qos, retain=retain)

    def clear(self, topic: str) -> None:
        """Take the retained message of a topic away."""
        self._client.publish(topic, b"", qos=1, retain=True)

    def _connected(
        self, client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            log.warning("broker %s refused the connection: %s", self.address, code)
            return
        wanted = [
            # Retained as published: a poison message is known for retained when it comes, not a restart later.
            (topics.of_all(topics.REPORTED), SubscribeOptions(qos=1, retainAsPublished=True)),
            (topics.of_all(topics.STATUS), SubscribeOptions(qos=1, retainAsPublished=True)),
        ]
        if self._has_telemetry:
            shared = (topics.of_all(leaf, group=self._telemetry_group) for leaf in topics.TAKEN_IN)
            wanted += ((topic, SubscribeOptions(qos=1)) for topic in shared)
        client.subscribe(wanted)
        self._clock.hears_again()
        self.connected_since = self._clock.now().steady
        log.info("connected to broker %s", self.address)
        self.on_connect()

    def _disconnected(
        self, _client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.connected_since is not None and code.is_failure:
            log.warning("lost broker %s (%s); trying again", self.address, code)
        self.connected_since = None

    def _received(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        received = self._clock.now().steady
        self.inbox.put(Message(message.topic, bytes(message.payload), received, bool(message.retain)))


def end_session(address: Address, tls: ssl.SSLContext, name: str, *, patience_s: float = 3.0) -> None:
    """End whatever connection a client of this name has, by taking its session over for a moment.

    For a broker that makes the certificate's name the client id. Raises: OSError if the broker does not answer.
    """
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.tls_set_context(tls)
    done = threading.Event()
    client.on_connect = lambda *_: done.set()
    client.connect(reachable(address.host), address.port, keepalive=KEEPALIVE_S, clean_start=True)
    client.loop_start()
    try:
        if not done.wait(patience_s):
            raise TimeoutError(f"broker {address} did not answer within {patience_s:.0f} s")
    finally:
        client.disconnect()
        client.loop_stop()


def reachable(host: str) -> str:
    """Where to reach a listener on this machine that listens on every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
