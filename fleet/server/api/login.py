"""Signing in to the page: form, session cookie, signing out.

Always true
 1. The session's secret is in a cookie that no script can read (HttpOnly), that goes over TLS only wherever there is
    TLS, and that other sites' forms do not carry (SameSite).
 2. Nothing is changed on the strength of a cookie alone: a token that only our own pages hold comes along, in the
    header X-CSRF-Token or in a form's field. The sign-in form has one too, so nobody is signed in as somebody else.
 3. Attempts are limited by name and by address before a password is looked at, and an answer says nothing of whether
    the name exists.
"""

import logging

from fastapi import APIRouter, Request, Response

from edgekit.errors import AuthError
from fleet.rules.people import NAME
from fleet.server import passwords
from fleet.server.api import pages
from fleet.server.api.admission import csrf_of, origin, session_cookie, session_of
from fleet.server.api.context import Context, Ctx
from fleet.server.api.pages import FORM_COOKIE, Form, same
from fleet.server.store import sessions, users
from fleet.server.store.audit import Who

log = logging.getLogger(__name__)
router = APIRouter(tags=["page"])


@router.get("/login", include_in_schema=False)
def form(ctx: Ctx, request: Request) -> Response:
    return pages.form(ctx, then=request.query_params.get("next", "/"))


@router.post("/login", include_in_schema=False)
def sign_in(ctx: Ctx, request: Request, given: Form) -> Response:
    carried, then = request.cookies.get(FORM_COOKIE, ""), given.get("next", "/")
    if not carried or not same(given.get("csrf", ""), csrf_of(carried)):
        return pages.form(ctx, "This form was too old. Please try again.", 403, then=then)
    name, password = given.get("name", "").strip().lower(), given.get("password", "")
    address, now = origin(request), ctx.clock()
    wait_s = ctx.limits.wait_s(name[:64], address, now)
    if wait_s > 0:
        return pages.too_many(ctx, address, wait_s, then=then)
    try:
        secret = _checked(ctx, name, password, Who(f"user:{name}", address), now)
    except AuthError as error:
        return pages.form(ctx, f"{error}.", 403, then=then)
    if secret is None:
        # The name is not logged: now and then it is a password, typed into the wrong field.
        log.warning("an attempt to sign in from %s was refused", address)
        return pages.form(ctx, "Name or password is wrong.", 401, then=then)
    ctx.limits.succeeded(name)
    return pages.signed_in(ctx, secret, then)


def _checked(ctx: Context, name: str, password: str, who: Who, now: float) -> str | None:
    """A new session's secret, if name and password are right. Raises: AuthError for whom may not come in."""
    with ctx.database.begin() as connection:
        row = users.find(connection, name) if NAME.match(name) else None
    # Outside the transaction: this takes long on purpose.
    if not passwords.is_right(password[: passwords.MAX_LENGTH + 1], (row.password or None) if row else None):
        return None
    with ctx.database.begin() as connection:
        again = users.find(connection, name)
        if row is None or again is None or again.password != row.password:
            return None
        return sessions.begin(connection, name, now=now, who=who)


@router.post("/logout", include_in_schema=False)
def sign_out(ctx: Ctx, request: Request, given: Form) -> Response:
    secret = session_of(request, ctx)
    if secret:
        if not same(given.get("csrf", ""), csrf_of(secret)):
            raise AuthError("this did not come from a page of this fleet; nothing was done")
        with ctx.database.begin() as connection:
            sessions.end(connection, secret, now=ctx.clock(), address=origin(request))
    done = pages.redirect("/login")
    done.delete_cookie(session_cookie(ctx), path="/", secure=pages.is_tls(ctx), httponly=True)
    return done
