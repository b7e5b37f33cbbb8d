"""Facts of the whole fleet: its id, the freeze; and the admin tokens."""

import hashlib
import secrets

from sqlalchemy import Connection, delete, insert, select

from edgekit.errors import AuthError
from fleet.server.schema import settings, tokens

FLEET = "fleet"
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
