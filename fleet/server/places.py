"""Where the service listens, and what it calls itself: what was asked for, checked together before anything starts.

Pure.

Always true
 1. Nothing listens beyond loopback without TLS, and no device elsewhere is told an address without TLS.
 2. A secret is never part of an address.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from edgekit.errors import UsageError
from edgekit.wire.enrolment import BrokerAddress, is_loopback

EMBEDDED, MOSQUITTO = "embedded", "mosquitto"
# What every server certificate of ours is for besides: the service reaches its own broker so.
OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
_ANYWHERE = "0.0.0.0"
_DEFAULT_PORT = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883, "wss": 443}


@dataclass(frozen=True)
class Address:
    """Host and port of a listener."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Wanted:
    """What was asked for; empty is the default. `broker` is embedded, mosquitto, or the URL of one that runs already."""

    public_url: str = ""
    mqtt_public: str = ""
    websockets: str = ""
    http: str = ""
    mqtt: str = ""
    broker: str = ""
    plain_http: bool = False


@dataclass(frozen=True)
class Places:
    """What follows from it. `mqtt` is where the service's own connection goes; `user` is its name there, if any."""

    http: Address
    has_tls: bool
    url: str
    broker: str
    mqtt: Address
    has_mqtt_tls: bool
    user: str
    announced: BrokerAddress
    websocket_listener: int | None

    @property
    def is_local(self) -> bool:
        """Whether everything stays on this machine, without TLS."""
        return not (self.has_tls or self.has_mqtt_tls) and is_loopback(urlsplit(self.url).hostname or "")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names and addresses that the service's own certificate must be for."""
        public = (urlsplit(self.url).hostname or "", self.announced.host)
        return tuple(dict.fromkeys((*public, *OWN_HOSTS)))


def settle(wanted: Wanted) -> Places:
    """Raises: UsageError for what cannot work or would be unsafe, with the way out."""
    public = _url(wanted.public_url, "--public-url", ("https", "http"), "https://fleet.example:8443")
    is_https = public is not None and public.scheme == "https"
    if public is not None and not is_https and not is_loopback(public.hostname or ""):
        raise UsageError(
            f"--public-url {wanted.public_url}: devices elsewhere are served over TLS only; write https://…"
        )
    has_tls = is_https and not wanted.plain_http
    http = _http_listener(wanted, public, has_tls=has_tls)
    url = wanted.public_url.rstrip("/") if public is not None else f"http://{http}"
    kind = wanted.broker or (MOSQUITTO if wanted.mqtt_public else EMBEDDED)
    places = _external(wanted, kind) if kind not in (EMBEDDED, MOSQUITTO) else _ours(wanted, kind)
    if not is_loopback(urlsplit(url).hostname or "") and is_loopback(places["announced"].host):
        raise UsageError(
            f"--public-url {url}: devices elsewhere need the broker's address too; give --mqtt-public mqtts://HOST:PORT"
        )
    return Places(http=http, has_tls=has_tls, url=url, **places)


def _http_listener(wanted: Wanted, public: SplitResult | None, *, has_tls: bool) -> Address:
    if wanted.http:
        listener = parse_address(wanted.http, "--http")
    elif public is not None and has_tls:
        port = public.port or _DEFAULT_PORT["https"]
        listener = Address(public.hostname if is_loopback(public.hostname or "") else _ANYWHERE, port)  # type: ignore[arg-type]  # a loopback host is one
    else:
        listener = Address("127.0.0.1", 8080)
    if not is_loopback(listener.host) and not has_tls:
        raise UsageError(
            f"--http {wanted.http}: without TLS only loopback is served; "
            "give --public-url https://HOST:PORT, by which the service has TLS, and leave --plain-http out"
        )
    return listener


def _ours(wanted: Wanted, kind: str) -> dict[str, Any]:
    """A broker that the service starts."""
    public = _url(wanted.mqtt_public, "--mqtt-public", ("mqtts", "mqtt"), "mqtts://fleet.example:8883")
    has_tls = public is not None and public.scheme == "mqtts"
    if public is not None and not has_tls and not is_loopback(public.hostname or ""):
        raise UsageError(f"--mqtt-public {wanted.mqtt_public}: devices elsewhere need TLS; write mqtts://…")
    if has_tls and kind == EMBEDDED:
        raise UsageError(
            "--mqtt-public mqtts://…: the embedded broker knows no TLS that it enforces and no rules per device; "
            "use --broker mosquitto (apt-get install mosquitto), or --broker mqtts://HOST:PORT for one that runs already"
        )
    if wanted.mqtt:
        listener = parse_address(wanted.mqtt, "--mqtt")
    elif public is not None:
        host = public.hostname or ""
        port = public.port or _DEFAULT_PORT[public.scheme]
        listener = Address(host if is_loopback(host) else _ANYWHERE, port)
    else:
        listener = Address("127.0.0.1", 1883)
    if not is_loopback(listener.host) and not has_tls:
        raise UsageError(
            f"--mqtt {wanted.mqtt}: without TLS only loopback is served; give --mqtt-public mqtts://HOST:PORT "
            "with --broker mosquitto, or --broker mqtts://HOST:PORT for a broker that runs already"
        )
    host = (public.hostname or "") if public is not None else listener.host
    port = (public.port or _DEFAULT_PORT[public.scheme]) if public is not None else listener.port
    announced, websocket_listener = _with_websockets(wanted, BrokerAddress(host, port, has_tls))
    return {
        "broker": kind,
        "mqtt": listener,
        "has_mqtt_tls": has_tls,
        "user": "",
        "announced": announced,
        "websocket_listener": websocket_listener,
    }


def _external(wanted: Wanted, text: str) -> dict[str, Any]:
    """A broker that runs already."""
    url = _url(text, "--broker", ("mqtts", "mqtt"), "mqtts://USER@broker.example:8883", has_user=True)
    assert url is not None
    host, has_tls = url.hostname or "", url.scheme == "mqtts"
    if not has_tls and not is_loopback(host):
        raise UsageError(f"--broker {text}: a broker elsewhere is reached over TLS only; write mqtts://…")
    port = url.port or _DEFAULT_PORT[url.scheme]
    public = _url(wanted.mqtt_public, "--mqtt-public", ("mqtts", "mqtt"), "mqtts://broker.example:8883")
    announced = BrokerAddress(host, port, has_tls)
    if public is not None:
        announced = BrokerAddress(
            public.hostname or "", public.port or _DEFAULT_PORT[public.scheme], public.scheme == "mqtts"
        )
    if not announced.tls and not is_loopback(announced.host):
        raise UsageError(f"--mqtt-public {wanted.mqtt_public}: devices elsewhere need TLS; write mqtts://…")
    announced, _ = _with_websockets(wanted, announced)
    return {
        "broker": "external",
        "mqtt": Address(host, port),
        "has_mqtt_tls": has_tls,
        "user": url.username or "",
        "announced": announced,
        "websocket_listener": None,
    }


def _with_websockets(wanted: Wanted, announced: BrokerAddress) -> tuple[BrokerAddress, int | None]:
    url = _url(
        wanted.websockets, "--mqtt-websockets", ("wss",), "wss://fleet.example:443/mqtt", has_path=True
    )
    if url is None:
        return announced, None
    if not announced.tls or url.hostname != announced.host:
        raise UsageError(
            f"--mqtt-websockets {wanted.websockets}: goes with --mqtt-public mqtts://…, on the same host"
        )
    port = url.port or _DEFAULT_PORT["wss"]
    return BrokerAddress(announced.host, announced.port, True, url.path or "/mqtt", port), port


def parse_address(text: str, flag: str) -> Address:
    """HOST:PORT. Raises: UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{flag} {text!r}: write HOST:PORT, e.g. 127.0.0.1:1883")
    host = host.strip("[]") or _ANYWHERE
    return Address("127.0.0.1" if host == "localhost" else host, int(port))


def _url(
    text: str,
    flag: str,
    schemes: tuple[str, ...],
    example: str,
    *,
    has_user: bool = False,
    has_path: bool = False,
) -> SplitResult | None:
    """The parts of a URL that consists of scheme, host and port; None if nothing was given."""
    if not text:
        return None
    try:
        url = urlsplit(text)
        port_is_right = url.port is None or url.port > 0
    except ValueError:
        port_is_right, url = False, urlsplit("")
    if url.password is not None:
        raise UsageError(
            f"{flag}: a password stands in a file (--broker-password-file) or the environment, never in an address"
        )
    if url.scheme not in schemes or not url.hostname or not port_is_right:
        kinds = "embedded, mosquitto, or " if flag == "--broker" else ""
        raise UsageError(f"{flag} {text!r}: write {kinds}{example}")
    if (url.username and not has_user) or (url.path.strip("/") and not has_path) or url.query or url.fragment:
        raise UsageError(f"{flag} {text!r}: write scheme, host and port only, e.g. {example}")
    return url
