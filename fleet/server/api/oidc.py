"""Signing in through the OpenID provider: there, and back again.

Always true
 1. An answer counts once, and only in the browser that was sent there: its `state` is claimed, and a cookie of that
    browser belongs to it. So nobody is signed in as somebody else.
 2. Role and scope follow anew from each sign-in; whom no grant names, or who is blocked, gets no session, and what
    sessions they have end.
 3. It ends in the same session as a password does (`fleet.server.api.login`), and goes on to a page of this site.
"""

import logging
import secrets

from fastapi import APIRouter, Request, Response

from edgekit.errors import AuthError, ConflictError, NotFoundError
from fleet.rules import people
from fleet.rules.people import Person
from fleet.server.api import pages
from fleet.server.api.admission import origin
from fleet.server.api.context import Context, Ctx
from fleet.server.signin import CALLBACK, Provider, ProviderError, Started
from fleet.server.store import sessions, users
from fleet.server.store.audit import Who
from fleet.server.store.settings import new_secret, secret_hash
from fleet.server.store.tokens import Grant

log = logging.getLogger(__name__)
router = APIRouter(tags=["page"])

_TOO_OLD = "This sign-in was too old, or began in another window. Please try again."
_MAX_CODE = 4096


@router.get("/login/oidc", include_in_schema=False)
def begin(ctx: Ctx, request: Request) -> Response:
    provider, then = _provider(ctx), people.local(request.query_params.get("next", "/"))
    address, now = origin(request), ctx.clock()
    if (wait_s := ctx.limits.wait_to_begin_s(address, now)) > 0:
        return pages.too_many(ctx, address, wait_s, then=then)
    browser = new_secret()
    # A verifier has 43 to 128 characters (RFC 7636, 4.1).
    started = Started(new_secret(), secrets.token_urlsafe(48), secret_hash(browser), then)
    try:
        to = provider.address(ctx.sign_ins.started.put(started, now), started)
    except ProviderError as error:
        return pages.form(ctx, _sentence(error), 503, then=then)
    going = pages.redirect(to)
    # Lax: it must come along on the way back, which begins at another site.
    going.set_cookie(
        _cookie(ctx),
        browser,
        max_age=600,
        path="/",
        secure=pages.is_tls(ctx),
        httponly=True,
        samesite="lax",
    )
    return going


@router.get(CALLBACK, include_in_schema=False)
def end(ctx: Ctx, request: Request) -> Response:
    provider, given = _provider(ctx), request.query_params
    address, now = origin(request), ctx.clock()
    if (wait_s := ctx.limits.wait_to_end_s(address, now)) > 0:
        return pages.too_many(ctx, address, wait_s)
    started = ctx.sign_ins.started.take(given.get("state", "")[:100], now)
    browser = request.cookies.get(_cookie(ctx), "")
    if started is None or not pages.same(secret_hash(browser), started.browser):
        log.warning(
            "an answer to a sign-in from %s was refused: its state is not one that waits there", address
        )
        return pages.form(ctx, _TOO_OLD, 403)
    try:
        if "error" in given or not 0 < len(given.get("code", "")) <= _MAX_CODE:
            raise AuthError("the provider did not sign you in; try again there")
        claims = provider.claims(given["code"], started, given.get("iss", ""))
        secret = _session(ctx, provider, people.person(claims, provider.oidc), claims, address)
    except ProviderError as error:
        return _done(ctx, pages.form(ctx, _sentence(error), 503, then=started.then))
    except (AuthError, ConflictError) as error:
        log.warning("a sign-in from %s through the provider was refused: %s", address, error)
        return _done(ctx, pages.form(ctx, f"{error}.", 403, then=started.then))
    return _done(ctx, pages.signed_in(ctx, secret, started.then))


def _session(ctx: Context, provider: Provider, person: Person, claims: people.Claims, address: str) -> str:
    """A new session's secret. Raises: AuthError for whom nothing is granted, or who is blocked; ConflictError."""
    granted = people.access(person.groups, provider.oidc)
    now, refused = ctx.clock(), ""
    with ctx.database.begin() as connection:
        known = users.of_subject(connection, person.subject)
        name = known.name if known is not None else person.name
        who = Who(f"user:{name}", address)
        if granted is None:
            refused = _nothing_granted(provider, claims)
            users.turn_away(connection, person, "nothing is granted to them", now=now, who=who)
        elif known is not None and (refused := users.refusal(known, now)):
            users.turn_away(connection, person, refused, now=now, who=who)
        else:
            users.arrive(connection, person, Grant(*granted), now=now, who=who)
            return sessions.begin(connection, name, now=now, who=who, how="oidc")
    raise AuthError(refused)


def _nothing_granted(provider: Provider, claims: people.Claims) -> str:
    oidc = provider.oidc
    if people.are_groups_left_out(claims, oidc.groups_claim):
        return (
            f"you are in so many groups that {oidc.issuer} left them out; have it send only those that concern this "
            "application, or its roles, and name those in [[oidc.grants]] of fleet.toml"
        )
    return (
        f"you have no role here: none of your groups ({oidc.groups_claim!r} of {oidc.issuer}) is one that this fleet "
        "gives a role to. Ask whoever runs the fleet to name one in [[oidc.grants]] of fleet.toml, or to have you "
        "added to one that is named there"
    )


def _provider(ctx: Context) -> Provider:
    """Raises: NotFoundError."""
    if ctx.sign_ins.provider is None:
        raise NotFoundError("this fleet has no OpenID provider; sign in with name and password at /login")
    return ctx.sign_ins.provider


def _cookie(ctx: Context) -> str:
    return "__Host-edgekit-oidc" if pages.is_tls(ctx) else "edgekit-oidc"


def _done(ctx: Context, response: Response) -> Response:
    response.delete_cookie(_cookie(ctx), path="/", secure=pages.is_tls(ctx), httponly=True)
    return response


def _sentence(error: ProviderError) -> str:
    return f"{error}. Try again in a moment; who has a password here signs in with that."
