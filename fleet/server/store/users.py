"""People: added, listed, changed, removed. How one signs in is `sessions`'.

Always true
 1. A password is kept as `fleet.server.passwords` hashes it, never otherwise.
 2. With a user, or with their old password, end their sessions.
 3. A user whose time is over is signed in no longer, and cannot sign in.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgekit.errors import ConflictError, NotFoundError
from fleet.rules.access import Scope, role
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
            expires_at=grant.expires_at,
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


def grant_of(row: UserRow) -> Grant:
    return Grant(role(row.role), Scope(row.scope), row.expires_at)


def is_over(row: UserRow, now: float) -> bool:
    return row.expires_at is not None and now >= row.expires_at


def change(
    connection: Connection, name: str, changed: Callable[[Grant], Grant], *, now: float, who: Who
) -> bool:
    """Give the user what `changed` makes of their grant, from their next request on; whether that is another one.

    Raises: NotFoundError.
    """
    # Locked: of two changes at once each is made to what the other left.
    row = connection.execute(select(users).where(users.c.name == name).with_for_update()).one_or_none()
    before = grant_of(row if row is not None else get(connection, name))
    after = changed(before)
    if after.shown == before.shown:
        return False
    connection.execute(
        update(users)
        .where(users.c.name == name)
        .values(role=after.role.word, scope=after.scope.text, expires_at=after.expires_at)
    )
    audit.append(connection, now, who, "user.change", name, before=before.shown, after=after.shown)
    return True


def remove(connection: Connection, name: str, *, now: float, who: Who) -> None:
    """Raises: NotFoundError."""
    row = get(connection, name)
    _end_sessions(connection, name)
    connection.execute(delete(users).where(users.c.name == name))
    audit.append(connection, now, who, "user.remove", name, before=grant_of(row).shown)


def set_password(connection: Connection, name: str, kept: str, *, now: float, who: Who) -> None:
    """Raises: NotFoundError."""
    get(connection, name)
    _end_sessions(connection, name)
    connection.execute(update(users).where(users.c.name == name).values(password=kept))
    audit.append(connection, now, who, "user.password", name)


def _end_sessions(connection: Connection, name: str) -> None:
    connection.execute(delete(sessions).where(sessions.c.name == name))
