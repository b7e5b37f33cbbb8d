"""The link to the fleet; besides `sources/broker.py` the only module that speaks MQTT.

Always true
 1. A broken or absent broker never stops anything else: the link tries again, with back-off and jitter, for ever.
 2. Nothing is queued here. What must arrive is kept by others and sent again when the link says it is up.
 3. Each connection is a fresh client with a clean session: after every connect the subscriptions are made anew and
    `on_up` sends everything retained again, since a broker may have forgotten it.
 4. Where the broker speaks MQTT over WebSockets too, tries take turns between that and plain MQTT until one has come
    through, and begin with that one from then on: a network that lets only HTTPS out stops nothing.
 5. The client id is the certificate's name: a broker can hold the one against the other. Where there is no certificate
    it names the enrolment too, so that an older board that still comes does not end the connection of the newer one.

paho's network loop runs in a thread of its own; every callback is passed into the event loop.
"""

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent import log
from device_agent.network import Access, dial, place
from device_agent.traffic import Meter
from edgekit.wire import messages, topics
from edgekit.wire.enrolment import BrokerAddress
from edgekit.wire.messages import Boot, Status

# iotcore 0.4.0 drops a client whose keepalive is 0.
KEEPALIVE_S = 30
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
_STABLE_S = 10.0


@dataclass(frozen=True)
class LinkHooks:
    """Called in the event loop. `message` gets the topic's leaf and the payload.

    `refused`: a broker was reached, and ended the connection before it said that it takes this device.
    """

    up: Callable[[], None]
    down: Callable[[], None]
    message: Callable[[str, bytes], None]
    refused: Callable[[], None]


@dataclass(frozen=True)
class _Way:
    """One way to the broker; `path` is empty for plain MQTT."""

    port: int
    path: str

    @property
    def name(self) -> str:
        return "MQTT over WebSockets" if self.path else "MQTT"


class _Ending:
    """A socket whose end is an error. paho 2.2.0 takes it for an empty line of the WebSocket's answer, and waits for the
    next without a pause and for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv(self, size: int) -> bytes:
        data = self._sock.recv(size)
        if not data:
            raise ConnectionAbortedError("the connection was closed")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class LoopedClient(mqtt.Client):
    """paho's client whose `loop_forever` runs in one thread while others publish. Private names of paho 2.2.0."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        # Otherwise whoever publishes writes to the socket too: what one has half written the other writes once more, and
        # the broker ends the connection over a malformed packet.
        self.on_socket_register_write = lambda _client, _userdata, _sock: None

    def wake_when_published(self) -> None:
        """The loop looks once a second for what others publish; from now on, until the connection ends, at once.

        paho makes such a pair in its own thread only, and by binding a port, for which a confined process has no right.
        """
        self._sockpairR, self._sockpairW = socket.socketpair()
        for end in (self._sockpairR, self._sockpairW):
            end.setblocking(False)


class _Client(LoopedClient):
    """paho's client; over WebSockets it goes through the proxy that the environment names.

    The two methods are private in paho 2.2.0, whose own support for proxies needs PySocks and knows no HTTPS_PROXY.
    """

    way: _Way

    def _create_socket_connection(self) -> Any:
        if not self.way.path:
            return super()._create_socket_connection()
        sock = dial("https" if self._ssl else "http", self._host, self._port)
        return sock if self._ssl else _Ending(sock)

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> Any:
        sock = super()._ssl_wrap_socket(tcp_sock)
        return _Ending(sock) if self.way.path else sock


class Link:
    def __init__(
        self, broker: BrokerAddress, access: Access, device: str, boot: Boot, hooks: LinkHooks
    ) -> None:
        self._host = broker.host.strip("[]")
        self._is_tls = broker.tls
        self._access = access
        self._meter: Meter | None = None
        self._device = device
        self._boot = boot
        self._hooks = hooks
        self._loop: asyncio.AbstractEventLoop
        self._client: mqtt.Client | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._ways = [_Way(broker.port, "")]
        if broker.websocket_path:
            self._ways.append(_Way(broker.websocket_port, broker.websocket_path))
        self._was_taken = False
        self._ended = ""
        self.is_up = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send at QoS 1; False, and nothing kept, if the link is down."""
        client = self._client
        if client is None or not self.is_up:
            return False
        result = client.publish(topics.of(self._device, leaf), payload, qos=1, retain=retain)
        log.detail("said", leaf=leaf, size=len(payload), sent=result.rc is MQTTErrorCode.MQTT_ERR_SUCCESS)
        is_taken = result.rc is MQTTErrorCode.MQTT_ERR_SUCCESS
        if is_taken and leaf == topics.TELEMETRY:
            self._access.traffic.telemetry(sent=len(topics.of(self._device, leaf)) + len(payload))
        return is_taken

    async def stop(self, patience_s: float = 2.0) -> None:
        """Say goodbye as retained status, then end."""
        self._stopping.set()
        client = self._client
        if client is not None and self.is_up:
            payload = messages.encode(Status(online=False, boot=self._boot))
            sent = client.publish(topics.of(self._device, topics.STATUS), payload, qos=1, retain=True)
            await asyncio.to_thread(_wait_for, sent, patience_s)
            client.disconnect()
        await asyncio.to_thread(self._thread.join, patience_s)

    # -- the link's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = FIRST_BACKOFF_S
        told: set[tuple[str, str]] = set()
        while not self._stopping.is_set():
            way = self._ways[0]
            self._was_taken, self._ended = False, ""
            try:
                client = self._make_client(way)
                client.connect(self._host, way.port, keepalive=KEEPALIVE_S)
                client.wake_when_published()
                self._client = client
                began = self._loop.time()
                client.loop_forever(retry_first_connection=False)
                if self._loop.time() - began > _STABLE_S:
                    pause = FIRST_BACKOFF_S
                if self._was_taken:
                    told.clear()
                elif not self._stopping.is_set():
                    self._in_loop(self._hooks.refused)
                    self._tell(told, way, "the broker ended the connection without a word")
            except (OSError, ValueError) as error:
                if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
                    self._in_loop(self._hooks.refused)
                self._tell(told, way, str(error) or type(error).__name__)
            self._client = None
            self._in_loop(self._went_down)
            if not self._was_taken:
                self._ways.append(self._ways.pop(0))
            self._stopping.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
            pause = min(LONGEST_BACKOFF_S, pause * 2)

    def _tell(self, told: set[tuple[str, str]], way: _Way, reason: str) -> None:
        """Once for each way and reason, until one has come through: a broker that is away may come back and refuse."""
        if (way.name, reason) not in told:
            broker = place(self._host, way.port)
            log.trouble(
                "the broker cannot be reached; trying again", broker=broker, over=way.name, reason=reason
            )
        told.add((way.name, reason))

    def _make_client(self, way: _Way) -> _Client:
        """Raises: OSError."""
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device if self._is_tls else f"{self._device}.{self._boot.enrolment}",
            protocol=mqtt.MQTTv5,
            transport="websockets" if way.path else "tcp",
            reconnect_on_failure=False,
        )
        client.way = way
        if way.path:
            # paho 2.2.0 writes an IPv6 host without brackets.
            client.ws_set_options(way.path, {"Host": place(self._host, way.port)})
        if self._is_tls and self._access.context is not None:
            client.tls_set_context(self._access.context)
        client.will_set(
            topics.of(self._device, topics.STATUS),
            messages.encode(Status(online=False, boot=self._boot)),
            qos=1,
            retain=True,
        )
        client.on_socket_open = self._counted
        client.on_socket_close = self._counted_no_more
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        return client

    def _counted(self, _client: mqtt.Client, _userdata: object, sock: Any) -> None:
        self._meter = self._access.traffic.meter("orders", sock)

    def _counted_no_more(self, _client: mqtt.Client, _userdata: object, _sock: Any) -> None:
        self._access.traffic.end(self._meter)

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if code.is_failure:
            log.trouble("the broker refused the connection", reason=code)
            client.disconnect()
            return
        self._was_taken = True
        client.subscribe(
            [
                (topics.of(self._device, topics.DESIRED), 1),
                (topics.of(self._device, topics.COMMAND), 1),
                (topics.of(self._device, topics.ACK), 0),
            ]
        )
        self._in_loop(self._came_up)

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        parsed = topics.parse(message.topic)
        if parsed is not None and parsed[0] == self._device:
            log.detail("heard", leaf=parsed[1], size=len(message.payload))
            if parsed[1] == topics.ACK:
                self._access.traffic.telemetry(received=len(message.topic) + len(message.payload))
            self._in_loop(self._hooks.message, parsed[1], bytes(message.payload))

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._ended = f"the broker says: {code}" if flags.is_disconnect_packet_from_server else str(code)

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop is closed: the agent has ended, and nobody is left to tell.
            self._stopping.set()

    # -- in the event loop ---------------------------------------------------------------------------------------

    def _came_up(self) -> None:
        if self._stopping.is_set():
            return
        self.is_up = True
        way = self._ways[0]
        log.event("link up", broker=place(self._host, way.port), over=way.name)
        self.publish(topics.STATUS, messages.encode(Status(online=True, boot=self._boot)), retain=True)
        self._hooks.up()

    def _went_down(self) -> None:
        if self.is_up:
            self.is_up = False
            log.trouble("link down", reason=self._ended or "the connection was lost")
            self._hooks.down()


def _wait_for(sent: mqtt.MQTTMessageInfo, patience_s: float) -> None:
    """Until the broker has the message; a link that breaks meanwhile is the last will's turn."""
    try:
        sent.wait_for_publish(patience_s)
    except (RuntimeError, ValueError) as error:
        log.trouble("the offline status could not be sent", reason=error)
