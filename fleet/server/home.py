"""A fleet's home: the folder with its keys, its certificate authority, its settings and (unless elsewhere) its database.

`create` makes it once, `open_home` reads it each time the service starts.

Always true
 1. A home is made whole or not at all, and never over anything: keys are not replaced.
 2. Private files are 0600, folders 0700; a private file that others may read is refused.
 3. A database belongs to one fleet; a home that is another fleet's is refused with it, and so is an empty one.
"""

import json
import os
import secrets
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.errors import ConflictError, FleetError, UsageError
from edgekit.trust.orderkeys import OrderKeys
from fleet.publish import make_key, write_private
from fleet.rules.people import Oidc
from fleet.rules.retention import Retention
from fleet.server import ca, hsm, hsm_uri
from fleet.server.ca import Authority
from fleet.server.database import Database, sqlite_url
from fleet.server.hsm_uri import KeyAddress
from fleet.server.places import Wanted
from fleet.server.store import audit, settings
from fleet.tuf import together
from fleet.tuf.online import Online

CONFIG_FILE = "fleet.toml"
FORMAT = 1
PASSPHRASE = "EDGEKIT_CA_PASSPHRASE"  # noqa: S105  # the name of a variable, not a secret


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fleet.toml`: what `edgekit fleet up` takes where its own options say nothing else."""

    fleet: str
    public_url: str = ""
    mqtt_public: str = ""
    mqtt_websockets: str = ""
    http: str = ""
    mqtt: str = ""
    broker: str = ""
    plain_http: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    database: str = ""
    oidc: Oidc | None = None
    history: Retention | None = None
    ca_key: str = ""
    format: int = FORMAT

    @property
    def wanted(self) -> Wanted:
        return Wanted(
            public_url=self.public_url,
            mqtt_public=self.mqtt_public,
            websockets=self.mqtt_websockets,
            http=self.http,
            mqtt=self.mqtt,
            broker=self.broker,
            plain_http=self.plain_http,
        )


def create(
    path: Path,
    config: Mapping[str, object],
    database: str | None,
    passphrase: bytes | None,
    now: float,
    *,
    publisher: bytes | None = b"",
) -> Config:
    """A new home in `path`, which must be empty or not there.

    `publisher` is the passphrase of the publisher's keys, empty for none; None leaves them to another machine.

    Raises: ConflictError if there is something, or the database is another fleet's; FleetError if it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise FleetError(f"--state {path}: cannot be used as a folder (Not a directory)")
    if is_home(path):
        raise ConflictError(f"{path}: there is a fleet's home already; keys are never made anew over it")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path}: holds other things, and no {CONFIG_FILE}; choose an empty or a new folder")
    made = Config(fleet=f"fleet-{secrets.token_hex(6)}", **config, database=database or "")  # type: ignore[arg-type]  # the caller's keys are Config's
    whole = path.absolute()
    partial = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        try:
            _fill(partial, made, passphrase, publisher, now)
            partial.rename(whole)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise FleetError(f"{path}: the fleet's home cannot be made there ({error.strerror})") from error
    return made


def _fill(
    folder: Path, config: Config, passphrase: bytes | None, publisher: bytes | None, now: float
) -> None:
    keys = folder / "keys"
    for made in (keys, folder / "artifacts"):
        made.mkdir(mode=0o700)
    # Whoever keeps it inside a repository all the same does not commit it by accident.
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    make_key(keys / "order.key")
    make_key(keys / "secrets.key")
    online = Online(folder / "tuf")
    if publisher is not None:
        together.start(folder, online, datetime.fromtimestamp(now, UTC), publisher)
    authority = _new_authority(keys, config, passphrase, datetime.fromtimestamp(now, UTC))
    (keys / "ca.pem").write_text(authority.pem, encoding="utf-8")
    (keys / "crl.pem").write_bytes(authority.revocations((), datetime.fromtimestamp(now, UTC)))
    database = Database(config.database or sqlite_url(folder))
    try:
        with database.begin() as connection:
            found = settings.get(connection, settings.FLEET)
            if found is not None:
                raise ConflictError(
                    f"the database {database.shown_url} belongs to {found}, whose home is elsewhere; "
                    "start the service with that folder, or use another database"
                )
            settings.put(connection, settings.FLEET, config.fleet)
            audit.append(connection, now, audit.FLEET, "fleet.init", config.fleet)
    finally:
        database.close()
    write_private(folder / CONFIG_FILE, _toml(config).encode())


def _new_authority(keys: Path, config: Config, secret: bytes | None, now: datetime) -> Authority:
    """On a key in a file, or in a token, where an attempt that fails later leaves it for the next."""
    if config.ca_key:
        address = hsm_uri.parse(config.ca_key)
        return ca.create(config.fleet, now, hsm.find_or_make(address, _pin(address, secret)))
    made = ca.create(config.fleet, now)
    write_private(keys / "ca.key", ca.key_pem(made.key, secret))
    return made


def _toml(config: Config) -> str:
    lines = [
        "# The fleet's settings; options of 'edgekit fleet up' come before them. Made by 'edgekit fleet init'."
    ]
    for name, value in msgspec.structs.asdict(config).items():
        if name in ("fleet", "format") or value:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def is_home(path: Path) -> bool:
    return (path / CONFIG_FILE).exists()


def read_config(path: Path) -> Config:
    """Raises: UsageError if there is no home, or its settings cannot be used."""
    file = path / CONFIG_FILE
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        config = msgspec.convert(table, Config)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no fleet's home; make one with: edgekit fleet init {path}") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{file}: {error}") from error
    if config.format != FORMAT:
        raise UsageError(f"{file}: format {config.format} is not known here; update EdgeKit")
    return config


def check_database(database: Database, config: Config) -> None:
    """That home and database are of one fleet. Raises: ConflictError."""
    with database.begin() as connection:
        found = settings.get(connection, settings.FLEET)
        moved = settings.get(connection, settings.MOVED)
    if moved:
        raise ConflictError(
            f"the database {database.shown_url} was moved to {moved}, and has not heard of anything since; start the "
            "service without --database: fleet.toml names the right one"
        )
    if found is None:
        raise ConflictError(
            f"the database {database.shown_url} is empty, and the home is {config.fleet}'s: restore the backup of its "
            "database, or point to the right one with --database"
        )
    if found != config.fleet:
        raise ConflictError(
            f"the database {database.shown_url} is {found}'s, the home is {config.fleet}'s; they do not belong together"
        )


def check_order_key(database: Database, keyid: str, listed: OrderKeys | None) -> None:
    """That this home signs orders with a key that the database's devices know. Noted are the first one, and one that the
    publisher has listed since.

    Raises: ConflictError.
    """
    with database.begin() as connection:
        known = settings.order_keys(connection)
        if not known or (listed is not None and keyid in listed.keys):
            settings.note_order_key(connection, keyid)
            return
    if keyid not in known:
        raise ConflictError(
            f"the database {database.shown_url} is of a fleet whose orders are signed with the key {', '.join(known)}; "
            f"this home has {keyid}, whose orders its devices would refuse: start from the home that was made for it"
        )


@dataclass(frozen=True)
class Tls:
    """Files of one server or client side; `is_new` if the certificate was made just now."""

    certificate: Path
    key: Path
    is_new: bool = False


def authority(keys: Path, config: Config, secret: bytes | None) -> Authority:
    """The certificate authority; `secret` is the passphrase of its key's file, or the PIN of its token.

    Raises: UsageError if its key cannot be used; HardwareKeyError if its token does not answer.
    """
    try:
        certificate = x509.load_pem_x509_certificate((keys / "ca.pem").read_bytes())
    except OSError as error:
        raise UsageError(f"{keys / 'ca.pem'}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{keys / 'ca.pem'}: no PEM certificate ({error})") from error
    if not config.ca_key:
        return Authority(_key_of_file(keys / "ca.key", certificate, secret), certificate)
    address, public = hsm_uri.parse(config.ca_key), certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise UsageError(f"{keys / 'ca.pem'}: its key is not EC P-256")
    return Authority(hsm.open_key(address, _pin(address, secret), public), certificate)


def _pin(address: KeyAddress, secret: bytes | None) -> str:
    if secret is None:
        raise UsageError(f"{address.where}: its PIN? give --ca-passphrase-file FILE, or set {PASSPHRASE}")
    try:
        return secret.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{address.where}: a PIN is UTF-8 text") from error


def _key_of_file(
    path: Path, certificate: x509.Certificate, passphrase: bytes | None
) -> ec.EllipticCurvePrivateKey:
    data = read_private(path, "the CA's key")
    try:
        key = ca.load_key(data, passphrase)
    except TypeError as error:
        why = (
            f"is encrypted; give its passphrase with --ca-passphrase-file or {PASSPHRASE}"
            if passphrase is None
            else "is not encrypted, but a passphrase was given; leave it out"
        )
        raise UsageError(f"{path}: the CA's key {why}") from error
    except ValueError as error:
        raise UsageError(
            f"{path}: the CA's key cannot be read; is the passphrase right? ({error})"
        ) from error
    if certificate.public_key() != key.public_key():
        raise UsageError(f"{path}: not the key of the certificate beside it; restore both from one backup")
    return key


def server_files(keys: Path, issuer: Authority, fleet: str, hosts: Iterable[str], now: float) -> Tls:
    """The service's certificate for these hosts, issued anew where two thirds of its life are over or a host lacks."""
    wanted, moment = frozenset(hosts), datetime.fromtimestamp(now, UTC)

    def is_right(certificate: x509.Certificate) -> bool:
        return wanted <= ca.hosts_of(certificate)

    def issue(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        return issuer.server(key.public_key(), sorted(wanted), fleet, moment)

    return _current(keys, "server", issuer, moment, is_right=is_right, issue=issue)


def service_files(keys: Path, issuer: Authority, fleet: str, now: float) -> Tls:
    """What the service shows to the broker."""
    moment = datetime.fromtimestamp(now, UTC)
    return _current(
        keys,
        "service",
        issuer,
        moment,
        is_right=lambda _certificate: True,
        issue=lambda key: issuer.service(key.public_key(), fleet, moment),
    )


def worker_files(keys: Path, issuer: Authority, fleet: str, number: int, now: float) -> Tls:
    """What a worker shows to the broker."""
    moment, name = datetime.fromtimestamp(now, UTC), ca.worker_name(number)
    return _current(
        keys,
        f"worker-{number}",
        issuer,
        moment,
        is_right=lambda _certificate: True,
        issue=lambda key: issuer.service(key.public_key(), fleet, moment, name),
    )


def _current(
    keys: Path,
    name: str,
    issuer: Authority,
    now: datetime,
    *,
    is_right: Callable[[x509.Certificate], bool],
    issue: Callable[[ec.EllipticCurvePrivateKey], x509.Certificate],
) -> Tls:
    """The certificate on disk if it is still right and ours, otherwise a new one with a new key."""
    certificate_file, key_file = keys / f"{name}.pem", keys / f"{name}.key"
    try:
        present = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = ca.load_key(key_file.read_bytes(), None)
        present.verify_directly_issued_by(issuer.certificate)
        if (
            present.public_key() == key.public_key()
            and is_right(present)
            and not ca.is_due(present, now)
            and now >= present.not_valid_before_utc
        ):
            return Tls(certificate_file, key_file)
    except (OSError, ValueError, TypeError, InvalidSignature):
        pass  # not there yet, spoilt, or of another authority
    key = ca.make_key()
    write_private(key_file, ca.key_pem(key))
    write_private(certificate_file, (ca.pem(issue(key)) + issuer.pem).encode())
    return Tls(certificate_file, key_file, is_new=True)


def read_private(path: Path, what: str) -> bytes:
    """Raises: UsageError if it cannot be read, or others may.

    A credential of systemd's is believed: its folder is the unit's alone, and the access list by which the unit reads
    it shows as a right of the group (systemd.exec(5), LoadCredential).
    """
    try:
        mode, data = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {what} cannot be read ({error.strerror})") from error
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if mode & 0o077 and not (credentials and path.parent == Path(credentials)):
        raise UsageError(f"{path}: {what} is readable by others (mode {mode:04o}); run: chmod 600 {path}")
    return data


def secret(file: Path | None, variable: str, what: str) -> bytes | None:
    """A secret from a file, or else from the environment. Raises: UsageError for a file that cannot be used."""
    if file is not None:
        found = read_private(file, what).strip()
        if not found:
            raise UsageError(f"{file}: {what} is empty")
        return found
    value = os.environ.get(variable)
    return value.encode() if value else None


def git_tree_of(path: Path) -> Path | None:
    """The git work tree that `path` lies in, if any."""
    here = path.resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
