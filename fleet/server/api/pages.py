"""What the pages for signing in are made of: frame, form, cookies.

Always true
 1. No script runs on them, no other site frames them, and their forms go to this site only (and on to the one place
    that a page names, as browsers hold a form to where its answer redirects).
"""

import hmac
import html
import logging
import secrets
from typing import Annotated
from urllib.parse import parse_qs, quote

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse

from fleet.rules.people import local
from fleet.server.api.admission import csrf_of, session_cookie
from fleet.server.api.context import Context, read_body
from fleet.server.store import sessions
from fleet.server.web import frame

log = logging.getLogger(__name__)
_MAX_FORM_BYTES = 4096
FORM_COOKIE = "edgekit-form"
_HEADERS = {
    "Cache-Control": "no-store",
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


def is_tls(ctx: Context) -> bool:
    return ctx.places.url.startswith("https:")


def redirect(to: str) -> Response:
    return RedirectResponse(to, 303, headers=_HEADERS)


def signed_in(ctx: Context, secret: str, then: str) -> Response:
    """On to `then`, with the new session's cookie."""
    done = redirect(local(then))
    done.set_cookie(
        session_cookie(ctx),
        secret,
        max_age=int(sessions.LIFE_S),
        secure=is_tls(ctx),
        httponly=True,
        samesite="lax",
        path="/",
    )
    done.delete_cookie(FORM_COOKIE, path="/login")
    return done


def form(ctx: Context, said: str = "", status: int = 200, *, then: str = "/") -> Response:
    """The form for name and password, and the way to the provider if there is one."""
    carried = secrets.token_urlsafe(32)
    then = local(then)
    # An error's words begin with a small letter.
    told = f'<p role="alert">{html.escape(said[:1].upper() + said[1:])}</p>' if said else ""
    elsewhere = ""
    if ctx.sign_ins.provider is not None:
        label = html.escape(ctx.sign_ins.provider.oidc.label)
        elsewhere = f'<p><a href="/login/oidc?next={quote(then, safe="")}">Sign in with {label}</a></p>'
    response = page(
        ctx,
        "Sign in",
        f'{told}{elsewhere}<form method="post" action="/login">'
        f'<input type="hidden" name="csrf" value="{csrf_of(carried)}">'
        f'<input type="hidden" name="next" value="{html.escape(then)}">'
        '<p><label>Name<br><input name="name" autocomplete="username" required autofocus></label></p>'
        '<p><label>Password<br><input name="password" type="password" autocomplete="current-password" required>'
        "</label></p><button>Sign in</button></form>",
        status=status,
    )
    response.set_cookie(
        FORM_COOKIE,
        carried,
        max_age=3600,
        path="/login",
        secure=is_tls(ctx),
        httponly=True,
        samesite="strict",
    )
    return response


def too_many(ctx: Context, address: str, wait_s: float, *, then: str = "/") -> Response:
    log.warning("too many attempts to sign in from %s", address)
    refused = form(ctx, f"Too many attempts. Try again in {wait_s:.0f} s.", 429, then=then)
    refused.headers["Retry-After"] = str(int(wait_s) + 1)
    return refused


def page(
    ctx: Context, title: str, content: str, *, status: int = 200, meta: str = "", goes_to: str = ""
) -> Response:
    """A whole page; the answer to its form may redirect to `goes_to` besides."""
    return frame.bare(ctx, title, content, status=status, meta=meta, goes_to=goes_to)


def same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
