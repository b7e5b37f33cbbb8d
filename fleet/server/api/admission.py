"""Who asks, and whether they may: one dependency of the whole application, which asks `fleet.rules.access`.

Always true
 1. Every route passes here before its own dependencies; one that the table does not name is closed.
 2. A cookie alone changes nothing: the page's token comes along (`fleet.server.api.login`).
 3. A secret arrives in the Authorization header or in a cookie, never in an address.
"""

import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Connection

from edgekit.errors import AuthError, NotFoundError
from fleet.rules import access
from fleet.rules.access import RULES, Open, Role, Scope
from fleet.rules.selectors import Labels
from fleet.server.api.context import Context, Ctx, UnauthenticatedError, bearer
from fleet.server.store import devices, sessions, tokens
from fleet.server.store.audit import Who
from fleet.server.store.devices import DeviceRow

_SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Principal:
    """Who asks: `who` for the audit log, and what they may do."""

    who: Who
    role: Role
    scope: Scope

    def reaches(self, labels: Labels) -> bool:
        return self.scope.covers(labels)

    def check_reach(self, labels: Labels) -> None:
        """Raises: AuthError."""
        if not self.scope.covers(labels):
            raise AuthError(f"your access reaches only {self.scope.text}")

    def device(self, connection: Connection, device: str) -> DeviceRow:
        """A device inside the scope; one outside is not there. Raises: NotFoundError."""
        row = devices.get(connection, device)
        if not self.scope.covers(devices.labels_of(row)):
            raise NotFoundError(
                f"there is no device {device!r} in this fleet; 'edgekit fleet devices' lists them"
            )
        return row


def origin(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host[:64] if request.client else ""


def admit(request: Request, ctx: Ctx) -> None:
    """Raises: UnauthenticatedError, AuthError."""
    rule = RULES.get((request.method, request.scope["route"].path))
    if rule is None:
        raise AuthError("nobody may do this: no rule names it")
    if isinstance(rule, Open):
        return
    principal = _principal(request, ctx)
    access.check(rule, principal.role, principal.scope)
    request.state.principal = principal


def _principal(request: Request, ctx: Context) -> Principal:
    if "authorization" not in request.headers and (secret := session_of(request, ctx)):
        return _by_session(secret, request, ctx)
    return _by_token(bearer(request), request, ctx)


def session_cookie(ctx: Context) -> str:
    """The cookie's name. With the prefix a browser takes it over TLS only, and from this very host (RFC 6265bis)."""
    return "__Host-edgekit" if ctx.places.url.startswith("https:") else "edgekit"


def session_of(request: Request, ctx: Context) -> str:
    """The session's secret that a browser sent; empty if none."""
    return request.cookies.get(session_cookie(ctx), "")


def csrf_of(secret: str) -> str:
    """What a page holds, and no other site, to show that a request is its own."""
    return hmac.digest(secret.encode(), b"edgekit csrf", "sha256").hex()


def _by_session(secret: str, request: Request, ctx: Context) -> Principal:
    with ctx.database.begin() as connection:
        try:
            row = sessions.user_of(connection, secret, ctx.clock(), origin(request))
        except AuthError as error:
            raise UnauthenticatedError(str(error)) from error
    if request.method not in _SAFE:
        shown = request.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(shown.encode(), csrf_of(secret).encode()):
            raise AuthError("this did not come from a page of this fleet; nothing was done")
    return Principal(Who(f"user:{row.name}", origin(request)), access.role(row.role), Scope(row.scope))


def _by_token(secret: str, request: Request, ctx: Context) -> Principal:
    """A machine's token, or the session of a person's terminal."""
    if secret.startswith(sessions.TERMINAL.prefix):
        return _by_terminal(secret, request, ctx)
    with ctx.database.begin() as connection:
        try:
            row = tokens.find(connection, secret, ctx.clock())
        except AuthError as error:
            raise UnauthenticatedError(str(error)) from error
        tokens.used(connection, row, origin(request), ctx.clock())
    return Principal(Who(f"token:{row.name}", origin(request)), access.role(row.role), Scope(row.scope))


def _by_terminal(secret: str, request: Request, ctx: Context) -> Principal:
    with ctx.database.begin() as connection:
        try:
            row = sessions.user_of(connection, secret, ctx.clock(), origin(request), sessions.TERMINAL)
        except AuthError as error:
            raise UnauthenticatedError(str(error)) from error
    return Principal(Who(f"user:{row.name}", origin(request)), access.role(row.role), Scope(row.scope))


def principal(request: Request) -> Principal:
    """Who was admitted; only on routes that are not open."""
    found: Principal = request.state.principal
    return found


Caller = Annotated[Principal, Depends(principal)]
