"""The way to the fleet: TLS pinned by the enrolment file, plain on loopback only, through a proxy where one is named.

Always true
 1. TLS is 1.2 or newer and verified against nothing but the authorities that the enrolment file holds. Without any,
    only loopback addresses are spoken to.
 2. HTTPS_PROXY and HTTP_PROXY are followed, but not for loopback nor for what NO_PROXY names. A proxy gets a tunnel
    (CONNECT): what goes through it is TLS from end to end.
 3. A server's certificate is held against the time only where this device knows the time; one that starts in 1970 finds
    its fleet all the same, and gets the time from what the fleet signed. Authorities have no end: they are what this
    device trusts, not what it was told (RFC 5280, 6.1).
"""

import base64
import http.client
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from device_agent.traffic import Meter, Traffic
from edgekit.errors import UsageError
from edgekit.wire.enrolment import is_loopback
from edgekit.wire.messages import Purpose

CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 30.0
# X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h, X509_VERIFY_PARAM_set_flags(3)); the ssl module has no name for it.
_NO_CHECK_TIME = 0x200000

_ORDERS: Purpose = "orders"

# What time it is, or None where that is not known.
Now = Callable[[], datetime | None]


def place(host: str, port: int | None) -> str:
    """`host:port` as it stands in an address: an IPv6 host in brackets (RFC 3986, 3.2.2)."""
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return shown if port is None else f"{shown}:{port}"


def is_allowed(host: str, port: int | None, allowed: tuple[str, ...]) -> bool:
    """Whether `host`, or `host:port`, is in the list."""
    return bool({host, place(host, None), place(host, port)} & set(allowed))


# -- TLS -------------------------------------------------------------------------------------------------------------


class PinnedContext(ssl.SSLContext):
    """A client's context that trusts `ca` alone, and tells the time by `now`."""

    now: Now

    def check_time(self, sock: ssl.SSLSocket) -> None:
        """Raises: ssl.SSLCertVerificationError if the peer's certificate is not valid now."""
        found: Mapping[str, Any] = sock.getpeercert() or {}
        now = self.now()
        if now is None or not found:
            return
        begin, end = (_time(found[name]) for name in ("notBefore", "notAfter"))
        if not begin <= now <= end:
            raise ssl.SSLCertVerificationError(
                f"the server's certificate is valid from {begin.isoformat()} to {end.isoformat()}, here it is"
                f" {now.isoformat(timespec='seconds')}"
            )


class _PinnedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        if isinstance(self.context, PinnedContext):
            self.context.check_time(self)


def _time(text: Any) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(text)), UTC)


def pinned(ca: str, now: Now, certificate: str = "", key: str = "") -> PinnedContext:
    """A context that trusts `ca` and shows `certificate`, all PEM texts. Raises: UsageError if they are none."""
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.now = now
    context.sslsocket_class = _PinnedSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags = ssl.VerifyFlags(
        context.verify_flags | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    )
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"the enrolment file's 'ca' holds no certificates in PEM ({error})") from error
    if certificate:
        _show(context, certificate, key)
    return context


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """The ssl module takes a key from a file only: from one in memory, which nobody else can open."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{key}\n{certificate}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise UsageError(f"the certificate does not fit this device's key ({error})") from error
    finally:
        os.close(descriptor)


# -- proxies ---------------------------------------------------------------------------------------------------------


class Proxy(NamedTuple):
    host: str
    port: int
    authorization: str


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy for an address by the customary variables; the lower-case names go before. Raises: UsageError."""

    def variable(name: str) -> str:
        return environment.get(name) or environment.get(name.upper(), "")

    text = variable(f"{scheme}_proxy")
    if not text or is_loopback(host) or is_exempt(host, port, variable("no_proxy")):
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or parts.hostname is None:
        raise UsageError(
            f"{scheme.upper()}_PROXY: give http://HOST:PORT; a proxy of another kind is not known here"
        )
    who = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        who = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(parts.hostname, parts.port or 80, who)


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host: itself, a domain above it, a network it is in, or `*`; perhaps with a port."""
    names = {name.strip().lower() for name in no_proxy.split(",")} - {""}
    shown = host.strip("[]").lower()
    if "*" in names or {place(shown, None), place(shown, port)} & names:
        return True
    return any(_is_within(shown, name.removesuffix(f":{port}")) for name in names)


def _is_within(host: str, name: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        return host == name.lstrip(".") or host.endswith(f".{name.lstrip('*').lstrip('.')}")


def dial(scheme: str, host: str, port: int) -> socket.socket:
    """A connection to `host`, itself or through a proxy. Raises: OSError."""
    try:
        proxy = proxy_for(scheme, host, port)
    except UsageError as error:
        raise OSError(str(error)) from error
    if proxy is None:
        return socket.create_connection((host, port), CONNECT_TIMEOUT_S)
    sock = socket.create_connection((proxy.host, proxy.port), CONNECT_TIMEOUT_S)
    try:
        _tunnel(sock, proxy, place(host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _tunnel(sock: socket.socket, proxy: Proxy, target: str) -> None:
    """RFC 9110, 9.3.6. Raises: OSError."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    response = http.client.HTTPResponse(sock, method="CONNECT")
    try:
        response.begin()
        if not 200 <= response.status < 300:
            raise OSError(
                f"the proxy {place(proxy.host, proxy.port)} answered {response.status} {response.reason}"
            )
    except http.client.HTTPException as error:
        raise OSError(f"the proxy {place(proxy.host, proxy.port)} answered no HTTP") from error
    finally:
        response.close()


# -- HTTP ------------------------------------------------------------------------------------------------------------


class Access:
    """How one device reaches its fleet. A renewed certificate is used from the next connection on; any thread may ask.

    `credential` is what says who asks where a proxy ends TLS; `traffic` counts what is carried.
    """

    def __init__(self, ca: str, allowed_hosts: tuple[str, ...], now: Now) -> None:
        self._ca = ca
        self._allowed = allowed_hosts
        self._now = now
        self.credential = ""
        self.context = pinned(ca, now) if ca else None
        self.traffic = Traffic()

    def show(self, certificate: str, key: str, credential: str) -> None:
        """From now on be who `certificate` says. Raises: UsageError if `key` is not its key."""
        if self._ca:
            self.context = pinned(self._ca, self._now, certificate, key)
        self.credential = credential

    def unnamed(self) -> "Access":
        """The same fleet, reached without a certificate."""
        made = Access(self._ca, self._allowed, self._now)
        made.traffic = self.traffic
        return made

    def open(self, url: str, purpose: Purpose = "orders") -> "Connection":
        """A connection for `url`, not yet made. Raises: UsageError for an address that is not allowed."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise UsageError(f"{url!r} is no http address; ask for a new enrolment file")
        if not is_allowed(parts.hostname, parts.port, self._allowed):
            raise UsageError(f"{parts.netloc} is not among the hosts that the enrolment allows")
        self.check(parts.hostname, is_tls=parts.scheme == "https")
        made = Connection(parts.scheme, parts.hostname, parts.port, self.context)
        made.counts_in(self.traffic, purpose)
        return made

    def check(self, host: str, *, is_tls: bool) -> None:
        """Raises: UsageError for a plain connection beyond loopback, or TLS without an authority to verify it by."""
        if is_tls and self.context is None:
            raise UsageError(
                f"{host} is to be reached over TLS, but the enrolment file holds no 'ca' to verify it by"
            )
        if not is_tls and not is_loopback(host):
            raise UsageError(
                f"{host} would be reached without TLS, which only loopback addresses may be; ask for an enrolment"
                " file of a fleet with --public-url https://…"
            )


class Connection(http.client.HTTPConnection):
    """One request to the fleet: `connect`, then as any HTTPConnection."""

    def __init__(self, scheme: str, host: str, port: int | None, context: ssl.SSLContext | None) -> None:
        self._scheme = scheme
        self._context = context if scheme == "https" else None
        self.default_port = 443 if scheme == "https" else 80
        super().__init__(host, port or self.default_port, timeout=CONNECT_TIMEOUT_S)
        self._traffic, self._purpose = Traffic(), _ORDERS
        self._meter: Meter | None = None
        self._is_reading_head = False

    def counts_in(self, traffic: Traffic, purpose: Purpose) -> None:
        """Where what this connection carries is counted, and as what."""
        self._traffic, self._purpose = traffic, purpose

    def getresponse(self) -> http.client.HTTPResponse:
        self._is_reading_head = True
        try:
            return super().getresponse()
        finally:
            self._is_reading_head = False

    def close(self) -> None:
        super().close()
        # http.client closes its end as soon as it has the head of a last answer, whose body is still to come.
        if not self._is_reading_head and self._meter is not None:
            self._traffic.end(self._meter)
            self._meter = None

    def connect(self) -> None:
        """From then on an answer may take `TIMEOUT_S`. Raises: OSError."""
        sock = dial(self._scheme, self.host, self.port)
        self._meter = self._traffic.meter(self._purpose, sock)
        if self._context is not None:
            try:
                sock = self._context.wrap_socket(sock, server_hostname=self.host)
            except BaseException:
                sock.close()
                raise
        sock.settimeout(TIMEOUT_S)
        self.sock = sock
