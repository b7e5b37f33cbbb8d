"""The service's folder: keys, artifacts, the lock, and the file by which clients find it.

    DIR/fleet.db        unless the database is elsewhere
    DIR/fleet.toml      the fleet's id and settings (`home`)
    DIR/keys/           order.key, its successor order.next.key once asked for, secrets.key (ed25519),
                        ca.key, ca.pem, crl.pem, server.*, service.* (EC P-256)
    DIR/publisher/      the publisher's keys, unless they are kept elsewhere (`fleet.tuf.together`)
    DIR/tuf/            the fleet's half of the metadata (`fleet.tuf.online`)
    DIR/artifacts/      <sha256>.edgekit
    DIR/samples/        <first two digits>/<sha256>.sample: inputs that devices brought (`collecting`)
    DIR/client.toml     url and admin token (0600)
    DIR/service.lock    held while a service runs

Always true
 1. Nothing in it is readable by other users.
 2. One service at a time.
"""

import base64
import fcntl
import hmac
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgekit.errors import AuthError, ConflictError, FleetError
from edgekit.trust.orderkeys import OrderKeys
from fleet.client.config import client_file
from fleet.publish import SigningKey, load_key, make_key, write_private
from fleet.rules.access import Role
from fleet.server.database import Database
from fleet.server.store import audit, tokens
from fleet.server.store.tokens import Grant

CLIENT_FILE = "client.toml"


def secret_name(secrets: SigningKey, purpose: str) -> str:
    """A name that nobody outside can guess and that is always the same for one purpose: 128 bits in hex, derived
    by HKDF (RFC 5869).
    """
    derived = HKDF(hashes.SHA256(), 32, salt=None, info=f"edgekit {purpose}".encode())
    return derived.derive(secrets.private.private_bytes_raw()).hex()[:32]


@dataclass(frozen=True)
class Keys:
    """What the service signs with at its start, and what it derives secrets from, which no rotation changes."""

    order: SigningKey
    secrets: SigningKey

    @property
    def audit(self) -> SigningKey:
        """What signs the audit log: the same for ever, so that an order key that rotates leaves no head behind."""
        derived = HKDF(hashes.SHA256(), 32, salt=None, info=b"edgekit audit log")
        seed = derived.derive(self.secrets.private.private_bytes_raw())
        return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))

    def derive(self, purpose: str, *parts: str) -> str:
        """A secret for `parts`, made anew rather than kept: 256 bits, URL-safe base64."""
        key = HKDF(hashes.SHA256(), 32, salt=None, info=f"edgekit {purpose}".encode()).derive(
            self.secrets.private.private_bytes_raw()
        )
        digest = hmac.digest(key, "\0".join(parts).encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def load_keys(folder: Path) -> Keys:
    """The signing keys. Raises: UsageError for one that cannot be used; none is made here."""
    return Keys(order=load_key(folder / "order.key"), secrets=load_key(folder / "secrets.key"))


class StateFolder:
    """An opened and locked state folder."""

    def __init__(self, path: Path) -> None:
        """Raises: FleetError if it cannot be used, ConflictError if another service uses it."""
        self.path = path.resolve()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
            for name in ("keys", "artifacts", "samples"):
                (path / name).mkdir(exist_ok=True, mode=0o700)
            self._lock = os.open(path / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FleetError(f"--state {path}: cannot be used as a folder ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConflictError(
                f"--state {path}: another fleet service uses this folder; stop it, or choose another folder"
            ) from error
        for leftover in (*self.artifacts.glob("*.part"), *self.samples.glob("*/*.part")):
            leftover.unlink(missing_ok=True)

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def artifact(self, sha256: str) -> Path:
        return self.artifacts / f"{sha256}.edgekit"

    def close(self) -> None:
        os.close(self._lock)

    def keys(self) -> Keys:
        """Raises: UsageError for one that cannot be used."""
        return load_keys(self.keys_folder)

    def next_order_key(self) -> SigningKey:
        """The key that will sign orders once the publisher lists it; made on first use."""
        path = self.keys_folder / "order.next.key"
        return load_key(path) if path.exists() else make_key(path)

    def check_order_keys(self, listed: OrderKeys, present: SigningKey) -> None:
        """Raises: ConflictError for a list by which devices would follow neither `present` nor its successor."""
        if not any(listed.keys.get(key.keyid) == key.public_hex for key in (present, self.next_order_key())):
            raise ConflictError(
                "this list of order keys has neither the key that this fleet signs orders with nor the one that is to"
                " follow it: devices would follow no order of it any more; 'edgekit keys rotate DIR orders' asks for it"
            )

    def take_order_key(self, listed: OrderKeys | None, present: SigningKey) -> SigningKey:
        """The key to sign orders with: the successor, in place of `present`, if only that is listed. Raises: OSError."""
        successor = self.keys_folder / "order.next.key"
        if listed is None or present.keyid in listed.keys or not successor.exists():
            return present
        made = load_key(successor)
        if listed.keys.get(made.keyid) != made.public_hex:
            return present
        successor.replace(self.keys_folder / "order.key")
        return made

    @property
    def keys_folder(self) -> Path:
        return self.path / "keys"

    def write_client_file(self, database: Database, url: str, authorities: str, now: float) -> Path:
        """client.toml with the present URL and what pins it; its token is kept if the database still knows it."""
        path = self.path / CLIENT_FILE
        with database.begin() as connection:
            token = _known_token(path)
            try:
                if token is not None:
                    tokens.find(connection, token, now)
            except AuthError:
                token = None
            if token is None:
                # Whoever may start the service on its machine holds its keys: they are its admin.
                name = tokens.free_name(connection, "admin", now)
                token = tokens.make(connection, name, Grant(Role.ADMIN), now=now, who=audit.FLEET)
        write_private(path, client_file(url, token, authorities).encode())
        return path


def _known_token(path: Path) -> str | None:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("token")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None  # absent or spoilt: a new token is made
    return found if isinstance(found, str) else None
