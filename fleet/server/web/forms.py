"""Forms of the page as they arrive.

Always true
 1. Nothing of a form is looked at before its token shows that it came from a page of this session.
 2. A form is bounded before it is read.
"""

import hmac
from typing import Annotated, TypeVar
from urllib.parse import parse_qs

import msgspec
from fastapi import Depends, Request

from edgekit.errors import AuthError, UsageError
from fleet.server.api.admission import csrf_of, session_of
from fleet.server.api.context import Ctx, read_body

# A page of 50 devices with their names, or a list of serial numbers.
_MAX_BYTES = 256 << 10
_MAX_FIELDS = 200


class Fields:
    """What was filled in; what was left out is empty."""

    def __init__(self, given: dict[str, list[str]]) -> None:
        self._given = given

    def one(self, name: str) -> str:
        return self._given.get(name, [""])[0].strip()

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(self._given.get(name, ()))

    def has(self, name: str) -> bool:
        return name in self._given

    def number(self, name: str, label: str) -> int:
        """0 where it is empty. Raises: UsageError."""
        text = self.one(name)
        if text and not (text.isdecimal() and len(text) < 10):
            raise UsageError(f"{label}: {text[:40]!r} is no whole number")
        return int(text or 0)


async def posted(request: Request, ctx: Ctx) -> Fields:
    """The fields of a form that a page of this session sent. Raises: AuthError, TooLargeError, UsageError."""
    data = await read_body(request, _MAX_BYTES)
    try:
        given = parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise UsageError("this form has too many fields") from error
    secret, shown = session_of(request, ctx), given.pop("csrf", [""])[0]
    if not secret or not hmac.compare_digest(shown.encode(), csrf_of(secret).encode()):
        raise AuthError("this did not come from a page of this fleet; nothing was done")
    return Fields(given)


Form = Annotated[Fields, Depends(posted)]


T = TypeVar("T")


def valid(wanted: T) -> T:
    """A body made of a form's fields, held to the same bounds as one that the API decodes. Raises: UsageError."""
    return body(type(wanted), msgspec.to_builtins(wanted))


def body(kind: type[T], fields: object) -> T:
    """The same of plain values. Raises: UsageError."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{kind.__name__}: {error}") from error


def pairs(text: str, what: str) -> dict[str, str]:
    """`site=lab, room=2` or a line for each. Raises: UsageError."""
    found = {}
    for part in (piece.strip() for line in text.splitlines() for piece in line.split(",")):
        if not part:
            continue
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UsageError(f"{what} {part[:80]!r}: write name=value")
        found[name] = value
    return found
