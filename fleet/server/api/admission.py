"""Who asks, and whether they may: one dependency of the whole application, which asks `fleet.rules.access`.

Always true
 1. Every route passes here before its own dependencies; one that the table does not name is closed.
 2. A cookie alone changes nothing: the page's token comes along (`fleet.server.api.login`), in a header, or with the
    page's forms in a field, which is looked at as soon as they are read (`fleet.server.web.forms`).
 3. A secret arrives in the Authorization header or in a cookie, never in an address.
"""

import contextlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

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
    principal = admitted(request, ctx, is_form=rule.is_form)
    access.check(rule, principal.role, principal.scope)
    request.state.principal = principal


def admitted(request: Request, ctx: Context, *, is_form: bool = False) -> Principal:
    """Who asks, by what the request shows. Raises: UnauthenticatedError."""
    if "authorization" not in request.headers and (secret := session_of(request, ctx)):
        return _by_session(secret, request, ctx, is_form=is_form)
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


def _by_session(secret: str, request: Request, ctx: Context, *, is_form: bool) -> Principal:
    found = _of_session(secret, request, ctx, sessions.PAGE)
    if request.method not in _SAFE and not is_form:
        shown = request.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(shown.encode(), csrf_of(secret).encode()):
            raise AuthError("this did not come from a page of this fleet; nothing was done")
    return found


def _of_session(secret: str, request: Request, ctx: Context, kind: sessions.Kind) -> Principal:
    now = ctx.clock()
    with ctx.database.read() as connection:
        try:
            user, is_use_due = sessions.user_of(connection, secret, now, kind)
        except AuthError as error:
            raise UnauthenticatedError(str(error)) from error
    if is_use_due:
        _note(ctx, lambda connection: sessions.used(connection, secret, user.name, origin(request), now))
    return Principal(Who(f"user:{user.name}", origin(request)), access.role(user.role), Scope(user.scope))


def _by_token(secret: str, request: Request, ctx: Context) -> Principal:
    """A machine's token, or the session of a person's terminal."""
    if secret.startswith(sessions.TERMINAL.prefix):
        return _of_session(secret, request, ctx, sessions.TERMINAL)
    now = ctx.clock()
    with ctx.database.read() as connection:
        try:
            row = tokens.find(connection, secret, now)
        except AuthError as error:
            raise UnauthenticatedError(str(error)) from error
    if tokens.is_use_due(row, now):
        _note(ctx, lambda connection: tokens.used(connection, row, origin(request), now))
    return Principal(Who(f"token:{row.name}", origin(request)), access.role(row.role), Scope(row.scope))


def _note(ctx: Context, use: Callable[[Connection], None]) -> None:
    """Whoever only reads does not wait for a writer: a use can as well be noted the next time."""
    with contextlib.suppress(OperationalError), ctx.database.begin_at_once() as connection:
        use(connection)


def principal(request: Request) -> Principal:
    """Who was admitted; only on routes that are not open."""
    found: Principal = request.state.principal
    return found


Caller = Annotated[Principal, Depends(principal)]
