"""Alerts that stand, and whom they are told."""

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, UsageError
from fleet import api
from fleet.server.api import alerts as rest
from fleet.server.store import alert_targets
from fleet.server.web.forms import Fields, Form
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])


def targets(page: Page) -> list[api.TargetView]:
    """Nothing for whom they are not for."""
    if page.why_not("GET", "/api/v1/alert-targets"):
        return []
    with page.ctx.database.read() as connection:
        return list(alert_targets.listing(connection))


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
    wanted = _filled(given)
    rest.add_target(page.ctx, page.caller, wanted)
    return wanted.name


def _filled(given: Fields) -> api.NewTarget:
    """Raises: UsageError."""
    kind = given.one("kind")
    fields: dict[str, object] = {
        "name": given.one("name"),
        "kind": kind,
        "severity": given.one("severity") or "warning",
        "events": ("alerts", "retraining") if given.has("retraining") else ("alerts",),
    }
    if kind == "webhook":
        fields["webhook"] = {"url": given.one("url"), "secret": given.one("secret")}
    elif kind == "smtp":
        recipients = [part.strip() for part in given.one("recipients").split(",") if part.strip()]
        fields["mail"] = {
            "server": given.one("server"),
            "sender": given.one("sender"),
            "recipients": recipients,
            "user": given.one("user"),
            "password": given.one("mail_password"),
        }
    try:
        return msgspec.convert(fields, api.NewTarget)
    except msgspec.ValidationError as error:
        raise UsageError(f"target: {error}") from error


def remove(page: Page, name: str, _given: Fields) -> object:
    return rest.remove_target(page.ctx, page.caller, name)


def test(page: Page, name: str) -> str:
    """What came of a message that was sent now."""
    tried = msgspec.json.decode(rest.test_target(page.ctx, page.caller, name).body, type=api.TargetTried)
    return f"{name} has {'it' if tried.has_arrived else 'not got it'}: {tried.words}"
