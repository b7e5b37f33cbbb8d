"""Brokers that sources read and sinks write: besides the link to the fleet, the only module that speaks MQTT.

paho's network loop runs in a thread of its own, which alone writes to the broker.
"""

import random
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent import log
from device_agent.agentfile import MqttSink, MqttSource
from device_agent.link import FIRST_BACKOFF_S, KEEPALIVE_S, LONGEST_BACKOFF_S, LoopedClient
from device_agent.sources.access import host_and_port
from edgekit.errors import FeedError

CONNECT_TIMEOUT_S = 10.0
# How long a broker keeps a session, and what it holds for it, while nobody is there.
SESSION_S = 7 * 86_400

__all__ = ["Connection", "Heard", "MQTTMessage", "property_of"]


class Heard:
    """What a connection tells, in its own thread. `number` counts connections: what came over one that is gone cannot be
    acknowledged any more.
    """

    def __init__(self, up: Callable[[int, bool], None], message: Callable[[MQTTMessage], None]) -> None:
        self.up = up
        self.message = message


class _Client(LoopedClient):
    """paho's client, without its way round what a confined process may not do (a private name of paho 2.2.0)."""

    def _create_socket_connection(self) -> socket.socket:
        """Without the bind to port 0 that paho does first, for which there is no right here."""
        return socket.create_connection((self._host, self._port), timeout=CONNECT_TIMEOUT_S)


class Connection:
    """To the broker of `spec`, made again and again until `close`. With `in_flight` there is a session that outlives it, and
    the caller acknowledges what it got.
    """

    def __init__(self, spec: MqttSource | MqttSink, client: str, heard: Heard, *, in_flight: int = 0) -> None:
        self._spec = spec
        self._host, self._port = host_and_port(spec.broker)
        self._name = client
        self._heard = heard
        self._in_flight = in_flight
        self._stopping = threading.Event()
        self._client: mqtt.Client | None = None
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self.number = 0
        self.trouble = "not connected yet"

    def start(self) -> None:
        self._thread.start()

    @property
    def is_up(self) -> bool:
        return not self.trouble

    def subscribe(self, topics: tuple[str, ...]) -> None:
        if self._client is not None:
            self._client.subscribe([(topic, 1) for topic in topics])

    def acknowledge(self, message: MQTTMessage) -> None:
        """Of QoS 1 only."""
        if self._client is not None:
            self._client.ack(message.mid, message.qos)

    def publish(self, topic: str, body: bytes, uid: str, *, retain: bool) -> mqtt.MQTTMessageInfo:
        """At QoS 1. Raises: FeedError if there is no connection."""
        client = self._client
        if client is None or not self.is_up:
            raise FeedError(f"{self._spec.broker}: {self.trouble or 'no connection'}")
        properties = _properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        properties.UserProperty = ("id", uid)
        info = client.publish(topic, body, qos=1, retain=retain, properties=properties)
        if info.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise FeedError(f"{self._spec.broker}: {mqtt.error_string(info.rc)}")
        return info

    def close(self) -> None:
        self._stopping.set()
        if self._client is not None:
            self._client.disconnect()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        pause = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            try:
                client = self._make()
                client.connect(
                    self._host, self._port, keepalive=KEEPALIVE_S, clean_start=self._in_flight == 0,
                    properties=self._wishes(),
                )  # fmt: skip
                client.wake_when_published()
                self._client = client
                client.loop_forever(retry_first_connection=False)
                if self.is_up:
                    pause = FIRST_BACKOFF_S
                    self._fail("the connection was lost")
            except (OSError, ValueError) as error:
                self._fail(str(error) or type(error).__name__)
            self._client = None
            self._stopping.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
            pause = min(LONGEST_BACKOFF_S, pause * 2)

    def _fail(self, why: str) -> None:
        if why != self.trouble:
            log.trouble("a broker cannot be reached; trying again", broker=self._spec.broker, reason=why)
        self.trouble = why

    def _wishes(self) -> Properties:
        properties = _properties(PacketTypes.CONNECT)
        if self._in_flight:
            properties.SessionExpiryInterval = SESSION_S
            properties.ReceiveMaximum = self._in_flight
        return properties

    def _make(self) -> _Client:
        """Raises: OSError."""
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._name,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=self._in_flight > 0,
        )
        spec = self._spec
        if spec.username:
            password = (
                Path(spec.password_file).read_text(encoding="utf-8").strip() if spec.password_file else None
            )
            client.username_pw_set(spec.username, password)
        if spec.broker.startswith("mqtts:"):
            context = ssl.create_default_context(cafile=spec.ca_file or None)
            if spec.cert_file:
                context.load_cert_chain(spec.cert_file, spec.key_file)
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_message = lambda _client, _userdata, message: self._heard.message(message)
        return client

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: object,
        flags: mqtt.ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self._fail(f"the broker refused the connection: {code}")
            client.disconnect()
            return
        self.number += 1
        self.trouble = ""
        log.event("connected to a broker", broker=self._spec.broker, session=flags.session_present)
        self._heard.up(self.number, flags.session_present)


def _properties(kind: int) -> Properties:
    return Properties(kind)  # type: ignore[no-untyped-call]  # paho 2.2.0 has no types here


def property_of(message: MQTTMessage, name: str) -> str:
    """Of an MQTT 5 message: a property of its own, or one that its sender named; empty if it has none."""
    properties = message.properties
    if properties is None:
        return ""
    if name == "ContentType":
        return str(getattr(properties, name, ""))
    named: list[tuple[str, str]] = getattr(properties, "UserProperty", [])
    return next((value for key, value in named if key == name), "")
