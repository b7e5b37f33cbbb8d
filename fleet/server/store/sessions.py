"""Who is signed in to the page.

Always true
 1. Only the sha256 of a session's secret is kept; the secret is in the browser's cookie and nowhere else.
 2. A session ends after `LIFE_S`, after `IDLE_S` without use, on signing out, and with its user, their time or their
    password.
 3. What a user may do is asked of their row each time, not of the session.
"""

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgekit.errors import AuthError
from fleet.server.schema import sessions, users
from fleet.server.store import audit
from fleet.server.store import users as users_store
from fleet.server.store.audit import Who
from fleet.server.store.settings import new_secret, secret_hash

SessionRow = Row[Any]
LIFE_S = 12 * 3600.0
IDLE_S = 3600.0
_USE_NOTED_EVERY_S = 60.0


def begin(connection: Connection, user: str, *, now: float, who: Who) -> str:
    """A new session of a user who has shown their password; its secret."""
    secret = new_secret()
    connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
    connection.execute(
        insert(sessions).values(
            hash=secret_hash(secret),
            name=user,
            created_at=now,
            expires_at=now + LIFE_S,
            last_used_at=now,
        )
    )
    connection.execute(
        update(users).where(users.c.name == user).values(last_used_at=now, last_used_from=who.origin)
    )
    audit.append(connection, now, who, "session.begin", user)
    return secret


def user_of(connection: Connection, secret: str, now: float) -> Row[Any]:
    """The row of the user whose session this is; the session counts as used. Raises: AuthError."""
    of_secret = sessions.c.hash == secret_hash(secret)
    session = connection.execute(select(sessions).where(of_secret)).one_or_none()
    is_over = session is None or now >= session.expires_at or now - session.last_used_at >= IDLE_S
    user = None
    if session is not None and not is_over:
        user = connection.execute(select(users).where(users.c.name == session.name)).one_or_none()
    if session is None or user is None or users_store.is_over(user, now):
        raise AuthError("you are not signed in, or your session is over; sign in again")
    if now - session.last_used_at >= _USE_NOTED_EVERY_S:
        connection.execute(update(sessions).where(of_secret).values(last_used_at=now))
    return user


def end(connection: Connection, secret: str, *, now: float, address: str) -> None:
    """Signing out; nothing happens if it is over already."""
    of_secret = sessions.c.hash == secret_hash(secret)
    name = connection.execute(select(sessions.c.name).where(of_secret)).scalar()
    if name is not None:
        connection.execute(delete(sessions).where(of_secret))
        audit.append(connection, now, Who(f"user:{name}", address), "session.end", name)
