"""The FastAPI application: routers, and errors as `{"error": {"code", "message"}}`."""

import logging
from functools import cache
from urllib.parse import quote

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from edgekit import __version__
from edgekit.errors import EdgeKitError
from fleet.api import ErrorAnswer, ErrorBody
from fleet.server.api import (
    access,
    alerts,
    assignments,
    audit,
    batches,
    blocked,
    commands,
    describe,
    devices,
    drift,
    enrolment,
    events,
    experiments,
    fleet,
    history,
    login,
    metadata,
    metrics,
    oidc,
    picking,
    releases,
    retry,
    rollouts,
    samples,
    shadows,
    terminal,
)
from fleet.server.api.admission import admit
from fleet.server.api.context import Context, UnauthenticatedError, answer
from fleet.server.api.repeats import once
from fleet.server.web import routes

log = logging.getLogger(__name__)


def make_app(context: Context) -> FastAPI:
    """The service's HTTP side; it keeps no state of its own."""
    app = FastAPI(
        title="EdgeKit fleet",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(admit), Depends(once)],
    )
    app.state.context = context
    # `retry` stands before the verbs of a rollout, whose path would take it in.
    for module in (
        fleet,
        access,
        audit,
        enrolment,
        batches,
        devices,
        commands,
        metadata,
        releases,
        picking,
        blocked,
        assignments,
        retry,
        rollouts,
        experiments,
        drift,
        history,
        samples,
        shadows,
        terminal,
        events,
        alerts,
        metrics,
    ):
        app.include_router(module.router)
    for pages in (login.router, oidc.router, terminal.page_router, routes.files, *routes.ROUTERS):
        app.include_router(pages)
    app.include_router(enrolment.device_router)
    app.include_router(releases.artifact_router)
    app.include_router(metadata.static_router)
    app.include_router(samples.device_router)

    @cache
    def described() -> bytes:
        # Anybody may ask for it, and it takes a while to make.
        return msgspec.json.encode(describe.document(app))

    @app.get("/openapi.json", include_in_schema=False)
    def description() -> Response:
        return Response(described(), media_type="application/json")

    app.add_exception_handler(EdgeKitError, _refused)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeKitError)
    if isinstance(error, UnauthenticatedError) and request.url.path == "/":
        return RedirectResponse("/login", 303)
    if routes.is_for_people(request):
        if isinstance(error, UnauthenticatedError) and request.method == "GET":
            there = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
            return RedirectResponse(f"/login?next={quote(there, safe='')}", 303)
        return routes.refused(request.app.state.context, request, error)
    return answer(ErrorAnswer(ErrorBody(error.code, str(error))), error.http_status)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return answer(ErrorAnswer(ErrorBody("usage", f"{request.method} {request.url.path}: {details}")), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, (HTTPException, StarletteHTTPException))
    if routes.is_for_people(request):
        context, title = request.app.state.context, "There is no such page"
        return routes.told(
            context, request, title, f"{request.url.path[:200]}: {error.detail}", error.status_code
        )
    message = f"{request.method} {request.url.path}: {error.detail}"
    return answer(ErrorAnswer(ErrorBody("http", message)), error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if routes.is_for_people(request):
        context, message = request.app.state.context, "the service failed on this request; its log says more"
        return routes.told(context, request, "That did not work", message, 500)
    return answer(ErrorAnswer(ErrorBody("internal", "the service failed on this request; see its log")), 500)
