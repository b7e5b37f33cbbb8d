"""Where the agent serves: Unix sockets, several addresses, TLS with a token; real processes behind them."""

import datetime as dt
import http.client
import ipaddress
import json
import os
import socket
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device_agent import relay
from device_agent.folder import DeploymentFolder
from device_agent.listen import credentials, listen
from device_agent.serve.peers import peer_of, relay_pair
from edgekit.errors import UsageError

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificate, key and token file."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "board")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = [folder / name for name in ("cert.pem", "key.pem", "token")]
    paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    paths[2].write_text(TOKEN + "\n")
    return paths


@pytest.fixture
def slot(tmp_path, tools):
    return tools.staged(DeploymentFolder(tmp_path / "d"), tools.build(tmp_path, sturdy=True))


class UnixClient(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def ask(connection, path, body=None, **headers):
    connection.request("POST" if body else "GET", path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


# -- Unix sockets ----------------------------------------------------------------------------------------------------


def test_a_unix_socket_and_an_address_serve_the_same(slot, host_front, tmp_path, tools):
    path = tmp_path / "edgekit.sock"
    host = host_front(slot, http=("127.0.0.1:0", f"unix:{path}"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    image = json.dumps({"input": tools.digit_images(1)[0].tolist()})
    by_unix, by_tcp = UnixClient(path), http.client.HTTPConnection("127.0.0.1", host.port, timeout=20)
    for _ in range(2):  # the second is the worker's own connection by then
        assert ask(by_unix, "/predict", image) == ask(by_tcp, "/predict", image)
    assert ask(by_unix, "/v2")[1]["name"] == "edgekit"
    assert host.close() == 0
    assert not path.exists()


def test_a_socket_left_by_a_killed_agent_is_taken_over(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (listener,) = listen([f"unix:{path}"])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


def test_a_socket_that_is_served_and_a_file_are_left_alone(tmp_path):
    path, file = tmp_path / "s", tmp_path / "f"
    file.write_text("mine")
    (listener,) = listen([f"unix:{path}"])
    with pytest.raises(UsageError, match="another process serves there"):
        listen([f"unix:{path}"])
    with pytest.raises(UsageError, match="something else at that path"):
        listen([f"unix:{file}"])
    assert file.read_text() == "mine"
    path.unlink()
    (other,) = listen([f"unix:{path}"])
    listener.close()  # the path is the other's now
    assert path.exists()
    other.close()


def test_one_address_that_cannot_be_had_leaves_none_open(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(UsageError, match="give HOST:PORT"):
        listen([f"unix:{path}", "nonsense"])
    assert not path.exists()


@pytest.mark.parametrize(
    "address", ["unix:relative", "unix:/" + "x" * 120, "0.0.0.0:1", "127.0.0.1:99999", "a:²", ":1"]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError):
        listen([address])


# -- TLS and a token -------------------------------------------------------------------------------------------------


@pytest.fixture
def over_tls(slot, host_front, files, monkeypatch):
    """A front whose only address is beyond loopback; it is spoken to over loopback all the same."""
    host = host_front(slot, "--secured", ",".join(map(str, files)), http=("0.0.0.0:0",))
    context = ssl.create_default_context(cafile=str(files[0]))
    return lambda: http.client.HTTPSConnection("127.0.0.1", host.port, timeout=20, context=context)


def bearer(token=TOKEN):
    return {"Authorization": f"Bearer {token}"}


def test_over_tls_each_request_of_a_connection_needs_the_token(over_tls, tools):
    image = json.dumps({"input": tools.digit_images(1)[0].tolist()})
    connection = over_tls()
    for _ in range(3):
        assert ask(connection, "/predict", image, **bearer())[0] == 200
        assert ask(connection, "/v2/models/digits", None, **bearer())[0] == 200
        assert ask(connection, "/v2/health/live", None, **bearer())[0] == 200
    assert ask(connection, "/predict", image)[0] == 401


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "\u00e9"])
def test_a_wrong_token_is_refused_everywhere(over_tls, token):
    for path in ("/v2/health/live", "/metrics", "/v2/models/digits", "/nowhere"):
        connection = over_tls()
        connection.request("GET", path, headers=bearer(token))
        response = connection.getresponse()
        assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
        connection.close()


def test_a_large_body_comes_through_whole(over_tls):
    connection = over_tls()
    status, answer = ask(connection, "/predict", b'{"input": [' + b"1," * 1_000_000 + b"1]}", **bearer())
    assert status == 400
    assert "1000001" in answer["error"] or "64" in answer["error"]


def test_who_speaks_no_tls_is_let_go_and_others_are_served(over_tls):
    connection = over_tls()
    with socket.create_connection(("127.0.0.1", connection.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.settimeout(20)
        assert b"HTTP" not in stranger.recv(100)
    assert ask(connection, "/v2", None, **bearer())[0] == 200


def test_one_client_does_not_take_all_relays(over_tls):
    connection = over_tls()
    strangers = [
        socket.create_connection(("127.0.0.1", connection.port), source_address=("127.0.0.9", 0))
        for _ in range(relay.MAX_PER_CLIENT + 20)
    ]
    assert ask(connection, "/v2", None, **bearer())[0] == 200
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize(
    ("which", "content", "says"),
    [
        (0, "no certificate", "not a certificate"),
        (2, "short", "at least 16"),
        (2, "two words of a token", "no spaces"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(files, tmp_path, which, content, says):
    paths = list(files)
    paths[which] = tmp_path / "file"
    paths[which].write_text(content)
    with pytest.raises(UsageError, match=says):
        credentials(*paths)
    paths[which] = tmp_path / "missing"
    with pytest.raises(UsageError, match="missing"):
        credentials(*paths)


def test_only_the_fronts_own_pairs_carry_a_clients_address():
    ours, theirs = relay_pair("192.0.2.7")
    assert (peer_of(theirs).name, peer_of(theirs).is_relayed) == ("192.0.2.7", True)
    stranger, end = socket.socketpair()
    stranger.bind(b"\0edgekit-tls/192.0.2.8/1/1")
    if os.getppid():  # this process made the pair, so only the name would give it away; a fork cannot
        child = os.fork()
        if child == 0:
            inner, outer = socket.socketpair()
            inner.bind(b"\0edgekit-tls/192.0.2.9/1/1")
            socket.send_fds(stranger, [b"x"], [outer.fileno()])
            os._exit(0)
        os.waitpid(child, 0)
        _, descriptors, *_ = socket.recv_fds(end, 10, 1)
        with socket.socket(fileno=descriptors[0]) as forged:
            assert not peer_of(forged).is_relayed
    for each in (ours, theirs, stranger, end):
        each.close()
