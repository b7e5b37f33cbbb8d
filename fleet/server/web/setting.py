"""Settings: who may do what, by which tokens, and which keys there are."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, NotFoundError, UsageError
from fleet import api
from fleet.rules.access import Role
from fleet.server.api import access as rest
from fleet.server.api import fleet as fleet_rest
from fleet.server.api.matching import Expected
from fleet.server.web import alerting, signed
from fleet.server.web.forms import Fields, Form, valid
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])
# Of what ends within this time people are told.
SOON_S = 14 * 86_400.0


@router.get("/settings", include_in_schema=False)
def show(page: On) -> Response:
    return _show(page)


def _show(page: Page, *, secret: str = "", made: str = "", error: str = "", status: int = 200) -> Response:
    refused = page.why_not("GET", "/api/v1/users")
    users: list[api.UserView] = []
    tokens: list[api.TokenView] = []
    if not refused:
        users = msgspec.json.decode(rest.user_list(page.ctx, page.whole).body, type=list[api.UserView])
        tokens = msgspec.json.decode(rest.token_list(page.ctx, page.whole).body, type=list[api.TokenView])
    keys = msgspec.json.decode(fleet_rest.keys(page.ctx).body, type=api.KeysView)
    return page.show(
        "settings.html.jinja",
        status=status,
        users=users,
        tokens=tokens,
        keys=keys,
        targets=alerting.targets(page),
        refused_targets=page.why_not("GET", "/api/v1/alert-targets"),
        documents=signed.everything(page.ctx.tuf),
        broker=page.ctx.link,
        is_controller=page.ctx.is_controller(),
        dropped=dict(page.ctx.dropped),
        refused=refused,
        roles=[role.word for role in Role],
        is_soon=_is_soon(page),
        secret=secret,
        made=made,
        error=error,
    )


def _is_soon(page: Page) -> Callable[[datetime | None], bool]:
    now = page.now
    return lambda at: at is not None and 0 < (at - now).total_seconds() < SOON_S


@router.post("/settings/{kind}", include_in_schema=False)
def add(page: On, kind: str, given: Form) -> Response:
    """A user, or a token, whose secret is shown this once."""
    try:
        if kind == "users":
            wanted = valid(
                api.NewUser(
                    given.one("name"),
                    given.one("password"),
                    given.one("role"),
                    given.one("scope"),
                    given.one("expires"),
                )
            )
            rest.add_user(page.ctx, page.caller, wanted)
            return page.done("/settings", f"{wanted.name} may sign in as {wanted.role}.")
        if kind == "targets":
            return page.done(
                "/settings", f"{alerting.add(page, given)} is told of alerts from now on; send it a test."
            )
        if kind == "tokens":
            token = valid(
                api.NewToken(given.one("name"), given.one("role"), given.one("scope"), given.one("expires"))
            )
            made = msgspec.json.decode(rest.add_token(page.ctx, page.caller, token).body, type=api.MadeToken)
            return _show(page, secret=made.secret, made=made.name, status=201)
    except EdgeKitError as error:
        return _show(page, error=str(error), status=error.http_status)
    raise NotFoundError(f"there are no {kind[:40]!r} to add to")


class Act(NamedTuple):
    title: str
    says: tuple[str, ...]
    command: str
    do: Callable[[Page, str, Fields], Any]
    fields: tuple[tuple[str, str, str], ...] = ()
    is_final: bool = False


def _why(given: Fields) -> api.Reason:
    return valid(api.Reason(given.one("reason")))


def _change(page: Page, name: str, given: Fields) -> object:
    parts = {key: text for key in ("role", "scope", "expires") if (text := given.one(key))}
    if not parts:
        raise UsageError("what is to change? write a role, a scope or an end")
    return rest.change_user(page.ctx, page.caller, Expected(), name, valid(api.UserChange(**parts)))


_REASON = (("reason", "Why (for the audit log)", ""),)
ACTS: dict[tuple[str, str], Act] = {
    ("tokens", "revoke"): Act(
        "Revoke token",
        ("Whatever uses it is refused from the next request on.", "A revoked token cannot be brought back."),
        "edgekit fleet token revoke {name}",
        lambda page, name, _given: rest.revoke_token(page.ctx, page.caller, name),
        is_final=True,
    ),
    ("targets", "remove"): Act(
        "Remove target",
        ("It is told of nothing more; what waits to be sent to it is dropped.",),
        "edgekit fleet alerts",
        alerting.remove,
    ),
    ("users", "block"): Act(
        "Block",
        ("They are signed out, and cannot sign in until somebody unblocks them.",),
        "edgekit fleet user block {name}",
        lambda page, name, given: rest.block_user(page.ctx, page.caller, name, _why(given)),
        _REASON,
    ),
    ("users", "unblock"): Act(
        "Unblock",
        ("They can sign in again.",),
        "edgekit fleet user unblock {name}",
        lambda page, name, given: rest.unblock_user(page.ctx, page.caller, name, _why(given)),
        _REASON,
    ),
    ("users", "change"): Act(
        "Change",
        ("What is left empty stays as it is. It holds from their next request on.",),
        "edgekit fleet user change {name} --role operator",
        _change,
        (
            ("role", "Role: viewer, operator, publisher, admin", ""),
            ("scope", "Only devices with these labels", "site=lab"),
            ("expires", "Ends in", "90d"),
        ),
    ),
    ("users", "password"): Act(
        "Set password",
        ("The old one opens nothing any more, and they are signed out everywhere.",),
        "edgekit fleet user passwd {name}",
        lambda page, name, given: rest.set_password(
            page.ctx, page.caller, name, valid(api.NewPassword(given.one("password")))
        ),
        (("password", "New password", "at least 12 characters"),),
    ),
    ("users", "remove"): Act(
        "Remove",
        ("They are signed out and gone; the audit log still names them.",),
        "edgekit fleet user remove {name}",
        lambda page, name, _given: rest.remove_user(page.ctx, page.caller, name),
        is_final=True,
    ),
}


@router.get("/settings/{kind}/{name}/{verb}", include_in_schema=False)
def ask(page: On, kind: str, name: str, verb: str) -> Response:
    return _asked(page, kind, name, verb)


def _asked(page: Page, kind: str, name: str, verb: str, *, error: str = "", status: int = 200) -> Response:
    act = _act(kind, verb)
    return page.show(
        "act.html.jinja",
        status=status,
        title=f"{act.title} {name}",
        says=act.says,
        button=act.title,
        is_final=act.is_final,
        typed=name if act.is_final else "",
        profiles=[],
        asks_time=False,
        command=act.command.format(name=name),
        back="/settings",
        to=f"/settings/{kind}/{name}/{verb}",
        fields=act.fields,
        hidden={},
        error=error,
    )


@router.post("/settings/{kind}/{name}/{verb}", include_in_schema=False)
def do(page: On, kind: str, name: str, verb: str, given: Form) -> Response:
    if (kind, verb) == ("targets", "test"):
        try:
            return page.done("/settings", alerting.test(page, name))
        except EdgeKitError as error:
            return _show(page, error=str(error), status=error.http_status)
    act = _act(kind, verb)
    try:
        if act.is_final and given.one("typed") != name:
            raise UsageError(f"type {name} to say that you mean it; nothing was done")
        act.do(page, name, given)
    except EdgeKitError as error:
        return _asked(page, kind, name, verb, error=str(error), status=error.http_status)
    return page.done("/settings", f"{act.title} {name}: done.")


def _act(kind: str, verb: str) -> Act:
    """Raises: NotFoundError."""
    try:
        return ACTS[kind, verb]
    except KeyError as error:
        raise NotFoundError(f"there is nothing like {verb[:40]!r} to do here") from error
