"""On the real mosquitto: no device reads, writes, or takes over the session of, another."""

import queue
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import paho.mqtt.client as mqtt
import pytest
from fleet_support import FakeDevice, pinned, wait_until
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions
from tls_support import TlsFleet

from edgekit.wire import topics

pytestmark = [pytest.mark.broker, pytest.mark.slow]


class Hand:
    """An MQTT client in a device's hands that does what no agent would. It never reconnects."""

    def __init__(
        self,
        device: FakeDevice,
        *,
        client_id: str = "",
        websocket_port: int | None = None,
        will: tuple[str, bytes] | None = None,
        shows_certificate: bool = True,
    ) -> None:
        self.got: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.answers: list[str] = []
        self.is_up = False
        self.ended = False
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or device.name,
            protocol=mqtt.MQTTv5,
            transport="websockets" if websocket_port else "tcp",
            reconnect_on_failure=False,
        )
        context = device.tls() if shows_certificate else pinned(device.file)
        assert isinstance(context, ssl.SSLContext)
        client.tls_set_context(context)
        if websocket_port:
            client.ws_set_options(path=device.file.broker.websocket_path)
        if will is not None:
            client.will_set(*will, qos=1, retain=True)
        client.on_connect = lambda _c, _u, _f, code, _p: setattr(self, "is_up", not code.is_failure)
        client.on_disconnect = lambda *_: setattr(self, "ended", True)
        client.on_message = lambda _c, _u, m: self.got.put((m.topic, bytes(m.payload)))
        client.on_publish = lambda _c, _u, _m, code, _p: self.answers.append(str(code))
        self.client = client
        broker = device.file.broker
        client.connect(broker.host, websocket_port or broker.port, keepalive=30)
        client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> str:
        """The broker's answer."""
        before = len(self.answers)
        self.client.publish(topic, payload, qos=1, retain=retain)
        wait_until(lambda: len(self.answers) > before, "the broker answers")
        return self.answers[-1]

    def received(self) -> list[tuple[str, bytes]]:
        return [self.got.get_nowait() for _ in range(self.got.qsize())]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def gets_in(device: FakeDevice, *, shows_certificate: bool = True, websocket_port: int | None = None) -> bool:
    """Whether the broker lets it connect."""
    try:
        made = Hand(device, shows_certificate=shows_certificate, websocket_port=websocket_port)
    except OSError:
        return False
    wait_until(lambda: made.is_up or made.ended, "the broker lets it in or ends it")
    made.close()
    return made.is_up


@pytest.fixture(scope="module")
def victim(tls_fleet: TlsFleet) -> Iterator[FakeDevice]:
    device = tls_fleet.joined("victim")
    device.connect()
    wait_until(lambda: is_online(tls_fleet, "victim"), "the victim is online")
    yield device
    device.close()


@pytest.fixture(scope="module")
def attacker(tls_fleet: TlsFleet) -> FakeDevice:
    return tls_fleet.joined("attacker")


@pytest.fixture
def hand(attacker: FakeDevice) -> Iterator[Callable[..., Hand]]:
    made: list[Hand] = []

    def make(**how: object) -> Hand:
        made.append(Hand(attacker, **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def is_online(fleet: TlsFleet, name: str) -> bool:
    return any(d.device == name and d.online for d in fleet.service.client().devices())


def test_a_device_writes_only_its_own_topics(victim: FakeDevice, hand: Callable[..., Hand]) -> None:
    forger = hand()
    wait_until(lambda: forger.is_up, "it is connected")
    for leaf in (topics.REPORTED, topics.STATUS, topics.TELEMETRY, topics.RESULT, topics.DESIRED, topics.ACK):
        assert forger.publish(topics.of(victim.name, leaf), b"forged") == "Not authorized", leaf
    for leaf in (topics.DESIRED, topics.ACK, topics.COMMAND):
        assert forger.publish(topics.of("attacker", leaf), b"to itself") == "Not authorized", leaf
    assert forger.publish("edgekit/v1/other", b"x") == "Not authorized"
    assert forger.publish("$SYS/x", b"x") != "Success"
    assert forger.publish(topics.of("attacker", topics.TELEMETRY), b"its own") == "Success"


def test_a_device_reads_only_its_own_topics(
    tls_fleet: TlsFleet, victim: FakeDevice, hand: Callable[..., Hand]
) -> None:
    listener = hand()
    wait_until(lambda: listener.is_up, "it is connected")
    wanted = ("#", "$SYS/#", "edgekit/v1/devices/+/desired", topics.of(victim.name, topics.TELEMETRY))
    listener.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in wanted])
    acknowledged = len(victim.acked)
    wait_until(lambda: len(victim.acked) > acknowledged + 3, "the victim's telemetry goes on")
    assert tls_fleet.service.client().status().is_connected
    assert listener.received() == []


def test_no_device_can_take_a_share_of_the_fleets_telemetry(
    victim: FakeDevice, hand: Callable[..., Hand]
) -> None:
    """In a shared subscription mosquitto gives a message to one member, and drops it if that one may not read it."""
    thief = hand()
    wait_until(lambda: thief.is_up, "it is connected")
    share = topics.of_all(topics.TELEMETRY, group="edgekit-fleet")
    thief.client.subscribe([(share, SubscribeOptions(qos=1))])
    time.sleep(0.5)
    before = max(victim.acked)
    wait_until(lambda: max(victim.acked) > before + 10, "telemetry goes on")
    assert set(range(before + 1, before + 10)) <= victim.acked
    assert thief.received() == []


@pytest.mark.parametrize("client_id", ["victim", "edgekit-victim", "_fleet"])
def test_a_forged_client_id_takes_no_session_over(
    tls_fleet: TlsFleet, victim: FakeDevice, hand: Callable[..., Hand], client_id: str
) -> None:
    forger = hand(client_id=client_id)
    wait_until(lambda: forger.is_up, "it is connected")
    connections = victim.connections
    acknowledged = len(victim.acked)
    wait_until(lambda: len(victim.acked) > acknowledged + 5, "the victim goes on")
    assert victim.connections == connections
    assert tls_fleet.service.client().status().is_connected
    assert forger.publish(topics.of(victim.name, topics.STATUS), b"x") == "Not authorized"


def test_a_forged_will_is_never_published(
    tls_fleet: TlsFleet, victim: FakeDevice, hand: Callable[..., Hand]
) -> None:
    forger = hand(will=(topics.of(victim.name, topics.STATUS), b'{"online": false}'))
    wait_until(lambda: forger.is_up or forger.ended, "the broker answers")
    if forger.is_up:
        sock = forger.client.socket()
        assert sock is not None
        sock.shutdown(2)
    dropped = tls_fleet.service.client().status().dropped
    time.sleep(1.0)
    assert is_online(tls_fleet, victim.name)
    assert tls_fleet.service.client().status().dropped == dropped


def test_nobody_gets_in_without_a_certificate_of_this_fleet(attacker: FakeDevice) -> None:
    assert gets_in(attacker)
    assert not gets_in(attacker, shows_certificate=False)


def test_the_same_rules_hold_over_websockets(
    tls_fleet: TlsFleet, victim: FakeDevice, attacker: FakeDevice, hand: Callable[..., Hand]
) -> None:
    broker = attacker.file.broker
    assert (broker.websocket_path, broker.websocket_port) == ("/mqtt", tls_fleet.websocket_port)
    forger = hand(client_id="victim", websocket_port=tls_fleet.websocket_port)
    wait_until(lambda: forger.is_up, "it is connected")
    assert forger.publish(topics.of(victim.name, topics.REPORTED), b"forged") == "Not authorized"
    assert forger.publish(topics.of("attacker", topics.TELEMETRY), b"its own") == "Success"


def test_a_revoked_device_is_thrown_out_and_stays_out(tls_fleet: TlsFleet) -> None:
    stolen = tls_fleet.joined("stolen")
    hand = Hand(stolen)
    wait_until(lambda: hand.is_up, "it is connected")
    assert tls_fleet.service.client().revoke("stolen", "taken from the roof").is_changed
    wait_until(lambda: hand.ended, "its connection is ended")
    assert not gets_in(stolen)
    assert stolen.renew().status_code == 403
    hand.close()


def test_a_revoked_device_has_nothing_from_coming_back_over_websockets(tls_fleet: TlsFleet) -> None:
    """mosquitto 2.0 lets it in there, whatever the list of revocations says; its rules then allow it nothing."""
    stolen = tls_fleet.joined("stolen-too")
    hand = over_websockets(stolen, tls_fleet)
    assert hand is not None
    assert tls_fleet.service.client().revoke("stolen-too", "").is_changed
    wait_until(lambda: hand.ended, "its connection is ended")
    hand.close()
    again = over_websockets(stolen, tls_fleet)
    if again is not None:
        assert again.publish(topics.of("stolen-too", topics.TELEMETRY), b"of its own") == "Not authorized"
        again.close()
    fresh = over_websockets(tls_fleet.joined("stolen-too"), tls_fleet)
    assert fresh is not None
    # Accepted, though the service may not have subscribed again yet.
    assert fresh.publish(topics.of("stolen-too", topics.TELEMETRY), b"enrolled again") != "Not authorized"
    fresh.close()


def over_websockets(device: FakeDevice, fleet: TlsFleet) -> Hand | None:
    """Connected; None if the broker, once it is back from being started anew, says no three times."""
    port = fleet.websocket_port
    for _ in range(3):
        wait_until(lambda: is_listening(port), "the broker is there")
        try:
            hand = Hand(device, websocket_port=port)
        except OSError:
            continue
        wait_until(lambda hand=hand: hand.is_up or hand.ended, "the broker answers")  # type: ignore[misc]
        time.sleep(0.5)  # an answer of before the start anew does not count
        if hand.is_up and not hand.ended:
            return hand
        hand.close()
    return None


def is_listening(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def test_the_board_before_is_let_go_when_its_name_enrols_again(tls_fleet: TlsFleet) -> None:
    old = tls_fleet.joined("reflashed")
    hand = Hand(old)
    wait_until(lambda: hand.is_up, "it is connected")
    new = tls_fleet.joined("reflashed")
    assert new.enrolment == old.enrolment + 1
    wait_until(lambda: hand.ended, "the old connection is ended")
    wait_until(lambda: gets_in(new), "the new board is let in")
    assert not gets_in(old)
    hand.close()
