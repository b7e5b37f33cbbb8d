"""What devices and users trust a service by: the home's keys, its authority, and a certificate of the user's own if any."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError
from fleet.server import home
from fleet.server.ca import Authority
from fleet.server.home import Config
from fleet.server.places import Places
from fleet.server.state import Keys, StateFolder


@dataclass(frozen=True)
class TlsFiles:
    """A certificate of the user's own with its key, and who signed it; all three or none."""

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None


@dataclass(frozen=True)
class Trust:
    """The home's keys, and what pins connections to the service. `bundle` is empty where all is plain on loopback."""

    keys: Keys
    authority: Authority
    bundle: str
    api: home.Tls | None


def trust(
    config: Config,
    places: Places,
    folder: StateFolder,
    given: TlsFiles,
    *,
    broker_ca: Path | None = None,
    passphrase: bytes | None = None,
) -> Trust:
    """What a start is to be trusted by; `given` and `broker_ca` are what it was told, before the home's `fleet.toml`.

    Raises: UsageError for files that cannot be used.
    """
    authority = home.authority(folder.keys_folder, config, passphrase)
    bundle = (
        [authority.pem] if places.has_tls or places.announced.tls or places.url.startswith("https:") else []
    )
    own = _own_files(given, config)
    if own is not None:
        bundle.append(_pem_text(own.authorities, "--tls-ca"))
    if broker_ca is not None:
        bundle.append(_pem_text(broker_ca, "--broker-ca"))
    api = None
    if places.has_tls:
        if own is not None and own.certificate is not None and own.key is not None:
            home.read_private(own.key, "the TLS key")
            api = home.Tls(own.certificate, own.key)
        else:
            api = home.server_files(folder.keys_folder, authority, config.fleet, places.hosts, time.time())
    return Trust(folder.keys(), authority, "".join(bundle), api)


def _own_files(given: TlsFiles, config: Config) -> TlsFiles | None:
    """The user's own certificate, from options or fleet.toml; with --plain-http only the authority is of use."""
    files = TlsFiles(
        given.certificate or path_of(config.tls_cert),
        given.key or path_of(config.tls_key),
        given.authorities or path_of(config.tls_ca),
    )
    if files == TlsFiles():
        return None
    if files.authorities is None or (files.certificate is None) != (files.key is None):
        raise UsageError(
            "a certificate of your own takes three files: --tls-cert, --tls-key, and --tls-ca, the authority that "
            "devices will pin"
        )
    return files


def path_of(text: str) -> Path | None:
    return Path(text) if text else None


def _pem_text(path: Path | None, flag: str) -> str:
    assert path is not None
    try:
        text = path.read_text(encoding="utf-8")
        ssl.create_default_context(cadata=text)
    except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
        raise UsageError(f"{flag} {path}: no PEM certificates can be read from it ({error})") from error
    return text if text.endswith("\n") else text + "\n"
