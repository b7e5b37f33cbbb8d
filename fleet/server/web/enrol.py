"""Boards that join: a file for one or for many, who waits for a yes, and the files that are out."""

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, NotFoundError, UsageError
from fleet import api
from fleet.server.api import batches, enrolment
from fleet.server.web.device import download
from fleet.server.web.forms import Fields, Form, pairs, valid
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])
_FIELDS = ("device", "count", "serials", "deployments", "labels", "expires")


@router.get("/enrol", include_in_schema=False)
def show(page: On) -> Response:
    return _show(page)


def _show(page: Page, *, given: dict[str, str] | None = None, error: str = "", status: int = 200) -> Response:
    waiting = msgspec.json.decode(
        enrolment.waiting(page.ctx, page.caller, page.whole).body, type=list[api.Waiting]
    )
    refused = page.why_not("POST", "/enrol/batches/{batch}/revoke")
    files = (
        []
        if refused
        else msgspec.json.decode(batches.listing(page.ctx, page.whole).body, type=list[api.BatchView])
    )
    return page.show(
        "enrol.html.jinja",
        status=status,
        waiting=waiting,
        batches=files,
        given=given or dict.fromkeys(_FIELDS, "") | {"expires": "7d"},
        error=error,
    )


@router.post("/enrol", include_in_schema=False)
def make(page: On, given: Form) -> Response:
    """The file, to be saved."""
    try:
        return _made(page, given)
    except EdgeKitError as error:
        filled = {name: given.one(name) for name in _FIELDS}
        return _show(page, given=filled, error=str(error), status=error.http_status)


def _made(page: Page, given: Fields) -> Response:
    deployments = tuple(part.strip() for part in given.one("deployments").split(",") if part.strip())
    if not deployments:
        raise UsageError("which model slots has it? write one name or some, e.g. digits")
    labels, expires = pairs(given.one("labels"), "label"), given.one("expires")
    asks = given.has("needs_approval")
    if device := given.one("device"):
        one = valid(api.NewDevice(device, deployments, labels, expires, asks))
        return download(page, enrolment.invite(page.ctx, page.caller, one), device)
    serials = tuple(name for line in given.one("serials").splitlines() if (name := line.strip()))
    count = given.number("count", "how many") or len(serials)
    if not count:
        raise UsageError("name one device, or say how many may join, or list their names")
    many = valid(api.NewBatch(count, deployments, labels, expires, serials, asks))
    return download(page, enrolment.batch(page.ctx, page.caller, many), f"batch-of-{count}")


@router.post("/enrol/waiting/{device}/{verb}", include_in_schema=False)
def decide(page: On, device: str, verb: str, _given: Form) -> Response:
    acts = {"approve": enrolment.approve, "reject": enrolment.reject}
    if verb not in acts:
        raise NotFoundError(f"there is nothing like {verb[:40]!r} to do to who waits")
    acts[verb](page.ctx, page.caller, device)
    return page.done("/enrol", f"{device} {'may join' if verb == 'approve' else 'is turned away'}.")


@router.post("/enrol/batches/{batch}/revoke", include_in_schema=False)
def revoke(page: On, batch: str, _given: Form) -> Response:
    batches.revoke(page.ctx, page.caller, batch)
    return page.done("/enrol", f"Nobody joins by {batch} any more; who has joined stays.")
