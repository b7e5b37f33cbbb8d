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
_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')


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
    given = request.headers.get(IF_MATCH)
    if given is None or given.strip() == "*":
        return Expected()
    return Expected(frozenset(tag for is_weak, tag in _parsed(given, IF_MATCH) if not is_weak))


IfMatch = Annotated[Expected, Depends(expected)]


def unless_known(request: Request, response: Response) -> Response:
    """The answer to a read with its `ETag`, or 304 where the caller has just that already."""
    etag = f'"{hashlib.sha256(bytes(response.body)).hexdigest()[:_LENGTH]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}
    if link := response.headers.get("link"):
        headers["Link"] = link
    given = request.headers.get(IF_NONE_MATCH, "")
    if given.strip() == "*" or etag.strip('"') in {tag for _, tag in _parsed(given, IF_NONE_MATCH)}:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def _parsed(text: str, header: str) -> list[tuple[bool, str]]:
    """(is weak, tag) of each entity tag. Raises: UsageError."""
    found, at = [], 0
    while at < len(text):
        match = _TAG.match(text, at)
        if match is None:
            raise UsageError(f'{header}: {text[:100]!r} is no list of entity tags, e.g. "0a1b2c"')
        found.append((bool(match[1]), match[2]))
        at = match.end()
    return found
