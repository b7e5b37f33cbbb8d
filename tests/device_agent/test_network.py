"""Whom an agent speaks to, and who it takes for its fleet: real TLS servers, real proxies."""

import base64
import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tls_authority import DAY, Authority

from device_agent import network
from device_agent.network import Access
from edgekit.errors import UsageError

NOW = datetime.now(UTC)


class Hello(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self):
        shown = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        names = dict(pair[0] for pair in shown["subject"]) if shown else {}
        body = f"{self.headers['Host']} {names.get('commonName', '-')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def get_request(self):
        sock, address = super().get_request()
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, *_):
        pass


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def serve():
    running = []

    def start(context, host="127.0.0.1"):
        kind = type("Server6", (Server,), {"address_family": socket.AF_INET6}) if ":" in host else Server
        server = kind((host, 0), Hello)
        server.context = context
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server.server_port

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def get(access, url):
    connection = access.open(url)
    try:
        connection.connect()
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def reaching(ca, *hosts, now=NOW):
    return Access(ca, hosts or ("127.0.0.1", "localhost", "::1"), lambda: now)


def test_the_fleet_is_known_by_the_pinned_authority_and_knows_the_device_by_its_certificate(
    authority, serve, tmp_path
):
    port = serve(authority.server_context(tmp_path))
    access = reaching(authority.pem)
    assert get(access, f"https://localhost:{port}/") == f"localhost:{port} -"
    access.show(*authority.client("board-1"), "")
    assert get(access, f"https://127.0.0.1:{port}/") == f"127.0.0.1:{port} board-1"


def test_ipv6_addresses_are_reached_and_named_in_brackets(authority, serve, tmp_path):
    port = serve(authority.server_context(tmp_path), "::1")
    assert get(reaching(authority.pem), f"https://[::1]:{port}/") == f"[::1]:{port} -"
    assert get(reaching(""), f"http://[::1]:{serve(None, '::1')}/").startswith("[::1]:")


IMPOSTORS = {
    "signed by somebody else": ({}, "unable to get|certificate verify failed"),
    "made for another host": ({"hosts": ("elsewhere.example",)}, "Hostname mismatch|IP address mismatch"),
    "ended": ({"begin": NOW - 9 * DAY, "end": NOW - DAY}, "is valid from"),
    "not begun": ({"begin": NOW + DAY, "end": NOW + 9 * DAY}, "is valid from"),
}


@pytest.mark.parametrize("case", IMPOSTORS)
def test_a_server_is_refused_whose_certificate_is(case, authority, serve, tmp_path):
    how, told = IMPOSTORS[case]
    other = Authority() if "somebody" in case else authority
    port = serve(other.server_context(tmp_path, **how))
    with pytest.raises(ssl.SSLCertVerificationError, match=told):
        get(reaching(authority.pem), f"https://127.0.0.1:{port}/")


@pytest.mark.parametrize("case", ["ended", "not begun"])
def test_a_device_that_does_not_know_the_time_finds_its_fleet_all_the_same(case, authority, serve, tmp_path):
    port = serve(authority.server_context(tmp_path, **IMPOSTORS[case][0]))
    assert get(reaching(authority.pem, now=None), f"https://127.0.0.1:{port}/")


def test_old_versions_of_tls_are_not_spoken(authority, serve, tmp_path):
    context = authority.server_context(tmp_path)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        get(reaching(authority.pem), f"https://127.0.0.1:{serve(context)}/")


REFUSED = {
    "plain beyond loopback": ("", "http://fleet.example/", "without TLS"),
    "TLS that nothing verifies": ("", "https://fleet.example/", "no 'ca'"),
    "a host that is not allowed": ("", "http://127.0.0.2/", "not among the hosts"),
    "no http at all": ("", "ftp://fleet.example/", "no http address"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_address_is_refused_before_anything_is_sent(case):
    ca, url, told = REFUSED[case]
    with pytest.raises(UsageError, match=told):
        reaching(ca, "fleet.example").open(url)


def test_a_certificate_for_another_key_is_refused(authority):
    chain, _key = authority.client("board-1")
    with pytest.raises(UsageError, match="does not fit"):
        reaching(authority.pem).show(chain, authority.client("board-2")[1], "")
    with pytest.raises(UsageError, match="no certificates"):
        reaching("nonsense")


def test_the_key_is_in_no_file_that_could_be_opened_later(authority, tmp_path):
    before = set(Path("/proc/self/fd").iterdir())
    reaching(authority.pem).show(*authority.client("board-1"), "")
    assert set(Path("/proc/self/fd").iterdir()) == before


HOSTS = {
    "itself": ("a.example", None, ("a.example",), True),
    "itself with any port": ("a.example", 8443, ("a.example",), True),
    "with its port": ("a.example", 8443, ("a.example:8443",), True),
    "with another port": ("a.example", 80, ("a.example:8443",), False),
    "another": ("b.example", None, ("a.example",), False),
    "IPv6": ("fd00::1", 8443, ("fd00::1",), True),
    "IPv6 in brackets": ("fd00::1", 8443, ("[fd00::1]:8443",), True),
    "IPv6 whose end looks like a port": ("fd00::1", 8443, ("fd00::1:8443",), False),
}


@pytest.mark.parametrize("case", HOSTS)
def test_allowed_hosts(case):
    host, port, allowed, expected = HOSTS[case]
    assert network.is_allowed(host, port, allowed) is expected


# -- proxies -----------------------------------------------------------------------------------------------------------

EXEMPT = {
    "everything": ("fleet.example", "*", True),
    "itself": ("fleet.example", "other, fleet.example", True),
    "its domain": ("fleet.example", ".example", True),
    "its domain without a dot": ("fleet.example", "example", True),
    "a name that only ends alike": ("myfleet.example", "fleet.example", False),
    "with its port": ("fleet.example", "fleet.example:8443", True),
    "with another port": ("fleet.example", "fleet.example:443", False),
    "a network": ("10.1.2.3", "10.0.0.0/8", True),
    "another network": ("11.1.2.3", "10.0.0.0/8", False),
    "an IPv6 network": ("fd00::1", "fd00::/8", True),
    "nothing": ("fleet.example", "", False),
}


@pytest.mark.parametrize("case", EXEMPT)
def test_no_proxy(case):
    host, no_proxy, expected = EXEMPT[case]
    assert network.is_exempt(host, 8443, no_proxy) is expected


def test_the_customary_variables_name_the_proxy():
    given = {"HTTPS_PROXY": "http://me:p%40ss@proxy.example:3128", "https_proxy": ""}
    found = network.proxy_for("https", "fleet.example", 443, given)
    assert (found.host, found.port) == ("proxy.example", 3128)
    assert base64.b64decode(found.authorization.removeprefix("Basic ")) == b"me:p@ss"
    assert network.proxy_for("https", "127.0.0.1", 443, given) is None
    assert network.proxy_for("https", "fleet.example", 443, {}) is None
    assert network.proxy_for("https", "fleet.example", 443, given | {"NO_PROXY": "example"}) is None
    assert network.proxy_for("https", "f.example", 443, {"https_proxy": "proxy:80"}).host == "proxy"
    with pytest.raises(UsageError, match="HTTPS_PROXY"):
        network.proxy_for("https", "fleet.example", 443, {"HTTPS_PROXY": "socks5://proxy:1080"})


class TestProxy:
    """A fleet behind a proxy on this machine, so its name is looked up by the proxy alone."""

    @pytest.fixture
    def through(self, monkeypatch):
        """A proxy that sends everything to one port, or answers `refusal`."""
        server = socket.create_server(("127.0.0.1", 0))
        asked = []

        def start(port, refusal=b""):
            monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{server.getsockname()[1]}")

            def run():
                with contextlib.suppress(OSError):
                    while True:
                        client, _ = server.accept()
                        head = b""
                        while b"\r\n\r\n" not in head:
                            head += client.recv(1)
                        asked.append(head.decode())
                        if refusal:
                            client.sendall(refusal)
                            client.close()
                            continue
                        beyond = socket.create_connection(("127.0.0.1", port))
                        client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
                        for a, b in ((client, beyond), (beyond, client)):
                            threading.Thread(target=pump, args=(a, b), daemon=True).start()

            threading.Thread(target=run, daemon=True).start()
            return asked

        yield start
        server.close()

    def test_the_fleet_is_reached_through_it_and_it_sees_nothing_but_the_name(
        self, authority, serve, tmp_path, through
    ):
        port = serve(authority.server_context(tmp_path, hosts=("fleet.example",)))
        asked = through(port)
        access = reaching(authority.pem, "fleet.example")
        access.show(*authority.client("board-1"), "")
        assert get(access, "https://fleet.example/") == "fleet.example board-1"
        [head] = asked
        assert head.startswith("CONNECT fleet.example:443 HTTP/1.1\r\n")
        assert "Proxy-Authorization: Basic dTpw\r\n" in head

    def test_one_that_pretends_to_be_the_fleet_is_refused(self, authority, serve, tmp_path, through):
        through(serve(Authority().server_context(tmp_path, hosts=("fleet.example",))))
        with pytest.raises(ssl.SSLCertVerificationError):
            get(reaching(authority.pem, "fleet.example"), "https://fleet.example/")

    def test_what_it_refuses_is_told(self, authority, through):
        through(0, b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(OSError, match="answered 407"):
            get(reaching(authority.pem, "fleet.example"), "https://fleet.example/")

    def test_one_that_speaks_no_http_is_told(self, authority, through):
        through(0, b"hello\r\n\r\n")
        with pytest.raises(OSError, match="no HTTP"):
            get(reaching(authority.pem, "fleet.example"), "https://fleet.example/")


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
