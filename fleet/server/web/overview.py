"""The first page: whether anything is wrong, and if so what to do; searching; the fleet's stop button; the theme."""

import re
from collections.abc import Container
from typing import NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Connection

from edgekit.errors import EdgeKitError
from fleet import api
from fleet.rules.rollout import Status
from fleet.server.api import fleet as rest
from fleet.server.store import approvals, devices, glance, releases
from fleet.server.store.glance import Browse, DeviceCounts, Look
from fleet.server.web import memory, rollouts, track, words
from fleet.server.web.auditing import Line, gathered
from fleet.server.web.forms import Form, valid
from fleet.server.web.frame import THEME, THEMES, On, Page, headers, link
from fleet.server.web.rollouts import Card

router = APIRouter(tags=["page"])
_DAY_S = 86_400.0
# Lines of changes, and entries that are read to make them.
_SHOWN, _READ = 12, 300
_ROLLOUT = re.compile(r"r[0-9]{1,9}")
# What is settled on which page.
_WAYS = {"drift": "/drift", "expiring": "/settings"}
_OF_DEVICES = ("device-silent", "device-copied")
# What there is to find of each kind.
_FOUND = 30


class Need(NamedTuple):
    """Something that a person should look at. `kind` as in `words`; `to` is where it is settled."""

    kind: str
    text: str
    way: str
    to: str


@router.get("/", include_in_schema=False)
def home(page: On) -> Response:
    scope = page.caller.scope.text
    with page.ctx.database.read() as connection:
        kept = memory.of(page.ctx.database)
        counts = kept.counted(("devices", scope), lambda: glance.device_counts(connection, scope))
        heads = [head for head in glance.active_heads(connection) if rollouts.is_seen(connection, page, head)]
        active = [rollouts.card(connection, page, head) for head in heads]
        alerts = page.alerts(connection)
        waiting = _waiting(connection, page)
        audit = "" if page.why_not("GET", "/audit") else "yes"
        changes = _changes(connection, page) if audit else []
    return page.show(
        "overview.html.jinja",
        counts=counts,
        bar=_bar(counts),
        active=active,
        alerts=alerts,
        needs=_needs(page, counts, active, waiting, {one.subject for one in alerts}),
        ways={one.id: way for one in alerts if (way := _way(one))},
        changes=changes,
        sees_audit=bool(audit),
        refused_acknowledge=page.why_not("POST", "/alerts/{alert}/acknowledge"),
        refused_freeze=page.why_not("POST", "/freeze"),
    )


def _changes(connection: Connection, page: Page) -> list[Line]:
    """Of the last day, the newest first; who came and went is in the audit log."""
    entries = glance.entries(connection, Look(), _READ, page.ctx.clock() - _DAY_S)
    return gathered(entry for entry in entries if not entry.action.startswith("session."))[:_SHOWN]


def _way(alert: api.AlertView) -> str:
    """Where what an alert is about can be looked at and settled; empty where the page has no such place."""
    if _ROLLOUT.fullmatch(alert.subject):
        return f"/rollouts/{alert.subject}"
    if alert.kind in _OF_DEVICES and not alert.subject.endswith("*"):
        return f"/devices/{quote(alert.subject, safe='')}"
    return _WAYS.get(alert.kind, "")


def _waiting(connection: Connection, page: Page) -> int:
    if page.why_not("GET", "/enrol"):
        return 0
    return len(approvals.waiting(connection))


def _bar(counts: DeviceCounts) -> tuple[track.Part, ...]:
    shown = [(words.state(name), name) for name in DeviceCounts._fields]
    return track.bar([(state.kind, name, getattr(counts, name)) for state, name in shown])


def _needs(
    page: Page, counts: DeviceCounts, active: list[Card], waiting: int, told_already: Container[str]
) -> list[Need]:
    """What asks for a person, the worst first; rollouts of which an alert tells not again."""
    found = []
    if not page.ctx.link.is_connected and page.ctx.is_controller():
        found.append(
            Need(
                words.BAD,
                "The service is not connected to its broker: it hears no device.",
                "see Settings",
                "/settings",
            )
        )
    if counts.cloned:
        told = f"{words.devices(counts.cloned)} {'speaks' if counts.cloned == 1 else 'speak'} from two machines at once."
        found.append(Need(words.BAD, told, "look at them", link("/devices", state="cloned")))
    for one in active:
        to = f"/rollouts/{one.head.label}"
        if one.head.label in told_already:
            continue
        if one.head.status is Status.PAUSED:
            why = words.sentence(one.head.reason)
            found.append(
                Need(words.ASKS, f"Rollout {one.head.label} of {one.title} is paused. {why}", "decide", to)
            )
        elif one.head.awaits is not None:
            step = one.head.awaits + 1
            told = f"Rollout {one.head.label} of {one.title} waits for somebody to approve stage {step}."
            found.append(Need(words.ASKS, told, "decide", to))
    if waiting:
        told = (
            f"{words.devices(waiting)} asked to join and {'waits' if waiting == 1 else 'wait'} for your yes."
        )
        found.append(Need(words.ASKS, told, "decide", "/enrol"))
    return found


@router.get("/search", include_in_schema=False)
def search(page: On, q: str = "") -> Response:
    """To the one thing of that name, or what has it in its name."""
    text = q.strip()[:100]
    with page.ctx.database.read() as connection:
        row = devices.find(connection, text) if text else None
        if row is not None and row.deleted_at is None and page.caller.reaches(devices.labels_of(row)):
            return page.done(f"/devices/{row.id}")
        if text[:1] == "r" and text[1:].isdigit() and glance.head(connection, int(text[1:10])) is not None:
            return page.done(f"/rollouts/{text}")
        known = [(one.name, one.version) for one in releases.everything(connection)]
        rows, _ = (
            glance.browse(connection, Browse(page.caller.scope.text, text), _FOUND) if text else ([], "")
        )
        named = [one for one in known if text and text.lower() in releases.title(*one).lower()]
        if len(named) == 1 and not rows:
            return page.done(f"/releases/{named[0][0]}/{named[0][1]}")
        return page.show(
            "search.html.jinja",
            q=text,
            rows=[(row.id, row.profile, glance.state_of(row)) for row in rows],
            named=named[:_FOUND],
            most=_FOUND,
        )


@router.post("/theme", include_in_schema=False)
def theme(page: On, given: Form) -> Response:
    """How this browser shows the pages; nothing of the fleet changes."""
    back, wanted = given.one("back"), given.one("theme")
    response = RedirectResponse(back if back.startswith("/") and not back.startswith("//") else "/", 303)
    response.headers.update(headers(page.ctx))
    if wanted in THEMES:
        # Not HttpOnly: the switch of our own script sets it too.
        response.set_cookie(THEME, wanted, max_age=31_536_000, path="/", samesite="lax")
    return response


@router.get("/freeze", include_in_schema=False)
def ask_freeze(page: On) -> Response:
    return _freeze(page)


def _freeze(page: Page, *, error: str = "", status: int = 200) -> Response:
    with page.ctx.database.read() as connection:
        active = len(glance.active_heads(connection))
    is_frozen = rest.is_frozen(page.ctx)
    stops = words.either(active, "The one rollout under way stops", "The {n} rollouts under way stop")
    freezes = [
        "No rollout starts, moves on or is judged, and no assignment is followed, until somebody thaws the fleet.",
        f"{stops} there; it can still be rolled back." if active else "No rollout is under way now.",
        "Devices go on serving what they run.",
    ]
    thaws = ["Rollouts and assignments go on where they were.", "Devices that are due get their orders."]
    return page.show(
        "act.html.jinja",
        status=status,
        title="Thaw the fleet" if is_frozen else "Freeze the fleet",
        says=thaws if is_frozen else freezes,
        button="Thaw it" if is_frozen else "Freeze it",
        is_final=False,
        typed="",
        profiles=[],
        asks_time=False,
        command=f"edgekit fleet {'unfreeze' if is_frozen else 'freeze'}",
        back="/",
        to="/freeze",
        fields=(("reason", "Why (for the audit log)", ""),),
        hidden={"frozen": "no" if is_frozen else "yes"},
        error=error,
    )


@router.post("/freeze", include_in_schema=False)
def freeze(page: On, given: Form) -> Response:
    wanted = api.Freeze(given.one("frozen") == "yes", given.one("reason"))
    try:
        rest.freeze(page.ctx, page.caller, valid(wanted))
    except EdgeKitError as error:
        return _freeze(page, error=str(error), status=error.http_status)
    return page.done("/", "The fleet is frozen." if wanted.is_frozen else "The fleet goes on.")
