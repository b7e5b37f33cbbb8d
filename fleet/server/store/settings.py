"""Facts of the whole fleet: its id and the freeze; and how secrets are kept."""

import hashlib
import secrets

import msgspec
from sqlalchemy import Connection, delete, insert, select

from fleet.server.schema import settings

FLEET = "fleet"
ORDER_KEYS = "order_keys"
FREEZE = "freeze"
# After a restore: numbers of orders and enrolments that may have been given out since the backup, and are not again.
ORDERS_ABOVE, ENROLMENTS_ABOVE = "orders_above", "enrolments_above"
# The database that this one was copied to; nobody goes on with this one.
MOVED = "moved"


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


def order_keys(connection: Connection) -> tuple[str, ...]:
    """Ids of the keys that this fleet's orders are, or were, signed with."""
    return msgspec.json.decode(get(connection, ORDER_KEYS) or "[]", type=tuple[str, ...])


def note_order_key(connection: Connection, keyid: str) -> None:
    known = order_keys(connection)
    if keyid not in known:
        put(connection, ORDER_KEYS, msgspec.json.encode([*known, keyid]).decode())


def is_frozen(connection: Connection) -> bool:
    return get(connection, FREEZE) == "yes"


def set_frozen(connection: Connection, value: bool) -> None:
    put(connection, FREEZE, "yes" if value else "no")


def number(connection: Connection, key: str) -> int:
    """0 where it was never put."""
    return int(get(connection, key) or 0)
