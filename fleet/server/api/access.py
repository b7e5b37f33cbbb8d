"""Tokens of machines and users: for admins only."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends

from edgekit.errors import NotPossibleError
from fleet import api
from fleet.rules.access import Scope, role
from fleet.rules.text import duration
from fleet.server import passwords
from fleet.server.api.admission import Caller, Principal
from fleet.server.api.context import Answer, Context, Ctx, answer, body
from fleet.server.api.matching import IfMatch, tag_of
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router
from fleet.server.store import tokens, users
from fleet.server.store.tokens import Grant, TokenRow
from fleet.server.store.users import UserRow

router = Router(prefix="/api/v1", tags=["access"])


@router.get("/tokens")
def token_list(ctx: Ctx, page: Paged) -> Answer[list[api.TokenView]]:
    """Tokens of machines, also those that are no longer good; never a secret."""
    with ctx.database.read() as connection:
        rows = tokens.everything(connection)
    # A name is free again once its token is revoked.
    return page.of([_token(row, ctx.clock()) for row in rows], lambda token: f"{token.name} {token.created}")


@router.post("/tokens", status_code=201)
def add_token(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewToken, Depends(body(api.NewToken))]
) -> Answer[api.MadeToken]:
    """Make a token. This one answer holds its secret."""
    now = ctx.clock()
    grant = Grant(role(wanted.role), Scope(wanted.scope), _end(wanted.expires, now))
    with ctx.database.begin() as connection:
        secret = tokens.make(connection, wanted.name, grant, now=now, who=caller.who)
    ca = ctx.ca_bundle if ctx.places.url.startswith("https:") else ""
    made = answer(api.MadeToken(wanted.name, secret, ctx.places.url, ca), 201)
    made.headers["Cache-Control"] = "no-store"
    return made


def _end(text: str, now: float) -> float | None:
    """When access ends; None where `text` is empty. Raises: UsageError."""
    if not text:
        return None
    found = duration(text, "--expires")
    if found <= 0:
        raise NotPossibleError(f"--expires {text}: must be longer than nothing, e.g. 90d")
    return now + found


@router.post("/tokens/{token}/revoke")
def revoke_token(ctx: Ctx, caller: Caller, token: str) -> Answer[api.Changed]:
    """It opens nothing from now on."""
    with ctx.database.begin() as connection:
        is_changed = tokens.revoke(connection, token, now=ctx.clock(), who=caller.who)
    return answer(api.Changed(token, is_changed))


@router.get("/users")
def user_list(ctx: Ctx, page: Paged) -> Answer[list[api.UserView]]:
    """People, by name."""
    with ctx.database.read() as connection:
        rows = users.everyone(connection)
    return page.of(
        [
            api.UserView(
                row.name,
                row.role,
                row.scope,
                _moment(row.created_at),
                row.created_by,
                _moment_or_none(row.expires_at),
                _moment_or_none(row.last_used_at),
                row.last_used_from,
                "password" if row.subject is None else "oidc",
                "good" if row.blocked_at is None else "blocked",
                row.subject or "",
                _tag(row),
            )
            for row in rows
        ],
        lambda user: user.name,
    )


@router.post("/users", status_code=201)
def add_user(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewUser, Depends(body(api.NewUser))]
) -> Answer[api.Changed]:
    """Somebody who signs in with a password."""
    now = ctx.clock()
    grant = Grant(role(wanted.role), Scope(wanted.scope), _end(wanted.expires, now))
    passwords.check_new(wanted.password, wanted.name)
    kept = passwords.hashed(wanted.password)
    with ctx.database.begin() as connection:
        users.add(connection, wanted.name, kept, grant, now=now, who=caller.who)
    return answer(api.Changed(wanted.name), 201)


@router.post("/users/{user}")
def change_user(
    ctx: Ctx,
    caller: Caller,
    seen: IfMatch,
    user: str,
    wanted: Annotated[api.UserChange, Depends(body(api.UserChange))],
) -> Answer[api.Changed]:
    """Role, scope and end of somebody's access, from their next request on."""
    now = ctx.clock()
    parts: dict[str, Any] = {}
    if wanted.role is not None:
        parts["role"] = role(wanted.role)
    if wanted.scope is not None:
        parts["scope"] = Scope(wanted.scope)
    if wanted.expires is not None:
        parts["expires_at"] = _end(wanted.expires, now)
    if not parts:
        raise NotPossibleError("what is to change? say role, scope or expires")
    with ctx.database.begin() as connection:
        seen.check(_tag(users.get(connection, user, lock=True)), f"the user {user}")
        is_changed = users.change(
            connection, user, lambda grant: replace(grant, **parts), now=now, who=caller.who
        )
    return answer(api.Changed(user, is_changed))


@router.post("/users/{user}/remove")
def remove_user(ctx: Ctx, caller: Caller, user: str) -> Answer[api.Changed]:
    """Their sessions end; the name is free."""
    with ctx.database.begin() as connection:
        users.remove(connection, user, now=ctx.clock(), who=caller.who)
    return answer(api.Changed(user))


@router.post("/users/{user}/block")
def block_user(
    ctx: Ctx, caller: Caller, user: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.Changed]:
    """They do not get in until they are unblocked; their sessions end."""
    return _set_blocked(ctx, caller, user, why, is_blocked=True)


@router.post("/users/{user}/unblock")
def unblock_user(
    ctx: Ctx, caller: Caller, user: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.Changed]:
    """They may sign in again."""
    return _set_blocked(ctx, caller, user, why, is_blocked=False)


def _set_blocked(
    ctx: Context, caller: Principal, user: str, why: api.Reason, *, is_blocked: bool
) -> Answer[api.Changed]:
    with ctx.database.begin() as connection:
        is_changed = users.set_blocked(
            connection, user, is_blocked=is_blocked, reason=why.reason, now=ctx.clock(), who=caller.who
        )
    return answer(api.Changed(user, is_changed))


@router.post("/users/{user}/password")
def set_password(
    ctx: Ctx, caller: Caller, user: str, wanted: Annotated[api.NewPassword, Depends(body(api.NewPassword))]
) -> Answer[api.Changed]:
    """Another password; their sessions end."""
    passwords.check_new(wanted.password, user)
    kept = passwords.hashed(wanted.password)
    with ctx.database.begin() as connection:
        users.set_password(connection, user, kept, now=ctx.clock(), who=caller.who)
    return answer(api.Changed(user))


def _tag(row: UserRow) -> str:
    return tag_of(row.role, row.scope, row.expires_at, row.blocked_at)


def _token(row: TokenRow, now: float) -> api.TokenView:
    has_run_out = row.expires_at is not None and now >= row.expires_at
    return api.TokenView(
        row.name,
        row.role,
        row.scope,
        "revoked" if row.revoked_at is not None else "expired" if has_run_out else "good",
        _moment(row.created_at),
        row.created_by,
        _moment_or_none(row.expires_at),
        _moment_or_none(row.last_used_at),
        row.last_used_from,
    )


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _moment_or_none(at: float | None) -> datetime | None:
    return None if at is None else _moment(at)
