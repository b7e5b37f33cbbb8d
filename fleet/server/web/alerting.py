"""Alerts that stand, and whom they are told."""

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError
from fleet import api
from fleet.server.api import alerts as rest
from fleet.server.store import alert_targets
from fleet.server.web.forms import Fields, Form, body
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])


def targets(page: Page) -> list[api.TargetView]:
    """Nothing for whom they are not for."""
    if page.why_not("GET", "/api/v1/alert-targets"):
        return []
    with page.ctx.database.read() as connection:
        return alert_targets.listing(connection)


@router.post("/alerts/{alert}/acknowledge", include_in_schema=False)
def acknowledge(page: On, alert: str, _given: Form) -> Response:
    """Note that a person has seen it."""
    try:
        rest.acknowledge(page.ctx, page.caller, alert, api.Reason())
    except EdgeKitError as error:
        return page.done("/", f"Not done: {error}")
    return page.done("/", "The others see that you have seen it.")


def add(page: Page, given: Fields) -> str:
    """A target of what was filled in; its name. Raises: UsageError."""
    kind = given.one("kind")
    webhook = mail = None
    if kind == "webhook":
        webhook = api.Webhook(given.one("url"), given.one("secret"))
    elif kind == "smtp":
        recipients = tuple(part.strip() for part in given.one("recipients").split(",") if part.strip())
        mail = api.Mail(
            given.one("server"),
            given.one("sender"),
            recipients,
            given.one("user"),
            given.one("mail_password"),
        )
    events = ("alerts", "retraining") if given.has("retraining") else ("alerts",)
    fields = {
        "name": given.one("name"),
        "kind": kind,
        "webhook": msgspec.to_builtins(webhook),
        "mail": msgspec.to_builtins(mail),
        "severity": given.one("severity") or "warning",
        "events": events,
    }
    rest.add_target(page.ctx, page.caller, body(api.NewTarget, fields))
    return given.one("name")


def remove(page: Page, name: str, _given: Fields) -> object:
    return rest.remove_target(page.ctx, page.caller, name)


def test(page: Page, name: str) -> str:
    """What came of a message that was sent now."""
    tried = msgspec.json.decode(rest.test_target(page.ctx, page.caller, name).body, type=api.TargetTried)
    return f"{name} {'has it' if tried.has_arrived else 'has not got it'}: {tried.words}"
