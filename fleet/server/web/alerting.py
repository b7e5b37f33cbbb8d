"""Alerts that stand, and whom they are told, where the service watches over the fleet (`others`)."""

import importlib
from typing import Any

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, NotFoundError
from fleet import api
from fleet.server.web import others
from fleet.server.web.forms import Fields, Form, valid
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])


def _rest() -> Any:
    """The API's endpoints. Raises: NotFoundError where there are none."""
    if not others.has_alerts():
        raise NotFoundError("this service has no alerts")
    return importlib.import_module("fleet.server.api.alerts")


def targets(page: Page) -> list[Any]:
    """`fleet.api.TargetView`s; nothing for whom they are not for."""
    if not others.has_alerts() or page.why_not("GET", "/api/v1/alert-targets"):
        return []
    store = importlib.import_module("fleet.server.store.alert_targets")
    with page.ctx.database.read() as connection:
        return list(store.listing(connection))


@router.post("/alerts/{alert}/acknowledge", include_in_schema=False)
def acknowledge(page: On, alert: str, _given: Form) -> Response:
    """Note that a person has seen it."""
    try:
        _rest().acknowledge(page.ctx, page.caller, alert, api.Reason())
    except EdgeKitError as error:
        return page.done("/", f"Not done: {error}")
    return page.done("/", "The others see that you have seen it.")


def add(page: Page, given: Fields) -> str:
    """A target of what was filled in; its name. Raises: UsageError."""
    bodies: Any = importlib.import_module("fleet.api.alerts")
    rest, kind = _rest(), given.one("kind")
    webhook = mail = None
    if kind == "webhook":
        webhook = bodies.Webhook(given.one("url"), given.one("secret"))
    elif kind == "smtp":
        recipients = tuple(part.strip() for part in given.one("recipients").split(",") if part.strip())
        mail = bodies.Mail(
            given.one("server"),
            given.one("sender"),
            recipients,
            given.one("user"),
            given.one("mail_password"),
        )
    events = ("alerts", "retraining") if given.has("retraining") else ("alerts",)
    wanted = bodies.NewTarget(
        given.one("name"), kind, webhook, mail, given.one("severity") or "warning", events
    )
    rest.add_target(page.ctx, page.caller, valid(wanted))
    return given.one("name")


def remove(page: Page, name: str, _given: Fields) -> object:
    return _rest().remove_target(page.ctx, page.caller, name)


def test(page: Page, name: str) -> str:
    """What came of a message that was sent now."""
    tried: Any = msgspec.json.decode(_rest().test_target(page.ctx, page.caller, name).body)
    said = str(tried["words"])
    return f"{name} has it: {said}" if tried["has_arrived"] else f"{name} has not got it: {said}"
