"""Signing in at a terminal: a browser on the same machine lets it act as the person who is signed in there.

The authorization code flow for native applications (RFC 8252) with PKCE: the terminal listens on loopback, this service
is what it asks, and however people sign in here (password, OpenID provider) is how they sign in there. No client of the
provider's is needed for it, and no secret of one lies on people's machines.

Always true
 1. A person says so on a page, with that page's token; a cookie alone lets nobody in.
 2. A code goes to loopback only, opens once, soon, and only for who holds the verifier of its challenge.
"""

import base64
import hashlib
import hmac
import html
import re
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request, Response

from edgekit.errors import AuthError, NotPossibleError, UsageError
from fleet import api
from fleet.server.api import pages
from fleet.server.api.admission import Caller, csrf_of, origin, session_of
from fleet.server.api.context import Answer, Context, Ctx, answer, bearer, body
from fleet.server.api.pages import Form
from fleet.server.api.routing import Router
from fleet.server.signin import Permit
from fleet.server.store import sessions
from fleet.server.store.audit import Who
from fleet.server.store.users import UserRow
from fleet.terminal import MadeTerminal, NewTerminal, mark

router = Router(prefix="/api/v1", tags=["access"])
page_router = APIRouter(tags=["page"])

_OPAQUE = re.compile(r"^[A-Za-z0-9_-]{16,128}$")
_CHALLENGE = re.compile(r"^[A-Za-z0-9_-]{43}$")
_PORT = re.compile(r"^[1-9]\d{0,4}$")


@page_router.get("/login/terminal", include_in_schema=False)
def ask(ctx: Ctx, request: Request) -> Response:
    """The page that asks the person."""
    wanted = _wanted(dict(request.query_params))
    try:
        user = _person(ctx, request)
    except AuthError:
        return pages.redirect(f"/login?next={quote(f'/login/terminal?{urlencode(wanted)}', safe='')}")
    hidden = {**wanted, "csrf": csrf_of(session_of(request, ctx))}
    inputs = "".join(
        f'<input type="hidden" name="{name}" value="{html.escape(value)}">' for name, value in hidden.items()
    )
    scope = f", for {html.escape(user.scope)}" if user.scope else ""
    return pages.page(
        ctx,
        "A terminal asks to sign in",
        f"<p>Let 'edgekit fleet login' on this machine act as <b>{html.escape(user.name)}</b> ({user.role}{scope}) for "
        f"{sessions.TERMINAL.life_s / 3600:.0f} hours?</p><p>Only if you have just started it, and it shows "
        f"<b>{mark(wanted['challenge'])}</b>.</p>"
        f'<form method="post" action="/login/terminal">{inputs}<button>Let it</button></form>'
        '<p><a href="/">No</a></p>',
        goes_to=f"http://127.0.0.1:{wanted['port']}",
    )


@page_router.post("/login/terminal", include_in_schema=False)
def permit(ctx: Ctx, request: Request, given: Form) -> Response:
    wanted = _wanted(given)
    user = _person(ctx, request)
    if not pages.same(given.get("csrf", ""), csrf_of(session_of(request, ctx))):
        raise AuthError("this did not come from a page of this fleet; nothing was done")
    code = ctx.sign_ins.permits.put(Permit(user.name, wanted["challenge"]), ctx.clock())
    there = urlencode({"code": code, "state": wanted["state"]})
    return pages.redirect(f"http://127.0.0.1:{wanted['port']}/?{there}")


@router.post("/session/terminal", status_code=201)
def begin(
    ctx: Ctx, request: Request, given: Annotated[NewTerminal, Depends(body(NewTerminal))]
) -> Answer[MadeTerminal]:
    """A code for a session's secret."""
    address, now = origin(request), ctx.clock()
    if (wait_s := ctx.limits.wait_to_end_s(address, now)) > 0:
        raise AuthError(f"too many attempts; try again in {wait_s:.0f} s")
    found = ctx.sign_ins.permits.take(given.code, now)
    shown = base64.urlsafe_b64encode(hashlib.sha256(given.verifier.encode()).digest()).rstrip(b"=")
    if found is None or not hmac.compare_digest(shown, found.challenge.encode()):
        raise AuthError("this code was used, or is too old; start again: edgekit fleet login FILE")
    with ctx.database.begin() as connection:
        secret = sessions.begin(
            connection,
            found.user,
            now=now,
            who=Who(f"user:{found.user}", address),
            kind=sessions.TERMINAL,
            how="its page",
        )
    ends = datetime.fromtimestamp(now + sessions.TERMINAL.life_s, UTC)
    ca = ctx.ca_bundle if pages.is_tls(ctx) else ""
    made = answer(MadeTerminal(found.user, secret, ends, ctx.places.url, ca), 201)
    made.headers["Cache-Control"] = "no-store"
    return made


@router.post("/session/end")
def end(ctx: Ctx, request: Request, caller: Caller) -> Answer[api.Changed]:
    """Ends the session of the terminal that asks."""
    secret = bearer(request) if "authorization" in request.headers else ""
    if not secret.startswith(sessions.TERMINAL.prefix):
        raise NotPossibleError(
            "only what 'edgekit fleet login' began can be ended so; tokens are revoked, pages left"
        )
    with ctx.database.begin() as connection:
        sessions.end(connection, secret, now=ctx.clock(), address=caller.who.origin)
    return answer(api.Changed(caller.who.name))


def _wanted(given: dict[str, str]) -> dict[str, str]:
    """What a terminal asks with. Raises: UsageError."""
    found = {name: given.get(name, "") for name in ("port", "state", "challenge")}
    is_right = (
        _PORT.match(found["port"])
        and int(found["port"]) < 65536
        and _OPAQUE.match(found["state"])
        and _CHALLENGE.match(found["challenge"])
    )
    if not is_right:
        raise UsageError("this address is not whole; start again: edgekit fleet login FILE")
    return found


def _person(ctx: Context, request: Request) -> UserRow:
    """Who is signed in to the page. Raises: AuthError."""
    with ctx.database.read() as connection:
        return sessions.user_of(connection, session_of(request, ctx), ctx.clock())[0]
