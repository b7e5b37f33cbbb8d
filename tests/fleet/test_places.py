"""Where the service may listen and what it may call itself: a table of what was asked for."""

import pytest

from edgekit.errors import UsageError
from edgekit.wire.enrolment import BrokerAddress
from fleet.server.places import Address, Wanted, settle

PUBLIC = {"public_url": "https://fleet.example:8443", "mqtt_public": "mqtts://fleet.example:8883"}


def test_without_anything_all_stays_on_loopback() -> None:
    found = settle(Wanted())
    assert (found.http, found.mqtt) == (Address("127.0.0.1", 8080), Address("127.0.0.1", 1883))
    assert (found.url, found.broker, found.is_local) == ("http://127.0.0.1:8080", "embedded", True)
    assert found.announced == BrokerAddress("127.0.0.1", 1883)


def test_one_address_for_everybody() -> None:
    found = settle(Wanted(**PUBLIC))
    assert (found.url, found.has_tls, found.is_local) == ("https://fleet.example:8443", True, False)
    assert (found.http, found.mqtt) == (Address("0.0.0.0", 8443), Address("0.0.0.0", 8883))
    assert (found.broker, found.has_mqtt_tls) == ("mosquitto", True)
    assert found.announced == BrokerAddress("fleet.example", 8883, tls=True)
    assert found.hosts == ("fleet.example", "localhost", "127.0.0.1", "::1")


def test_an_ipv6_address_is_an_address() -> None:
    found = settle(Wanted(public_url="https://[2001:db8::1]:8443", mqtt_public="mqtts://[2001:db8::1]:8883"))
    assert found.announced.host == "2001:db8::1"
    assert "2001:db8::1" in found.hosts
    assert str(settle(Wanted(http="[::1]:8080")).http) == "[::1]:8080"


def test_a_proxy_may_end_tls_on_this_machine() -> None:
    found = settle(Wanted(**PUBLIC, plain_http=True, http="127.0.0.1:8080"))
    assert (found.has_tls, found.url) == (False, "https://fleet.example:8443")


def test_websockets_are_the_same_broker_on_another_port() -> None:
    found = settle(Wanted(**PUBLIC, websockets="wss://fleet.example/mqtt"))
    assert found.announced == BrokerAddress("fleet.example", 8883, True, "/mqtt", 443)
    assert found.websocket_listener == 443


def test_a_broker_that_runs_already_may_be_called_otherwise_by_devices() -> None:
    found = settle(
        Wanted(
            public_url="https://fleet.example:8443",
            broker="mqtts://fleet@10.0.0.7:8884",
            mqtt_public="mqtts://mqtt.example:8883",
        )
    )
    assert (found.broker, found.mqtt, found.user) == ("external", Address("10.0.0.7", 8884), "fleet")
    assert found.announced == BrokerAddress("mqtt.example", 8883, tls=True)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"http": "0.0.0.0:80"}, "without TLS only loopback"),
        ({"http": ":80"}, "without TLS only loopback"),
        ({"http": "[::]:80"}, "without TLS only loopback"),
        ({"http": "192.168.1.2:80", "public_url": "http://127.0.0.1:80"}, "without TLS only loopback"),
        ({**PUBLIC, "plain_http": True, "http": "0.0.0.0:80"}, "without TLS only loopback"),
        ({"mqtt": "0.0.0.0:1883"}, "without TLS only loopback"),
        ({"mqtt": "0.0.0.0:1883", "broker": "mosquitto"}, "without TLS only loopback"),
        ({"public_url": "http://fleet.example"}, "over TLS only"),
        ({"public_url": "https://fleet.example"}, "give --mqtt-public"),
        ({"public_url": "https://fleet.example", "broker": "mosquitto"}, "give --mqtt-public"),
        ({"public_url": "https://u:p@fleet.example"}, "never in an address"),
        ({"public_url": "https://fleet.example/path"}, "host and port only"),
        ({"public_url": "fleet.example:8443"}, "--public-url"),
        ({"public_url": "https://fleet.example:99999"}, "--public-url"),
        ({"mqtt_public": "mqtt://fleet.example"}, "need TLS"),
        ({**PUBLIC, "broker": "embedded"}, "use --broker mosquitto"),
        ({"broker": "mqtt://broker.example"}, "over TLS only"),
        ({"broker": "mqtts://user:secret@broker.example"}, "--broker-password-file"),
        ({"broker": "mqtts://127.0.0.1:8883", "mqtt_public": "mqtt://broker.example"}, "need TLS"),
        ({**PUBLIC, "websockets": "ws://fleet.example/mqtt"}, "wss://"),
        ({**PUBLIC, "websockets": "wss://other.example/mqtt"}, "on the same host"),
        ({"websockets": "wss://127.0.0.1/mqtt"}, "goes with --mqtt-public"),
        ({"http": "127.0.0.1"}, "write HOST:PORT"),
    ],
)
def test_what_would_be_unsafe_or_cannot_work_is_refused(wanted: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        settle(Wanted(**wanted))  # type: ignore[arg-type]
    assert "secret" not in str(refused.value)
