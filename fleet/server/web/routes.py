"""All routes of the page, our two files, and errors as people read them."""

import html

from fastapi import APIRouter, Request, Response

from edgekit.errors import EdgeKitError, NotFoundError
from fleet.server.api.context import Context, UnauthenticatedError
from fleet.server.web import (
    alerting,
    auditing,
    device,
    devices,
    drift,
    enrol,
    experiments,
    overview,
    releases,
    rollouts,
    setting,
    turns,
    words,
)
from fleet.server.web.frame import assets, bare

# A name that means something stands before one that takes any.
ROUTERS = tuple(
    part.router
    for part in (
        overview,
        rollouts,
        turns,
        devices,
        device,
        enrol,
        releases,
        drift,
        experiments,
        auditing,
        setting,
        alerting,
    )
)
_MACHINES = ("/api/", "/v1/", "/artifacts/", "/tuf/", "/openapi.json")
files = APIRouter(tags=["page"])


@files.get("/assets/{file}", include_in_schema=False)
def asset(file: str) -> Response:
    """Its name changes with its content, so it may be kept for ever."""
    found = assets().get(file)
    if found is None:
        raise NotFoundError(f"there is no file {file[:80]!r} here")
    kind, content = found
    kept = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=kind, headers=kept)


def is_for_people(request: Request) -> bool:
    """Whether who asks is a browser that shows a page."""
    is_machine = request.url.path.startswith(_MACHINES) or "x-fragment" in request.headers
    return not is_machine and "text/html" in request.headers.get("accept", "")


def told(ctx: Context, request: Request, title: str, message: str, status: int) -> Response:
    """What went wrong, and the way back."""
    content = f"<p>{html.escape(words.sentence(message))}</p><p><a href='/'>To the overview</a></p>"
    return bare(ctx, title, content, status=status, request=request)


def refused(ctx: Context, request: Request, error: EdgeKitError) -> Response:
    titles = {403: "You may not do this", 404: "There is no such page"}
    title = (
        "Please sign in"
        if isinstance(error, UnauthenticatedError)
        else titles.get(error.http_status, "That did not work")
    )
    return told(ctx, request, title, str(error), error.http_status)
