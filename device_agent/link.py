"""The link to the fleet: the only module that speaks MQTT.

Always true
 1. A broken or absent broker never stops anything else: the link tries again, with back-off and jitter, for ever.
 2. Nothing is queued here. What must arrive is kept by others and sent again when the link says it is up.
 3. Each connection is a fresh client with a clean session: after every connect the subscriptions are made anew and
    `on_up` sends everything retained again, since a broker may have forgotten it.

paho's network loop runs in a thread of its own; every callback is passed into the event loop.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent import log
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
    """Called in the event loop. `message` gets the topic's leaf and the payload."""

    up: Callable[[], None]
    down: Callable[[], None]
    message: Callable[[str, bytes], None]


class Link:
    def __init__(self, broker: BrokerAddress, device: str, boot: Boot, hooks: LinkHooks) -> None:
        self._broker = broker
        self._device = device
        self._boot = boot
        self._hooks = hooks
        self._loop: asyncio.AbstractEventLoop
        self._client: mqtt.Client | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
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
        return result.rc is MQTTErrorCode.MQTT_ERR_SUCCESS

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
        told = False
        while not self._stopping.is_set():
            client = self._make_client()
            try:
                client.connect(self._broker.host, self._broker.port, keepalive=KEEPALIVE_S)
                self._client = client
                began = self._loop.time()
                client.loop_forever(retry_first_connection=False)
                if self._loop.time() - began > _STABLE_S:
                    pause = FIRST_BACKOFF_S
                told = False
            except (OSError, ValueError) as error:
                if not told:
                    log.trouble("the broker cannot be reached; trying again", reason=error)
                told = True
            self._client = None
            self._in_loop(self._went_down)
            self._stopping.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
            pause = min(LONGEST_BACKOFF_S, pause * 2)

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"edgekit-{self._device}",
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.will_set(
            topics.of(self._device, topics.STATUS),
            messages.encode(Status(online=False, boot=self._boot)),
            qos=1,
            retain=True,
        )
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        return client

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
        client.subscribe(
            [(topics.of(self._device, topics.DESIRED), 1), (topics.of(self._device, topics.ACK), 0)]
        )
        self._in_loop(self._came_up)

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        parsed = topics.parse(message.topic)
        if parsed is not None and parsed[0] == self._device:
            self._in_loop(self._hooks.message, parsed[1], bytes(message.payload))

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
        log.event("link up", broker=f"{self._broker.host}:{self._broker.port}")
        self.publish(topics.STATUS, messages.encode(Status(online=True, boot=self._boot)), retain=True)
        self._hooks.up()

    def _went_down(self) -> None:
        if self.is_up:
            self.is_up = False
            log.trouble("link down")
            self._hooks.down()


def _wait_for(sent: mqtt.MQTTMessageInfo, patience_s: float) -> None:
    """Until the broker has the message; a link that breaks meanwhile is the last will's turn."""
    try:
        sent.wait_for_publish(patience_s)
    except (RuntimeError, ValueError) as error:
        log.trouble("the offline status could not be sent", reason=error)
