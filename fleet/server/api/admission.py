"""Who asks, and whether they may: one dependency of the whole application, which asks `fleet.rules.access`.

Always true
 1. Every route passes here before its own dependencies; one that the table does not name is closed.
 2. A secret arrives in the Authorization header or in a cookie, never in an address.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Connection

from edgekit.errors import AuthError, NotFoundError
from fleet.rules import access
from fleet.rules.access import RULES, Open, Role, Scope
from fleet.rules.selectors import Labels
from fleet.server.api.context import Context, Ctx, UnauthenticatedError, bearer
from fleet.server.store import devices, tokens
from fleet.server.store.audit import Who
from fleet.server.store.devices import DeviceRow


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
    return _by_token(bearer(request), request, ctx)


def _by_token(secret: str, request: Request, ctx: Context) -> Principal:
    with ctx.database.begin() as connection:
        try:
            row = tokens.find(connection, secret, ctx.clock())
        except AuthError as error:
            raise UnauthenticatedError(str(error)) from error
        tokens.used(connection, row, origin(request), ctx.clock())
    return Principal(Who(f"token:{row.name}", origin(request)), access.role(row.role), Scope(row.scope))


def principal(request: Request) -> Principal:
    """Who was admitted; only on routes that are not open."""
    found: Principal = request.state.principal
    return found


Caller = Annotated[Principal, Depends(principal)]
