"""The service's folder: keys, artifacts, the lock, and the file by which clients find it.

    DIR/fleet.db        unless the database is elsewhere
    DIR/keys/           order.key, publisher.key (ed25519, 0600)
    DIR/artifacts/      <sha256>.edgekit
    DIR/client.toml     url and admin token (0600)
    DIR/service.lock    held while a service runs

Always true
 1. Nothing in it is readable by other users.
 2. One service at a time.
"""

import fcntl
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import AuthError, ConflictError, FleetError
from fleet.publish import SigningKey, load_key, make_key, write_private
from fleet.server.database import Database
from fleet.server.store import settings

CLIENT_FILE = "client.toml"


@dataclass(frozen=True)
class Keys:
    order: SigningKey
    publisher: SigningKey


class StateFolder:
    """An opened and locked state folder."""

    def __init__(self, path: Path) -> None:
        """Raises: FleetError if it cannot be used, ConflictError if another service uses it."""
        self.path = path.resolve()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
            for name in ("keys", "artifacts"):
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
        for leftover in self.artifacts.glob("*.part"):
            leftover.unlink(missing_ok=True)

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    def artifact(self, sha256: str) -> Path:
        return self.artifacts / f"{sha256}.edgekit"

    def close(self) -> None:
        os.close(self._lock)

    def keys(self) -> Keys:
        """The keys, made on first use. Raises: UsageError for one that cannot be used."""
        folder = self.path / "keys"
        return Keys(order=_key(folder / "order.key"), publisher=_key(folder / "publisher.key"))

    def write_client_file(self, database: Database, url: str, now: float) -> Path:
        """client.toml with the present URL; its token is kept if the database still knows it."""
        path = self.path / CLIENT_FILE
        with database.begin() as connection:
            token = _known_token(path)
            try:
                if token is not None:
                    settings.token_name(connection, token)
            except AuthError:
                token = None
            if token is None:
                token = settings.make_token(connection, "admin", now)
        text = (
            "# How 'edgekit fleet' reaches this service. Whoever reads this file can do everything: keep it to yourself.\n"
            f'url = "{url}"\ntoken = "{token}"\n'
        )
        write_private(path, text.encode())
        return path


def _key(path: Path) -> SigningKey:
    return load_key(path) if path.exists() else make_key(path)


def _known_token(path: Path) -> str | None:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("token")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None  # absent or spoilt: a new token is made
    return found if isinstance(found, str) else None
