"""The stream of what changes (`fleet.server.events`)."""

from typing import Annotated

from fastapi import Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from edgekit.errors import AuthError
from fleet.server.api.admission import Caller, Principal, admitted
from fleet.server.api.context import Ctx
from fleet.server.api.routing import Router, raw

router = Router(prefix="/api/v1", tags=["events"])

_STREAM = raw(
    "A stream without end: `event: changed` with a `Change` as `data`; a comment line every 15 s.",
    "text/event-stream",
)
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get("/events", responses=_STREAM)
async def watch(
    request: Request,
    ctx: Ctx,
    caller: Caller,
    last: Annotated[
        str,
        Header(
            alias="Last-Event-ID",
            pattern="^[0-9]{0,18}$",
            description="The newest event that you have heard.",
        ),
    ] = "",
    since: Annotated[
        int | None,
        Query(
            ge=0,
            lt=10**18,
            description="The same at the first connection, where a browser sends no header of ours; the header counts more.",
        ),
    ] = None,
) -> StreamingResponse:
    """What changes, as server-sent events. Access that is scoped is told the kind, and no names."""
    ctx.hub.check_room()

    async def may_still() -> bool:
        return await run_in_threadpool(_is_still, request, ctx, caller)

    stream = ctx.hub.stream(int(last) if last else since, may_still, hides_names=caller.scope.is_limited)
    return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)


def _is_still(request: Request, ctx: Ctx, caller: Principal) -> bool:
    """Whether who asked may still watch, and reaches as far as they did."""
    try:
        found = admitted(request, ctx)
    except AuthError:
        return False
    return (found.role, found.scope) == (caller.role, caller.scope)
