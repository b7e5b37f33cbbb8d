"""The folder of a mosquitto that the service does not start: `edgekit fleet broker-config` writes it, and it is kept
fresh from then on.

Always true
 1. What is there already is renewed, never replaced by another fleet's.
 2. The server's certificate stays for every host that it was made for.
 3. A file appears whole, and is its folder's owner's: mosquitto may be another user than who writes here.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from edgekit.errors import UsageError
from fleet.publish import write_private
from fleet.server import broker_config, ca, home
from fleet.server.broker_config import ACL, CONFIG, Mosquitto
from fleet.server.ca import Authority
from fleet.server.places import Places


@dataclass(frozen=True)
class Source:
    """The fleet whose broker it is: `keys` is the folder of its home's keys."""

    keys: Path
    authority: Authority
    fleet: str
    places: Places


_RENEWED = (ACL, "crl.pem", "server.pem", "server.key", "service.pem", "service.key")


def write(out: Path, source: Source, *, hosts: Iterable[str], at: Path, now: float) -> None:
    """A new folder `out` with all that mosquitto takes; `at` is where it will lie on the broker's machine, and `hosts`
    are names of it besides the public ones.

    Raises: OSError.
    """
    announced = source.places.announced
    out.mkdir(mode=0o700, parents=True)
    server = home.server_files(out, source.authority, source.fleet, (*source.places.hosts, *hosts), now)
    home.service_files(out, source.authority, source.fleet, now)
    for name in ("ca.pem", "crl.pem"):
        shutil.copyfile(source.keys / name, out / name)
    (out / "data").mkdir(mode=0o700)
    text = broker_config.mosquitto(
        Mosquitto(
            host="",
            port=announced.port,
            websocket_port=announced.websocket_port if announced.websocket_path else None,
            ca=at / "ca.pem",
            certificate=at / server.certificate.name,
            key=at / server.key.name,
            revocations=at / "crl.pem",
            acl=at / ACL,
            data=at / "data",
            # As root mosquitto becomes its own user, which then owns these files.
            user="" if os.geteuid() else "mosquitto",
        )
    )
    write_private(out / CONFIG, text.encode())
    write_private(out / ACL, _rules(source))


def refresh(folder: Path, source: Source, now: float) -> tuple[str, ...]:
    """Bring the present revocation list there, and renew certificates of which two thirds of the life are over; the
    names of the files that changed, of which mosquitto learns by a SIGHUP.

    Raises: UsageError if it is no such folder, or another fleet's; OSError if it cannot be written.
    """
    try:
        pinned = (folder / "ca.pem").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{folder}: not a folder of 'edgekit fleet broker-config mosquitto' ({error})"
        ) from error
    if pinned != source.authority.pem:
        raise UsageError(f"{folder}: is another fleet's; make a new one with 'edgekit fleet broker-config'")
    before = {name: _content(folder / name) for name in _RENEWED}
    home.server_files(
        folder, source.authority, source.fleet, (*source.places.hosts, *_hosts(folder / "server.pem")), now
    )
    home.service_files(folder, source.authority, source.fleet, now)
    revocations = (source.keys / "crl.pem").read_bytes()
    if revocations != before["crl.pem"]:
        write_private(folder / "crl.pem", revocations)
    rules = _rules(source)
    if rules != before[ACL] and broker_config.is_ours(before[ACL].decode("utf-8", "replace")):
        write_private(folder / ACL, rules)
    return tuple(name for name in _RENEWED if _content(folder / name) != before[name])


def _rules(source: Source) -> bytes:
    """As the service has written them, or those of a fleet that has not run yet."""
    return _content(source.keys / ACL) or broker_config.acl().encode()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _hosts(certificate: Path) -> frozenset[str]:
    """Whom the present certificate is for; nobody where it is gone or spoilt."""
    try:
        return ca.hosts_of(x509.load_pem_x509_certificate(certificate.read_bytes()))
    except (OSError, ValueError):
        return frozenset()
