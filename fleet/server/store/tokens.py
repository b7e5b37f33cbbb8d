"""Tokens of machines: made, found, listed, revoked.

Always true
 1. A token's secret is told once, when it is made; what is kept is its sha256.
 2. A token that has run out or is revoked opens nothing, from that moment on.
 3. No two tokens that are good have one name.
"""

from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from edgekit.errors import AuthError, ConflictError, NotFoundError
from fleet.rules.access import Role, Scope
from fleet.server.schema_access import access_tokens
from fleet.server.store import audit
from fleet.server.store.audit import Who
from fleet.server.store.settings import new_secret, secret_hash

TokenRow = Row[Any]
# By which scanners of repositories know it for a secret.
PREFIX = "ekt_"
# How exact "last used" is: not every request is worth a write.
USE_NOTED_EVERY_S = 60.0


@dataclass(frozen=True)
class Grant:
    """What a token or a user may do, and until when (unix seconds; None without end)."""

    role: Role
    scope: Scope = field(default_factory=Scope)
    expires_at: float | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """For the audit log."""
        return {"role": self.role.word, "scope": self.scope.text, "expires_at": self.expires_at}


def make(connection: Connection, name: str, grant: Grant, *, now: float, who: Who) -> str:
    """A new token; only this answer ever holds it in the clear. Raises: ConflictError if a good one has the name."""
    if connection.execute(select(access_tokens.c.id).where(access_tokens.c.name == name, _good(now))).first():
        raise ConflictError(
            f"there is a token {name!r} already; revoke it first: edgekit fleet token revoke {name}"
        )
    token = PREFIX + new_secret()
    connection.execute(
        insert(access_tokens).values(
            hash=secret_hash(token),
            name=name,
            role=grant.role.word,
            scope=grant.scope.text,
            created_at=now,
            created_by=who.name,
            expires_at=grant.expires_at,
        )
    )
    audit.append(connection, now, who, "token.add", name, after=grant.shown)
    return token


def free_name(connection: Connection, name: str, now: float) -> str:
    """`name`, or with a number behind it if a good token has it."""
    taken = set(connection.execute(select(access_tokens.c.name).where(_good(now))).scalars())
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return next(one for one in names if one not in taken)


def find(connection: Connection, token: str, now: float) -> TokenRow:
    """The row of a good token. Raises: AuthError."""
    query = select(access_tokens).where(access_tokens.c.hash == secret_hash(token))
    row = connection.execute(query).one_or_none()
    if row is None:
        raise AuthError(
            "the token is not one of this fleet; use the client.toml that 'edgekit fleet up' wrote, or have one made "
            "with 'edgekit fleet token add'"
        )
    if row.revoked_at is not None:
        raise AuthError(f"the token {row.name!r} was revoked")
    if row.expires_at is not None and now >= row.expires_at:
        raise AuthError(f"the token {row.name!r} has run out; have a new one made")
    return row


def is_use_due(row: TokenRow, now: float) -> bool:
    """Whether its last use was noted long enough ago to note another one."""
    return row.last_used_at is None or abs(now - row.last_used_at) >= USE_NOTED_EVERY_S


def used(connection: Connection, row: TokenRow, origin: str, now: float) -> None:
    """Note when and from where it was used last."""
    change = update(access_tokens).where(access_tokens.c.id == row.id)
    connection.execute(change.values(last_used_at=now, last_used_from=origin))


def everything(connection: Connection) -> list[TokenRow]:
    """All tokens that ever were, the oldest first."""
    return list(connection.execute(select(access_tokens).order_by(access_tokens.c.id)))


def revoke(connection: Connection, name: str, *, now: float, who: Who) -> bool:
    """False if it was revoked or had run out already. Raises: NotFoundError."""
    of_name = access_tokens.c.name == name
    rows = connection.execute(select(access_tokens).where(of_name)).all()
    if not rows:
        raise NotFoundError(f"there is no token {name!r}; 'edgekit fleet token list' shows them")
    good = connection.execute(select(access_tokens).where(of_name, _good(now))).all()
    if not good:
        return False
    connection.execute(update(access_tokens).where(of_name, _good(now)).values(revoked_at=now))
    before = [{"role": row.role, "scope": row.scope, "expires_at": row.expires_at} for row in good]
    audit.append(connection, now, who, "token.revoke", name, before=before)
    return True


def _good(now: float) -> Any:
    return access_tokens.c.revoked_at.is_(None) & or_(
        access_tokens.c.expires_at.is_(None), access_tokens.c.expires_at > now
    )
