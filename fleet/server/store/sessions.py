"""Who is signed in, on the page or at a terminal.

Always true
 1. Only the sha256 of a session's secret is kept; the secret is in the browser's cookie, or in the terminal's client
    file, and nowhere else. One is worth nothing in the other's place.
 2. A session ends after its kind's life, without use, on signing out, and with its user, their time, their password, or
    their being blocked.
 3. What a user may do is asked of their row each time, not of the session.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgekit.errors import AuthError
from fleet.server.schema_access import sessions, users
from fleet.server.store import audit
from fleet.server.store import users as users_store
from fleet.server.store.audit import Who
from fleet.server.store.settings import new_secret, secret_hash
from fleet.terminal import PREFIX

SessionRow = Row[Any]
LIFE_S = 12 * 3600.0
IDLE_S = 3600.0
_USE_NOTED_EVERY_S = 60.0


@dataclass(frozen=True)
class Kind:
    """`advice` is what to do once it is over; `prefix` is what the secret begins with."""

    word: str
    life_s: float
    idle_s: float
    advice: str
    prefix: str = ""


PAGE = Kind("page", LIFE_S, IDLE_S, "sign in again")
# A working day. A terminal is not left open to whoever passes by as a page is, so nothing ends it before.
TERMINAL = Kind("terminal", 8 * 3600.0, 8 * 3600.0, "sign in again: edgekit fleet login FILE", PREFIX)


def begin(
    connection: Connection, user: str, *, now: float, who: Who, kind: Kind = PAGE, how: str = "password"
) -> str:
    """A new session of a user who has shown who they are; its secret. Raises: AuthError for whom may not come in."""
    if refused := users_store.refusal(users_store.get(connection, user), now):
        raise AuthError(refused)
    secret = kind.prefix + new_secret()
    connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
    connection.execute(
        insert(sessions).values(
            hash=secret_hash(secret),
            name=user,
            created_at=now,
            expires_at=now + kind.life_s,
            last_used_at=now,
            kind=kind.word,
        )
    )
    _note_use(connection, user, who.origin, now)
    audit.append(connection, now, who, "session.begin", user, f"{kind.word}, by {how}")
    return secret


def user_of(connection: Connection, secret: str, now: float, kind: Kind = PAGE) -> tuple[Row[Any], bool]:
    """The row of the user whose session this is, and whether `used` is to be called. Raises: AuthError."""
    of_secret = (sessions.c.hash == secret_hash(secret)) & (sessions.c.kind == kind.word)
    session = connection.execute(select(sessions).where(of_secret)).one_or_none()
    is_over = session is None or now >= session.expires_at or now - session.last_used_at >= kind.idle_s
    user = None
    if session is not None and not is_over:
        user = connection.execute(select(users).where(users.c.name == session.name)).one_or_none()
    if session is None or user is None or users_store.refusal(user, now):
        raise AuthError(f"you are not signed in, or your session is over; {kind.advice}")
    return user, now - session.last_used_at >= _USE_NOTED_EVERY_S


def used(connection: Connection, secret: str, user: str, origin: str, now: float) -> None:
    """The session counts as used now."""
    of_secret = sessions.c.hash == secret_hash(secret)
    connection.execute(update(sessions).where(of_secret).values(last_used_at=now))
    _note_use(connection, user, origin, now)


def _note_use(connection: Connection, user: str, origin: str, now: float) -> None:
    connection.execute(
        update(users).where(users.c.name == user).values(last_used_at=now, last_used_from=origin)
    )


def end(connection: Connection, secret: str, *, now: float, address: str) -> None:
    """Signing out; nothing happens if it is over already."""
    of_secret = sessions.c.hash == secret_hash(secret)
    name = connection.execute(select(sessions.c.name).where(of_secret)).scalar()
    if name is not None:
        connection.execute(delete(sessions).where(of_secret))
        audit.append(connection, now, Who(f"user:{name}", address), "session.end", name)
