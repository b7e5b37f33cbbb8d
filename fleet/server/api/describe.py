"""The OpenAPI 3.1 document of the service, made from what its routes really read and answer.

FastAPI knows paths and parameters. The rest follows from the code that serves: bodies from the dependency that reads them
(`context.Body`), answers from the endpoints' annotations (`context.Answer`), who may from `fleet.rules.access.RULES`,
schemas from the structs themselves (msgspec), examples from `fleet.api.examples`. Nothing is written down twice.

Always true
 1. Every route under `/api/v1`, and every one that devices use, is in it.
 2. Every status that a route may answer is in it, errors by what the route does: `_refusals`.
"""

import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from edgekit import errors
from edgekit.errors import EdgeKitError
from fleet import api
from fleet.api.examples import EXAMPLES
from fleet.rules.access import RULES, Open, Rule
from fleet.server.api import matching, repeats, routing
from fleet.server.api.context import Answer, Body

API_VERSION = "1"
_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_ABOUT = """\
The interface of an EdgeKit fleet: devices, releases, rollouts, and who may do what.

**Versions.** `/api/v1` gains routes, fields and values, and loses none; a client ignores what it does not know.
**Who asks.** `Authorization: Bearer …` with a token (`edgekit fleet token add`), or the page's session. Roles: viewer,
operator, publisher, admin, each may do all that the ones before it may; access may be scoped to devices by their labels.
**Pages.** Lists take `limit` and `after`; where there may be more, the header `Link` has the next page (`rel="next"`).
**Reads** carry an `ETag`; with `If-None-Match` what you have already is answered by 304.
**Repeats.** A POST with an `Idempotency-Key` is done once, however often it is sent within a day.
**Two people at once.** What can be decided about carries a `tag`; sent back as `If-Match`, a decision about what has
changed meanwhile is refused with 412.
**Errors** are `{"error": {"code", "message"}}`: `code` is for programs and stays, `message` is for people.
**Live.** `GET /api/v1/events` is a stream of server-sent events that say what changed, never how.
"""
SECURITY_SCHEMES: Mapping[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token, or the session of a terminal."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-edgekit",
        "description": "The page's session; named `edgekit` where the service is on loopback without TLS.",
    },
    "csrf": {
        "type": "apiKey",
        "in": "header",
        "name": "X-CSRF-Token",
        "description": "With a session: what the page holds, so that no other site's page changes anything.",
    },
    "deviceCertificate": {
        "type": "mutualTLS",
        "description": "The certificate that the device enrolled for.",
    },
    "deviceCredential": {
        "type": "http",
        "scheme": "bearer",
        "description": "The device's credential, where a proxy ends TLS.",
    },
}
# Routes that devices use with an identity; the others that are open ask for no scheme.
_DEVICES = {("POST", "/v1/renew"), ("GET", "/artifacts/{sha256}"), ("PUT", "/v1/samples/{sha256}")}
# What a device brings: its own bounds, and what it is for may be over.
_BROUGHT = {("PUT", "/v1/samples/{sha256}")}
_HEADERS: Mapping[str, Mapping[str, Any]] = {
    repeats.HEADER: {
        "description": "Yours to choose, best a random UUID: the request is done once, however often it is sent.",
        "schema": {"type": "string", "pattern": repeats.PATTERN},
        "example": '"4f0c6c1e-8a3b-4b86-9c25-0d6f3a2f8b11"',
    },
    matching.IF_MATCH: {
        "description": "The `tag` that you decided by, in quotes: 412 if it is another by now.",
        "schema": {"type": "string", "pattern": matching.PATTERN},
    },
    matching.IF_NONE_MATCH: {
        "description": "The `ETag` of what you have: 304 if it is still that.",
        "schema": {"type": "string", "pattern": matching.PATTERN},
    },
}
_ETAG = {"ETag": {"schema": {"type": "string"}, "description": "Of just these bytes, for `If-None-Match`."}}
_LINK = {
    "Link": {
        "schema": {"type": "string"},
        "description": 'The next page, `rel="next"`, where there may be one.',
    }
}
_WORDS = {
    400: "What was sent makes no sense; `message` says where.",
    401: "Nobody, or an identity that is no longer good.",
    403: "Not with this role, or not outside of this scope.",
    404: "There is no such thing, or none within your scope.",
    409: "It contradicts what is there, or cannot be done as things stand.",
    410: "What this is for is over, and does not come back.",
    412: "What you decide about has changed since you looked.",
    413: "Larger than is read.",
    422: "The `Idempotency-Key` was another request's; or what a device brings is no sample.",
    500: "The service failed on this; its log says why.",
    503: "Something that this needs is away (a key's token, the database); later it may work.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document; the same for every fleet of this version."""
    routes = {
        key: route
        for key, route in routing.of(app).items()
        if getattr(route, "include_in_schema", False) and key in RULES
    }
    found: dict[str, Any] = get_openapi(
        title=app.title,
        version=API_VERSION,
        summary=f"EdgeKit {app.version}",
        description=_ABOUT,
        routes=app.routes,
    )
    schemas = _Schemas(kind for route in routes.values() for kind in _kinds(route))
    for (method, path), route in routes.items():
        operation = found["paths"][path][method.lower()]
        _complete(operation, method, path, route, schemas)
    found["components"] = {
        "schemas": {**_of_parameters(found), **schemas.components},
        "responses": {f"Error{status}": _error(status) for status in _WORDS},
        "securitySchemes": dict(SECURITY_SCHEMES),
    }
    return found


def _of_parameters(found: dict[str, Any]) -> dict[str, Any]:
    """The schemas that FastAPI's parameters refer to; its own answer to what is invalid is none that is given here."""
    known = found.get("components", {}).get("schemas", {})
    return {name: schema for name, schema in known.items() if not name.endswith("ValidationError")}


class _Schemas:
    """JSON Schemas of all kinds together, by reference."""

    def __init__(self, kinds: Iterable[Any]) -> None:
        known = list(dict.fromkeys([*kinds, api.ErrorAnswer, api.Change]))
        schemas, self.components = msgspec.json.schema_components(known, ref_template=_REF)
        self._of = dict(zip(known, schemas, strict=True))

    def of(self, kind: Any) -> Any:
        return self._of[kind]


def _kinds(route: Any) -> Iterator[Any]:
    if (body := body_of(route)) is not None:
        yield body.kind
    if (kind := answered_by(route)) is not None:
        yield kind
    yield from (getattr(api, more[routing.KIND]) for more in route.responses.values() if routing.KIND in more)


def body_of(route: Any) -> Body[Any] | None:
    """What reads the body of a route."""
    calls = (dependency.call for dependency in route.dependant.dependencies)
    return next((call for call in calls if isinstance(call, Body)), None)


def answered_by(route: Any) -> Any:
    """What a route answers as JSON; None where that is something else."""
    annotation = typing.get_type_hints(route.endpoint).get("return")
    # Of several the first is the usual one; `routing.other` names the rest.
    first = annotation if typing.get_origin(annotation) is Answer else (*typing.get_args(annotation), None)[0]
    return typing.get_args(first)[0] if typing.get_origin(first) is Answer else None


def _decides(route: Any) -> bool:
    return any(dependency.call is matching.expected for dependency in route.dependant.dependencies)


def _complete(operation: dict[str, Any], method: str, path: str, route: Any, schemas: _Schemas) -> None:
    rule, body, kind = RULES[method, path], body_of(route), answered_by(route)
    operation["security"] = _security(rule, method, path)
    if isinstance(rule, Rule):
        told = f"Needs the role **{rule.needs.word}**"
        operation["x-role"], operation["x-reach"] = rule.needs.word, rule.reach.value
    else:
        told = f"Open: {rule.because}"
    operation["description"] = f"{operation.get('description', '')}\n\n{told}.".strip()
    operation["summary"] = _summary(route)
    has_body = body is not None or method == "PUT"
    is_paged = any(parameter["name"] == "after" for parameter in operation.get("parameters", ()))
    headers = _headers_of(method, rule, route)
    if headers:
        parameters = [{"name": name, "in": "header", "required": False, **_HEADERS[name]} for name in headers]
        operation["parameters"] = [*operation.get("parameters", ()), *parameters]
    if body is not None:
        media = {"schema": schemas.of(body.kind), **_example(body.kind)}
        operation["requestBody"] = {"required": body.default is None, "content": {_JSON: media}}
    operation["responses"] = {
        **_successes(route, kind, schemas, _LINK if is_paged else {}),
        **(
            {"304": {"description": "You have it already.", "headers": _ETAG}}
            if matching.IF_NONE_MATCH in headers
            else {}
        ),
        **{
            str(status): {"$ref": f"#/components/responses/Error{status}"}
            for status in _refusals(method, path, rule, headers, has_body=has_body, is_paged=is_paged)
        },
    }


def _summary(route: Any) -> str:
    """The first sentence of what the endpoint says of itself."""
    first = " ".join((route.endpoint.__doc__ or "").strip().split("\n\n")[0].split())
    sentence, dot, _ = first.partition(". ")
    return (sentence + dot.strip()).removesuffix(".") or route.name.replace("_", " ")


def _headers_of(method: str, rule: Rule | Open, route: Any) -> tuple[str, ...]:
    if method == "GET":
        return (matching.IF_NONE_MATCH,) if answered_by(route) is not None else ()
    if method != "POST" or isinstance(rule, Open):
        return ()
    return (repeats.HEADER, matching.IF_MATCH) if _decides(route) else (repeats.HEADER,)


def _security(rule: Rule | Open, method: str, path: str) -> list[dict[str, list[str]]]:
    if isinstance(rule, Rule):
        return [{"token": []}, {"session": []} if method == "GET" else {"session": [], "csrf": []}]
    return [{"deviceCertificate": []}, {"deviceCredential": []}] if (method, path) in _DEVICES else []


def _successes(route: Any, kind: Any, schemas: _Schemas, more_headers: dict[str, Any]) -> dict[str, Any]:
    usual = {route.status_code or 200: {"description": "Done." if route.status_code == 201 else "So it is."}}
    found: dict[str, Any] = {}
    for status, given in {**usual, **route.responses}.items():
        told = {name: value for name, value in given.items() if name != routing.KIND}
        of = getattr(api, given[routing.KIND]) if routing.KIND in given else kind
        if of is not None and "content" not in told:
            told["content"] = {_JSON: {"schema": schemas.of(of), **_example(of)}}
        is_read = "GET" in route.methods and of is not None
        headers = {**(_ETAG if is_read else {}), **more_headers}
        found[str(status)] = {**told, **({"headers": headers} if headers else {})}
    return found


def _refusals(
    method: str, path: str, rule: Rule | Open, headers: tuple[str, ...], *, has_body: bool, is_paged: bool
) -> list[int]:
    """The statuses by which a route of this kind may refuse or fail."""
    is_change = method != "GET"
    chosen = {
        400: True,
        401: isinstance(rule, Rule) or (method, path) in _DEVICES,
        403: isinstance(rule, Rule) or is_change or (method, path) in _DEVICES,
        404: "{" in path or has_body or is_paged,
        409: is_change,
        410: (method, path) in _BROUGHT,
        412: matching.IF_MATCH in headers,
        413: has_body or repeats.HEADER in headers,
        422: repeats.HEADER in headers or (method, path) in _BROUGHT,
        500: True,
        503: True,
    }
    return [status for status, holds in chosen.items() if holds]


def _error(status: int) -> dict[str, Any]:
    codes = sorted({kind.code for kind in _error_kinds() if kind.http_status == status})
    listed = f" `code` is one of: {', '.join(codes)}." if codes else ""
    example = api.ErrorAnswer(
        api.ErrorBody(codes[0] if codes else "internal", "What was wrong, and what to do.")
    )
    return {
        "description": _WORDS[status] + listed,
        "content": {
            _JSON: {
                "schema": {"$ref": _REF.format(name="ErrorAnswer")},
                "example": msgspec.to_builtins(example),
            }
        },
    }


def _error_kinds() -> Iterator[type[EdgeKitError]]:
    """What a fleet service raises: of `edgekit.errors` those that are not a build's or a device's."""
    for name in (
        "UsageError", "NotPossibleError", "BundleError", "ManifestError", "SignatureRefusedError", "FleetError",
        "HardwareKeyError", "NotFoundError", "ConflictError", "ChangedMeanwhileError", "KeyReusedError", "AuthError", "EndedError",
    ):  # fmt: skip
        yield getattr(errors, name)


def _example(kind: Any) -> dict[str, Any]:
    """An example of a kind, or of a list of one, where there is any."""
    if typing.get_origin(kind) is list:
        inner = _example(typing.get_args(kind)[0])
        return {"example": [inner["example"]]} if inner else {}
    return {"example": msgspec.to_builtins(EXAMPLES[kind])} if kind in EXAMPLES else {}
