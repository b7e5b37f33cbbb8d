"""One device: what it should run, what it runs, why not; its day, its history, and what can be done to it."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, NotFoundError, UsageError
from edgekit.wire.commands import Restart, SelfTest
from fleet import api
from fleet.server.api import devices as rest
from fleet.server.api import enrolment, retry
from fleet.server.api.matching import Expected
from fleet.server.store import devices as device_store
from fleet.server.store import glance, history, releases
from fleet.server.store.glance import Look
from fleet.server.web import asked, charts
from fleet.server.web.auditing import lines
from fleet.server.web.forms import Fields, Form, pairs, valid
from fleet.server.web.frame import On, Page, headers

router = APIRouter(tags=["page"])
_DAY_S = 86_400.0
_ENTRIES = 30


@router.get("/devices/{device}", include_in_schema=False)
def show(page: On, device: str) -> Response:
    ctx, now = page.ctx, page.ctx.clock()
    told = msgspec.json.decode(rest.explain(ctx, page.caller, device).body, type=api.Explanation)
    with ctx.database.read() as connection:
        row = page.caller.device(connection, device)
        points = history.of_device(connection, device, now - _DAY_S, now)
        titles = releases.titles(connection, sorted({point.digest for point in points}))
        changes = lines(glance.entries(connection, Look(subject=device), _ENTRIES))
        reported = device_store.reported_of(row)
        commands = asked.of_device(connection, device)
        samples = asked.samples_of(connection, device, now)
        shadows = asked.shadows_of(connection, device)
    view = told.device
    return page.show(
        "device.html.jinja",
        device=view,
        state=glance.state_of(row),
        lines=told.lines,
        reported=reported,
        charts={name: charts.of_device(points, name, titles) for name in view.deployments},
        history=changes,
        commands=commands,
        samples=samples,
        shadows=shadows,
        verbs=[(verb, act.title) for verb, act in ACTS.items()],
        refused=page.why_not("POST", "/devices/{device}/{verb}"),
    )


class Act(NamedTuple):
    """`fields` are (name, label, hint) of what it asks for; `is_final`: the name is to be typed."""

    title: str
    button: str
    says: tuple[str, ...]
    command: str
    fields: tuple[tuple[str, str, str], ...] = ()
    is_final: bool = False


_WHY = (("reason", "Why (for the audit log)", ""),)
ACTS: dict[str, Act] = {
    "labels": Act(
        "Change labels",
        "Change them",
        ("It leaves what is assigned to its old place, and follows what is assigned to the new one.",),
        "edgekit fleet device label {device} site=lab room-",
        (
            ("labels", "Labels to set", "site=lab, room=2"),
            ("remove", "Labels to take away", "floor, rack"),
        ),
    ),
    "retry": Act(
        "Try again",
        "Tell it to try again",
        (
            "What it holds against what it is ordered to run is forgotten, and the same order goes out once more.",
        ),
        "edgekit fleet device retry {device}",
    ),
    "self-test": Act(
        "Run the self-test",
        "Have it run the self-test",
        (
            "What it serves runs its golden inputs once more, beside what it answers, and says what came of it.",
            "It is asked within the hour, as soon as it is online.",
        ),
        "edgekit fleet device command self-test {device}",
    ),
    "restart": Act(
        "Restart the agent",
        "Restart it",
        (
            "The agent starts anew with the same words; requests that it has begun are answered first.",
            "It is asked within the hour, as soon as it is online.",
        ),
        "edgekit fleet device command restart {device}",
    ),
    "deployments": Act(
        "Add a deployment",
        "Add it",
        ("It gets one more model slot. Its next order says so, and goes out now.",),
        "edgekit fleet deployment add {device} NAME",
        (("deployment", "Name of the model slot", "digits"),),
    ),
    "replace": Act(
        "Replace the board",
        "Make the enrolment file",
        (
            "An enrolment file for a new card or board is made and downloaded once; keep it as you would a password.",
            "It has the same labels and deployments as before.",
            "The old board is let go when the new one has enrolled.",
        ),
        "edgekit fleet device replace {device} --out {device}.json",
        (("expires", "How long the file works", "7d"),),
    ),
    "revoke": Act(
        "Revoke its identity",
        "Take its identity away",
        (
            "It is cut off from the fleet at once: it goes on serving what it runs, and is neither heard nor told anything.",
            "Only a new enrolment file, carried to it, lets it come back.",
        ),
        "edgekit fleet device revoke {device}",
        _WHY,
        is_final=True,
    ),
    "decommission": Act(
        "Take out of service",
        "Take it out of service",
        (
            "Its identity is taken away, nothing is ordered of it, and it leaves lists and rollouts.",
            "Its history stays, and its name may enrol again.",
        ),
        "edgekit fleet device decommission {device}",
        _WHY,
        is_final=True,
    ),
    "delete": Act(
        "Delete",
        "Delete it for good",
        (
            "It is taken out of service, and forgotten: only the audit log and ended rollouts still name it.",
            "This cannot be taken back.",
        ),
        "edgekit fleet device delete {device}",
        _WHY,
        is_final=True,
    ),
}


@router.get("/devices/{device}/{verb}", include_in_schema=False)
def ask(page: On, device: str, verb: str) -> Response:
    return _asked(page, device, verb)


def _asked(page: Page, device: str, verb: str, *, error: str = "", status: int = 200) -> Response:
    act = _act(verb)
    with page.ctx.database.read() as connection:
        page.caller.device(connection, device)
    return page.show(
        "act.html.jinja",
        status=status,
        title=f"{act.title}: {device}",
        says=act.says,
        button=act.button,
        is_final=act.is_final,
        typed=device if act.is_final else "",
        profiles=[],
        asks_time=False,
        command=act.command.format(device=device),
        back=f"/devices/{device}",
        to=f"/devices/{device}/{verb}",
        fields=act.fields,
        hidden={},
        error=error,
    )


@router.post("/devices/{device}/{verb}", include_in_schema=False)
def do(page: On, device: str, verb: str, given: Form) -> Response:
    act = _act(verb)
    try:
        if act.is_final and given.one("typed") != device:
            raise UsageError(f"type {device} to say that you mean this device; nothing was done")
        if verb == "replace":
            wanted = valid(api.Replacement(given.one("expires")))
            return download(page, enrolment.replace(page.ctx, page.caller, device, wanted), device)
        _DO[verb](page, device, given)
    except EdgeKitError as error:
        return _asked(page, device, verb, error=str(error), status=error.http_status)
    is_gone = verb in ("decommission", "delete")
    return page.done("/devices" if is_gone else f"/devices/{device}", f"{device}: {act.title.lower()}: done.")


def download(page: Page, made: Response, name: str) -> Response:
    """An enrolment file as something to save: it is a secret, and told this once."""
    made.headers.update(headers(page.ctx))
    made.headers["Content-Disposition"] = f'attachment; filename="{name}.json"'
    return made


def _labels(page: Page, device: str, given: Fields) -> None:
    gone = tuple(part.strip() for part in given.one("remove").split(",") if part.strip())
    wanted = valid(api.NewLabels(pairs(given.one("labels"), "label"), gone))
    if not (wanted.labels or wanted.remove):
        raise UsageError("write labels to set (site=lab) or to take away (site)")
    rest.relabel(page.ctx, page.caller, Expected(), device, wanted)


def _why(given: Fields) -> api.Reason:
    return valid(api.Reason(given.one("reason")))


_DO: dict[str, Callable[[Page, str, Fields], object]] = {
    "labels": _labels,
    "retry": lambda page, device, _given: retry.retry_device(
        page.ctx, page.caller, device, api.RetryDevice()
    ),
    "self-test": lambda page, device, _given: asked.ask(page.ctx, page.caller, device, SelfTest()),
    "restart": lambda page, device, _given: asked.ask(page.ctx, page.caller, device, Restart()),
    "deployments": lambda page, device, given: rest.add_deployment(
        page.ctx, page.caller, device, valid(api.NewDeployment(given.one("deployment")))
    ),
    "revoke": lambda page, device, given: rest.revoke(page.ctx, page.caller, device, _why(given)),
    "decommission": lambda page, device, given: rest.decommission(page.ctx, page.caller, device, _why(given)),
    "delete": lambda page, device, given: rest.delete(page.ctx, page.caller, device, _why(given)),
}


def _act(verb: str) -> Act:
    """Raises: NotFoundError."""
    try:
        return ACTS[verb]
    except KeyError as error:
        raise NotFoundError(f"there is nothing like {verb[:40]!r} to do to a device") from error
