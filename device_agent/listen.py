"""Where the agent serves: HOST:PORT or unix:PATH, as listening sockets.

Always true
 1. Beyond loopback only TLS with a token is served; loopback and Unix sockets are plain.
 2. A Unix socket is never open to others than its user and group, not for a moment, and is removed at the end.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError

BACKLOG = 512
UNIX = "unix:"
_UNIX_MODE = 0o660
# sockaddr_un holds 108 bytes with the ending zero (unix(7)).
_LONGEST_PATH = 107
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Credentials:
    """What TLS needs: a context with the certificate, and the hash of the token that each request must bear."""

    context: ssl.SSLContext
    token_sha256: bytes

    def admits(self, authorization: str) -> bool:
        """Whether a request's Authorization header bears the token; compared in constant time."""
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(given, self.token_sha256) and scheme.lower() == "bearer"


@dataclass(frozen=True)
class Listener:
    """A listening socket. `address` is as it was asked for, with the port that it got."""

    sock: socket.socket
    address: str
    is_tls: bool = False
    path: Path | None = None
    inode: int = 0

    @property
    def url(self) -> str:
        """As a person reads it."""
        return self.address if self.path is not None else f"http{'s' if self.is_tls else ''}://{self.address}"

    def close(self) -> None:
        self.sock.close()
        if self.path is not None:
            # Another process may have taken the path over meanwhile; its socket is not ours to remove.
            with contextlib.suppress(OSError):
                if self.path.lstat().st_ino == self.inode:
                    self.path.unlink()


def credentials(cert: Path, key: Path, token: Path) -> Credentials:
    """Raises: UsageError naming the file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for path in (cert, key, token):
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
    try:
        context.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"--tls-cert {cert} --tls-key {key}: not a certificate and its key in PEM ({error})"
        ) from error
    try:
        text = token.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {token}: cannot be read ({error})") from error
    if len(text) < _SHORTEST_TOKEN or not text.isprintable() or " " in text:
        raise UsageError(
            f"--token-file {token}: one line of at least {_SHORTEST_TOKEN} characters, no spaces"
        )
    return Credentials(context, hashlib.sha256(text.encode()).digest())


def listen(addresses: Sequence[str], secured: Credentials | None = None) -> tuple[Listener, ...]:
    """A listener for each address; all or none.

    Raises: UsageError for an address that is malformed, in use, or beyond loopback without `secured`.
    """
    opened: list[Listener] = []
    try:
        opened.extend(_open(address, is_secured=secured is not None) for address in addresses)
    except UsageError:
        for listener in opened:
            listener.close()
        raise
    return tuple(opened)


def _open(address: str, *, is_secured: bool) -> Listener:
    if address.startswith(UNIX):
        return _open_unix(address, Path(address.removeprefix(UNIX)))
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(
            f"--http {address}: give HOST:PORT, e.g. 127.0.0.1:8500, or unix:PATH, e.g. unix:/run/edgekit.sock"
        )
    host = host.strip("[]")
    is_local = _is_loopback(host)
    if not is_local and not is_secured:
        raise UsageError(
            f"--http {address}: beyond loopback only TLS with a token is served; give --tls-cert, --tls-key and"
            " --token-file, or use 127.0.0.1 or unix:PATH"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UsageError(f"--http {address}: cannot listen there ({error.strerror})") from error
    got = f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}"
    return Listener(sock, got, is_tls=not is_local)


def _open_unix(address: str, path: Path) -> Listener:
    if not path.is_absolute() or len(os.fsencode(path)) > _LONGEST_PATH:
        raise UsageError(f"--http {address}: give an absolute path of at most {_LONGEST_PATH} bytes")
    _remove_stale(address, path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~_UNIX_MODE)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(f"--http {address}: cannot listen there ({error.strerror})") from error
    finally:
        os.umask(before)
    return Listener(sock, address, path=path, inode=path.lstat().st_ino)


def _remove_stale(address: str, path: Path) -> None:
    """Remove a socket that nobody listens at any more, as one that was killed leaves it. Raises: UsageError."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"--http {address}: there is something else at that path, which is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UsageError(f"--http {address}: cannot be looked at ({error.strerror})") from error
    raise UsageError(f"--http {address}: another process serves there")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
