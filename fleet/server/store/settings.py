"""Facts of the whole fleet: its id, the publisher keys it trusts, the freeze; and the admin tokens."""

import hashlib
import secrets

import msgspec
from sqlalchemy import Connection, delete, insert, select

from edgekit.errors import AuthError
from fleet.server.schema import settings, tokens

FLEET = "fleet"
PUBLISHER_KEYS = "publisher_keys"
ORDER_KEYS = "order_keys"
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


def trust_publisher(connection: Connection, keyid: str, public_hex: str) -> None:
    known = publisher_keys(connection) | {keyid: public_hex}
    put(connection, PUBLISHER_KEYS, msgspec.json.encode(known).decode())


def order_keys(connection: Connection) -> tuple[str, ...]:
    """Ids of the keys that this fleet's orders are signed with."""
    return msgspec.json.decode(get(connection, ORDER_KEYS) or "[]", type=tuple[str, ...])


def note_order_key(connection: Connection, keyid: str) -> None:
    known = {*order_keys(connection), keyid}
    put(connection, ORDER_KEYS, msgspec.json.encode(sorted(known)).decode())


def is_frozen(connection: Connection) -> bool:
    return get(connection, FREEZE) == "yes"


def set_frozen(connection: Connection, value: bool) -> None:
    put(connection, FREEZE, "yes" if value else "no")


def make_token(connection: Connection, name: str, now: float) -> str:
    """A new admin token; only this answer ever holds it in the clear."""
    token = new_secret()
    connection.execute(insert(tokens).values(hash=secret_hash(token), name=name, created_at=now))
    return token


def token_name(connection: Connection, token: str) -> str:
    """Whose token this is. Raises: AuthError."""
    name = connection.execute(select(tokens.c.name).where(tokens.c.hash == secret_hash(token))).scalar()
    if name is None:
        raise AuthError(
            "the token is not one of this fleet; use the client.toml that 'edgekit fleet up' wrote"
        )
    return str(name)
