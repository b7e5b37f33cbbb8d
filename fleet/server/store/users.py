"""People: added, listed, removed, their passwords changed. How one signs in is `sessions`'.

Always true
 1. A password is kept as `fleet.server.passwords` hashes it, never otherwise.
 2. With a user, or with their old password, end their sessions.
"""

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgekit.errors import ConflictError, NotFoundError
from fleet.server.schema import sessions, users
from fleet.server.store import audit
from fleet.server.store.audit import Who
from fleet.server.store.tokens import Grant

UserRow = Row[Any]


def add(connection: Connection, name: str, kept: str, grant: Grant, *, now: float, who: Who) -> None:
    """`kept` is the password as `passwords.hashed` gave it: that takes too long for a transaction.

    Raises: ConflictError if there is one of this name.
    """
    if find(connection, name) is not None:
        raise ConflictError(f"there is a user {name!r} already")
    connection.execute(
        insert(users).values(
            name=name,
            password=kept,
            role=grant.role.word,
            scope=grant.scope.text,
            created_at=now,
            created_by=who.name,
        )
    )
    audit.append(connection, now, who, "user.add", name, after=grant.shown)


def find(connection: Connection, name: str) -> UserRow | None:
    return connection.execute(select(users).where(users.c.name == name)).one_or_none()


def get(connection: Connection, name: str) -> UserRow:
    """Raises: NotFoundError."""
    row = find(connection, name)
    if row is None:
        raise NotFoundError(f"there is no user {name!r}; 'edgekit fleet user list' shows them")
    return row


def everyone(connection: Connection) -> list[UserRow]:
    return list(connection.execute(select(users).order_by(users.c.name)))


def remove(connection: Connection, name: str, *, now: float, who: Who) -> None:
    """Raises: NotFoundError."""
    row = get(connection, name)
    _end_sessions(connection, name)
    connection.execute(delete(users).where(users.c.name == name))
    audit.append(connection, now, who, "user.remove", name, before={"role": row.role, "scope": row.scope})


def set_password(connection: Connection, name: str, kept: str, *, now: float, who: Who) -> None:
    """Raises: NotFoundError."""
    get(connection, name)
    _end_sessions(connection, name)
    change = update(users).where(users.c.name == name)
    connection.execute(change.values(password=kept))
    audit.append(connection, now, who, "user.password", name)


def _end_sessions(connection: Connection, name: str) -> None:
    connection.execute(delete(sessions).where(sessions.c.name == name))
