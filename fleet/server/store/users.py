"""People: added, listed, changed, blocked, removed. How one signs in is `sessions`'.

Always true
 1. A password is kept as `fleet.server.passwords` hashes it, never otherwise.
 2. With a user, with their old password, or once they are blocked, end their sessions.
 3. A name is one person's: nobody whom a provider vouches for comes in under the name of somebody else.
 4. A user whose time is over is signed in no longer, and cannot sign in.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgekit.errors import ConflictError, NotFoundError
from fleet.rules.access import Scope, role
from fleet.rules.people import Person
from fleet.server.schema_access import sessions, users
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


def arrive(connection: Connection, person: Person, grant: Grant, *, now: float, who: Who) -> str:
    """Somebody whom the provider vouches for is here, with the role that follows from it this time; their name here.

    They keep the name under which they came first. Raises: ConflictError if it is somebody else's.
    """
    known = of_subject(connection, person.subject)
    values = {"role": grant.role.word, "scope": grant.scope.text}
    if known is not None:
        before = {"role": known.role, "scope": known.scope}
        if before != values:
            connection.execute(update(users).where(users.c.name == known.name).values(**values))
            audit.append(connection, now, who, "user.role", known.name, before=before, after=values)
        return str(known.name)
    if find(connection, person.name) is not None:
        raise ConflictError(
            f"the name {person.name} is another user's here; if that one is gone, an admin of the fleet makes room: "
            f"edgekit fleet user remove {person.name}"
        )
    made = {"name": person.name, "password": "", "subject": person.subject, **values}
    connection.execute(insert(users).values(**made, created_at=now, created_by=who.name))
    after = {**grant.shown, "subject": person.subject}
    audit.append(connection, now, who, "user.add", person.name, after=after)
    return person.name


def turn_away(connection: Connection, person: Person, why: str, *, now: float, who: Who) -> None:
    """The provider vouches for them, and they have nothing to do here (any more): their sessions end."""
    known = of_subject(connection, person.subject)
    if known is not None:
        _end_sessions(connection, known.name)
    name = known.name if known is not None else person.name
    audit.append(connection, now, who, "session.refuse", name, why)


def of_subject(connection: Connection, subject: str) -> UserRow | None:
    return connection.execute(select(users).where(users.c.subject == subject)).one_or_none()


def find(connection: Connection, name: str) -> UserRow | None:
    return connection.execute(select(users).where(users.c.name == name)).one_or_none()


def get(connection: Connection, name: str, *, lock: bool = False) -> UserRow:
    """One user; with `lock` nobody else changes them before this transaction ends. Raises: NotFoundError."""
    query = select(users).where(users.c.name == name)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no user {name!r}; 'edgekit fleet user list' shows them")
    return row


def everyone(connection: Connection) -> list[UserRow]:
    return list(connection.execute(select(users).order_by(users.c.name)))


def grant_of(row: UserRow) -> Grant:
    return Grant(role(row.role), Scope(row.scope), row.expires_at)


def refusal(row: UserRow, now: float) -> str:
    """Why this user may not come in, in a sentence to them; empty if they may."""
    if row.blocked_at is not None:
        return "you are blocked here; ask an admin of the fleet"
    if row.expires_at is not None and now >= row.expires_at:
        return "your time here is over; ask an admin of the fleet"
    return ""


def change(
    connection: Connection, name: str, changed: Callable[[Grant], Grant], *, now: float, who: Who
) -> bool:
    """Give the user what `changed` makes of their grant, from their next request on; whether that is another one.

    Raises: NotFoundError; ConflictError for the role or scope of whom a provider vouches for.
    """
    # Locked: of two changes at once each is made to what the other left.
    row = connection.execute(select(users).where(users.c.name == name).with_for_update()).one_or_none()
    row = row if row is not None else get(connection, name)
    before = grant_of(row)
    after = changed(before)
    if row.subject is not None and (after.role, after.scope) != (before.role, before.scope):
        raise ConflictError(
            f"{name} signs in through the provider, and gets role and scope from their groups each time: change "
            "[[oidc.grants]] in fleet.toml"
        )
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
    """Raises: NotFoundError; ConflictError for whom a provider vouches for."""
    if get(connection, name).subject is not None:
        raise ConflictError(f"{name} signs in through the provider, and has no password here")
    _end_sessions(connection, name)
    connection.execute(update(users).where(users.c.name == name).values(password=kept))
    audit.append(connection, now, who, "user.password", name)


def set_blocked(
    connection: Connection, name: str, *, is_blocked: bool, reason: str, now: float, who: Who
) -> bool:
    """False if it was so before. Raises: NotFoundError."""
    row = get(connection, name)
    if (row.blocked_at is not None) is is_blocked:
        return False
    _end_sessions(connection, name)
    change = update(users).where(users.c.name == name)
    connection.execute(change.values(blocked_at=now if is_blocked else None))
    audit.append(connection, now, who, "user.block" if is_blocked else "user.unblock", name, reason)
    return True


def _end_sessions(connection: Connection, name: str) -> None:
    connection.execute(delete(sessions).where(sessions.c.name == name))
