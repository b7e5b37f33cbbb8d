"""Facts of the whole fleet: its id, the publisher keys it trusts, the freeze; and how secrets are kept."""

import hashlib
import secrets

import msgspec
from sqlalchemy import Connection, delete, insert, select

from fleet.server.schema import settings

FLEET = "fleet"
PUBLISHER_KEYS = "publisher_keys"
FREEZE = "freeze"


def secret_hash(secret: str) -> str:
    """How tokens and credentials are kept: they carry 256 random bits, so one plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def get(connection: Connection, key: str) -> str | None:
    return connection.execute(select(settings.c.value).where(settings.c.key == key)).scalar()


def put(connection: Connection, key: str, value: str) -> None:
    connection.execute(delete(settings).where(settings.c.key == key))
    connection.execute(insert(settings).values(key=key, value=value))


def publisher_keys(connection: Connection) -> dict[str, str]:
    """Trusted publisher keys, key id → ed25519 public key in hex."""
    return msgspec.json.decode(get(connection, PUBLISHER_KEYS) or "{}", type=dict[str, str])


def trust_publisher(connection: Connection, keyid: str, public_hex: str) -> bool:
    """False if it was trusted already."""
    known = publisher_keys(connection)
    if known.get(keyid) == public_hex:
        return False
    put(connection, PUBLISHER_KEYS, msgspec.json.encode(known | {keyid: public_hex}).decode())
    return True


def is_frozen(connection: Connection) -> bool:
    return get(connection, FREEZE) == "yes"


def set_frozen(connection: Connection, value: bool) -> None:
    put(connection, FREEZE, "yes" if value else "no")
