"""What every page has in common: templates, headers, who looks, and what they may do.

Always true
 1. Scripts and styles run only from our own files; a page asks nobody but this service (its policy says so to the
    browser). No other site frames it.
 2. A template that names something it was not given fails, and never shows an empty place.
 3. Where a person may not do something the page says why, in the words in which it would be refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlencode

import jinja2
from fastapi import Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup
from sqlalchemy import Connection

from edgekit import __version__, look
from edgekit.errors import AuthError
from fleet.api import AlertView
from fleet.rules import access
from fleet.rules.access import RULES, Open
from fleet.server.api import paging
from fleet.server.api.admission import Caller, Principal, csrf_of, session_of
from fleet.server.api.context import Context, Ctx
from fleet.server.store import alerts, events, settings
from fleet.server.web import words

EVENTS = "/api/v1/events"
THEME = "edgekit-theme"
THEMES = ("auto", "light", "dark")
_SAID = "edgekit-said"
_LIVE = "live"
_NAV = (
    ("/", "Overview"),
    ("/rollouts", "Rollouts"),
    ("/devices", "Devices"),
    ("/releases", "Releases"),
    ("/drift", "Drift"),
    ("/experiments", "Experiments"),
    ("/audit", "Audit"),
    ("/settings", "Settings"),
)
# Pages that have no place of their own.
_UNDER = {"/enrol": "/devices", "/search": ""}


@cache
def assets() -> Mapping[str, tuple[str, bytes]]:
    """Our files: name with a hash of the content → media type and content."""
    folder = resources.files(__package__).joinpath("assets")
    found = {
        "page.css": ("text/css", look.tokens() + folder.joinpath("page.css").read_text(encoding="utf-8")),
        "page.js": ("text/javascript", folder.joinpath("page.js").read_text(encoding="utf-8")),
        "icon.svg": ("image/svg+xml", folder.joinpath("icon.svg").read_text(encoding="utf-8")),
    }
    return {_hashed(name, text): (kind, text.encode()) for name, (kind, text) in found.items()}


def _hashed(name: str, text: str) -> str:
    stem, _, ending = name.rpartition(".")
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.{ending}"


def asset(name: str) -> str:
    """The address of one of our files."""
    stem, _, ending = name.rpartition(".")
    return next(
        f"/assets/{full}" for full in assets() if full.startswith(f"{stem}-") and full.endswith(ending)
    )


@cache
def templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "span": words.span,
        "exact": words.exact,
        "count": words.count,
        "devices": words.devices,
        "size": words.size,
        "share": words.share,
        "ms": words.milliseconds,
        "figure": words.number,
        "sentence": words.sentence,
        "part": lambda text: quote(str(text), safe=""),
        "unquoted": unquote,
    }
    made.globals |= {
        "asset": asset,
        "state_of": words.state,
        "ago": words.ago,
        "link": link,
        "moment_of": words.moment,
        "version": __version__,
    }
    # A fragment is drawn without the template around it, so what it is made of is everybody's.
    made.globals["parts"] = made.get_template("parts.jinja").module
    return made


def link(path: str, **query: object) -> str:
    """An address with the parts of its query that are not empty."""
    given = {name: str(value) for name, value in query.items() if value not in ("", None, 0)}
    return f"{path}?{urlencode(given)}" if given else path


def headers(ctx: Context, goes_to: str = "") -> dict[str, str]:
    policy = (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        f"form-action 'self'{' ' + goes_to if goes_to else ''}; frame-ancestors 'none'; base-uri 'none'"
    )
    made = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }
    if ctx.places.url.startswith("https:"):
        made["Strict-Transport-Security"] = "max-age=31536000"
    return made


def theme_of(request: Request | None) -> str:
    """What this browser was asked to show; `auto` is the system's wish."""
    found = request.cookies.get(THEME, "") if request is not None else ""
    return found if found in THEMES else "auto"


@dataclass(frozen=True)
class Page:
    """One request of a person who is signed in.

    `since` is the newest event that everything it shows is as new as: what happens between its being read and its script's
    listening is told of then.
    """

    ctx: Context
    request: Request
    caller: Principal
    since: int

    @property
    def now(self) -> datetime:
        return words.moment(self.ctx.clock())

    @property
    def whole(self) -> paging.Page:
        """A short list as a whole, of those functions of the API that answer in pages."""
        return paging.Page(self.request, limit=paging.MOST)

    def why_not(self, method: str, route: str) -> str:
        """Why the one who looks may not do this; empty if they may."""
        rule = RULES[method, route]
        if isinstance(rule, Open):
            return ""
        try:
            access.check(rule, self.caller.role, self.caller.scope)
        except AuthError as error:
            return str(error)
        return ""

    def alerts(self, connection: Connection) -> list[AlertView]:
        """Those that stand; they are about the whole fleet, and for whoever reaches all of it."""
        return [] if self.caller.scope.is_limited else alerts.listing(connection, is_open=True)

    def show(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page, or with the header `X-Fragment` its live part alone."""
        said = self.request.cookies.get(_SAID, "")
        whole = templates().get_template(template)
        given = {**self._frame(), **values, "said": said}
        if "x-fragment" in self.request.headers and _LIVE in whole.blocks:
            text = "".join(whole.blocks[_LIVE](whole.new_context(given)))
            return HTMLResponse(text, status, headers=headers(self.ctx))
        response = HTMLResponse(whole.render(given), status, headers=headers(self.ctx))
        if said:
            response.delete_cookie(_SAID, path="/")
        return response

    def done(self, to: str, said: str = "") -> Response:
        """On to another page, which says what was done."""
        response = RedirectResponse(to, 303, headers=headers(self.ctx))
        if said:
            # Cookies carry neither commas nor letters beyond ASCII; the template reads it back.
            response.set_cookie(_SAID, quote(said[:400]), max_age=30, path="/", httponly=True, samesite="lax")
        return response

    def _frame(self) -> dict[str, Any]:
        ctx, caller, path = self.ctx, self.caller, self.request.url.path
        with ctx.database.read() as connection:
            is_frozen = settings.is_frozen(connection)
            open_alerts = len(self.alerts(connection))
        hidden = {to for to, _ in _NAV if self.why_not("GET", to)}
        return {
            "page": self,
            "fleet": ctx.issuer.fleet,
            "me": caller.who.name.partition(":")[2],
            "caller": caller,
            "csrf": csrf_of(session_of(self.request, ctx)),
            "theme": theme_of(self.request),
            "nav": [(to, name) for to, name in _NAV if to not in hidden],
            "here": next((to for to, _ in _NAV[1:] if path.startswith(to)), _UNDER.get(path, "/")),
            "now": self.now,
            "is_frozen": is_frozen,
            "is_connected": ctx.link.is_connected,
            "open_alerts": open_alerts,
            "events": f"{EVENTS}?since={self.since}",
        }


def page(ctx: Ctx, request: Request, caller: Caller) -> Page:
    with ctx.database.read() as connection:
        _, newest = events.bounds(connection)
    return Page(ctx, request, caller, newest)


On = Annotated[Page, Depends(page)]


def bare(
    ctx: Context,
    title: str,
    content: str,
    *,
    status: int = 200,
    request: Request | None = None,
    meta: str = "",
    goes_to: str = "",
) -> Response:
    """A page for whom we do not know: to sign in, or that something went wrong. `content` and `meta` are HTML."""
    text = (
        templates()
        .get_template("bare.html.jinja")
        .render(
            title=title,
            content=Markup(content),  # noqa: S704  # HTML that our own code made, with what it names escaped
            meta=Markup(meta),  # noqa: S704  # the same
            fleet=ctx.issuer.fleet,
            theme=theme_of(request),
        )
    )
    return HTMLResponse(text, status, headers=headers(ctx, goes_to))
