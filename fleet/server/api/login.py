"""Signing in to the page: form, session cookie, signing out.

Always true
 1. The session's secret is in a cookie that no script can read (HttpOnly), that goes over TLS only wherever there is
    TLS, and that other sites' forms do not carry (SameSite).
 2. Nothing is changed on the strength of a cookie alone: a token that only our own pages hold comes along, in the
    header X-CSRF-Token or in a form's field. The sign-in form has one too, so nobody is signed in as somebody else.
 3. Attempts are limited by name and by address before a password is looked at, and an answer says nothing of whether
    the name exists.
"""

import hmac
import html
import logging
import re
import secrets
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from edgekit.errors import AuthError
from fleet.server import passwords
from fleet.server.api.admission import Caller, csrf_of, origin, session_cookie, session_of
from fleet.server.api.context import Context, Ctx, read_body
from fleet.server.store import devices, sessions, users
from fleet.server.store.audit import Who

log = logging.getLogger(__name__)
router = APIRouter(tags=["page"])

_MAX_FORM_BYTES = 4096
_NAME = re.compile(r"^[a-z0-9][a-z0-9._@-]{0,47}$")
_FORM_COOKIE = "edgekit-form"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


Fields = dict[str, str]


async def fields_of(request: Request) -> Fields:
    """The fields of a submitted form; of those that come twice the first. Raises: TooLargeError."""
    data = await read_body(request, _MAX_FORM_BYTES)
    found = parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=16)
    return {name: values[0] for name, values in found.items()}


Form = Annotated[Fields, Depends(fields_of)]


@router.get("/login", include_in_schema=False)
def form(ctx: Ctx) -> Response:
    return _form(ctx)


@router.post("/login", include_in_schema=False)
def sign_in(ctx: Ctx, request: Request, given: Form) -> Response:
    carried = request.cookies.get(_FORM_COOKIE, "")
    if not carried or not _same(given.get("csrf", ""), csrf_of(carried)):
        return _form(ctx, "This form was too old. Please try again.", 403)
    name, password, address, now = (
        given.get("name", "").strip().lower(),
        given.get("password", ""),
        origin(request),
        ctx.clock(),
    )
    wait_s = ctx.limits.wait_s(name[:64], address, now)
    if wait_s > 0:
        log.warning("too many attempts to sign in from %s", address)
        refused = _form(ctx, f"Too many attempts. Try again in {wait_s:.0f} s.", 429)
        refused.headers["Retry-After"] = str(int(wait_s) + 1)
        return refused
    secret = _checked(ctx, name, password, Who(f"user:{name}", address), now)
    if secret is None:
        # The name is not logged: now and then it is a password, typed into the wrong field.
        log.warning("an attempt to sign in from %s was refused", address)
        return _form(ctx, "Name or password is wrong.", 401)
    ctx.limits.succeeded(name)
    done = RedirectResponse("/", 303, headers=_HEADERS)
    is_tls = ctx.places.url.startswith("https:")
    done.set_cookie(
        session_cookie(ctx),
        secret,
        max_age=int(sessions.LIFE_S),
        secure=is_tls,
        httponly=True,
        samesite="lax",
        path="/",
    )
    done.delete_cookie(_FORM_COOKIE, path="/login")
    return done


def _checked(ctx: Context, name: str, password: str, who: Who, now: float) -> str | None:
    """A new session's secret, if name and password are right."""
    with ctx.database.begin() as connection:
        row = users.find(connection, name) if _NAME.match(name) else None
    # Outside the transaction: this takes long on purpose.
    if not passwords.is_right(password[: passwords.MAX_LENGTH + 1], row.password if row else None):
        return None
    with ctx.database.begin() as connection:
        again = users.find(connection, name)
        if row is None or again is None or again.password != row.password or users.is_over(again, now):
            return None
        return sessions.begin(connection, name, now=now, who=who)


@router.post("/logout", include_in_schema=False)
def sign_out(ctx: Ctx, request: Request, given: Form) -> Response:
    secret = session_of(request, ctx)
    if secret:
        if not _same(given.get("csrf", ""), csrf_of(secret)):
            raise AuthError("this did not come from a page of this fleet; nothing was done")
        with ctx.database.begin() as connection:
            sessions.end(connection, secret, now=ctx.clock(), address=origin(request))
    done = RedirectResponse("/login", 303, headers=_HEADERS)
    done.delete_cookie(
        session_cookie(ctx), path="/", secure=ctx.places.url.startswith("https:"), httponly=True
    )
    return done


@router.get("/", include_in_schema=False)
def home(ctx: Ctx, request: Request, caller: Caller) -> Response:
    """Who is signed in, and the way out."""
    with ctx.database.begin() as connection:
        rows = [row for row in devices.everyone(connection) if caller.reaches(devices.labels_of(row))]
    online = sum(row.is_online for row in rows)
    csrf = csrf_of(session_of(request, ctx))
    name = html.escape(caller.who.name.partition(":")[2])
    scope = f", for {html.escape(caller.scope.text)}" if caller.scope.is_limited else ""
    return _page(
        ctx,
        ctx.issuer.fleet,
        f"<p>{online} of {len(rows)} devices are online.</p>"
        f"<p>Signed in as <b>{name}</b>: {caller.role.word}{scope}.</p>"
        f'<form method="post" action="/logout"><input type="hidden" name="csrf" value="{csrf}">'
        "<button>Sign out</button></form>",
        meta=f'<meta name="csrf-token" content="{csrf}">',
    )


def _form(ctx: Context, said: str = "", status: int = 200) -> Response:
    carried = secrets.token_urlsafe(32)
    told = f'<p role="alert">{html.escape(said)}</p>' if said else ""
    response = _page(
        ctx,
        "Sign in",
        f'{told}<form method="post" action="/login"><input type="hidden" name="csrf" value="{csrf_of(carried)}">'
        '<p><label>Name<br><input name="name" autocomplete="username" required autofocus></label></p>'
        '<p><label>Password<br><input name="password" type="password" autocomplete="current-password" required>'
        "</label></p><button>Sign in</button></form>",
        status=status,
    )
    response.set_cookie(
        _FORM_COOKIE,
        carried,
        max_age=3600,
        path="/login",
        secure=ctx.places.url.startswith("https:"),
        httponly=True,
        samesite="strict",
    )
    return response


def _page(ctx: Context, title: str, content: str, *, status: int = 200, meta: str = "") -> Response:
    shown = html.escape(title)
    headers = dict(_HEADERS)
    if ctx.places.url.startswith("https:"):
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{meta}<title>{shown}</title>'
        "<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}"
        "input,button{font:inherit;padding:.4rem .6rem}</style></head>"
        f"<body><h1>{shown}</h1>{content}</body></html>",
        status,
        headers=headers,
    )


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
