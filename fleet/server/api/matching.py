"""Preconditions (RFC 9110, 13): what a reader knows already is not sent again, and what changed meanwhile is not decided
upon as if it had not.

`ETag` and `If-None-Match` are about a read's very bytes. A decision is about less: of a rollout that runs every second
brings other counts, and only its status, its stage, what waits for approval and what is held are what a person decides
by. So the things that two operators may decide about at once carry a `tag` of just that, which comes back as `If-Match`.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request, Response

from edgekit.errors import ChangedMeanwhileError, UsageError

IF_MATCH, IF_NONE_MATCH = "If-Match", "If-None-Match"
_LENGTH = 32
_ONE = r'(?:W/)?"[!#-~]*"'
# What these headers look like, for the description too.
PATTERN = rf"^(?:\*|{_ONE}(?: *, *{_ONE})*)$"
_HEADER = re.compile(PATTERN)
ANY: list[tuple[bool, str]] = []
_TAG = re.compile(r'(W/)?"([!#-~]*)"')


def tag_of(*decided_by: Any) -> str:
    """Stands for these values: another tag, other values."""
    return hashlib.sha256(msgspec.json.encode(decided_by)).hexdigest()[:_LENGTH]


@dataclass(frozen=True)
class Expected:
    """What the caller believes to be so; None is nothing in particular."""

    tags: frozenset[str] | None = None

    def check(self, tag: str, what: str) -> None:
        """Raises: ChangedMeanwhileError."""
        if self.tags is not None and tag not in self.tags:
            raise ChangedMeanwhileError(
                f"{what} has changed since you looked; nothing was done. Look again, then decide"
            )


def expected(request: Request) -> Expected:
    """Raises: UsageError."""
    given = _tags(request, IF_MATCH)
    if given is None or given == ANY:
        return Expected()
    return Expected(frozenset(tag for is_weak, tag in given if not is_weak))


IfMatch = Annotated[Expected, Depends(expected)]


def unless_known(request: Request, response: Response) -> Response:
    """The answer to a read with its `ETag`, or 304 where the caller has just that already. Raises: UsageError."""
    tag = hashlib.sha256(bytes(response.body)).hexdigest()[:_LENGTH]
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}
    if link := response.headers.get("link"):
        headers["Link"] = link
    given = _tags(request, IF_NONE_MATCH)
    if given is not None and (given == ANY or tag in {one for _, one in given}):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def _tags(request: Request, header: str) -> list[tuple[bool, str]] | None:
    """(is weak, tag) of each entity tag; `ANY` is a list of none. Raises: UsageError."""
    text = request.headers.get(header)
    if text is None:
        return None
    if not _HEADER.match(text):
        raise UsageError(f'{header}: {text[:100]!r} is no list of entity tags, e.g. "0a1b2c"')
    return [(bool(weak), tag) for weak, tag in _TAG.findall(text)]
