"""Routes of `/api/v1`: what all of them have in common, around what each does.

Always true
 1. What a route answers stands in its annotation, `Answer[…]`; `describe` tells it, and mypy holds the endpoint to it.
 2. Every such answer to a read has an `ETag` (`matching`); every POST of a caller may carry a key (`repeats`).
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from fleet.server.api import matching, repeats
from fleet.server.api.context import Answer

Responses = dict[int | str, dict[str, Any]]
# Of routes that answer 201 where something came to be.
DRY_RUN: Responses = {200: {"description": "What would be done; nothing was (`dry_run`)."}}
WAS_SO: Responses = {200: {"description": "It was so before; nothing changed."}}
KIND = "x-kind"


def other(status: int, description: str, kind: type[Any]) -> Responses:
    """A further answer of a route, of another kind (of `fleet.api`) than the usual one."""
    return {status: {"description": description, KIND: kind.__name__}}


def raw(description: str, media_type: str, *, status: int = 200) -> Responses:
    """An answer that is no JSON of ours: a file, a stream."""
    return {status: {"description": description, "content": {media_type: {}}}}


class Route(APIRoute):
    """See the module."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        # The annotation is for `describe`: FastAPI would want to make its own models of it.
        super().__init__(path, endpoint, **{**more, "response_model": None})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handle(request)
            except repeats.ReplayedError as replayed:
                return replayed.response
            except BaseException:
                await repeats.failed(request)
                raise
            await repeats.done(request, response)
            is_read = request.method == "GET" and response.status_code == 200
            return (
                matching.unless_known(request, response)
                if is_read and isinstance(response, Answer)
                else response
            )

        return handled


class Router(APIRouter):
    def __init__(self, **more: Any) -> None:
        super().__init__(route_class=Route, generate_unique_id_function=operation_id, **more)


def operation_id(route: APIRoute) -> str:
    """Of method and path: it stays the same whatever the function behind it is called."""
    words = route.path.removeprefix("/api/v1").replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([*sorted(m.lower() for m in route.methods or ()), *filter(None, words)])


def of(app: Any) -> Mapping[tuple[str, str], Any]:
    """Every route of an application by method and path, also where the framework keeps included routers as they are."""
    found = {}
    for route in app.routes:
        inside = getattr(route, "effective_route_contexts", None)
        for one in inside() if inside is not None else (route,):
            for method in (getattr(one, "methods", None) or set()) - {"HEAD"}:
                found[method, one.path] = one
    return found
