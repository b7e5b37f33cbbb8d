"""Lists in pages: `limit` of them, those that follow `after`; `Link` says where the next page is (RFC 8288)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request

from edgekit.errors import NotFoundError
from fleet.server.api.context import Answer, answer

T = TypeVar("T")
USUAL, MOST = 500, 5000
# Before the page: what the page before ended with.
After = Annotated[str, Query(max_length=200, description="What the page before ended with; `Link` has it.")]


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for."""

    request: Request
    after: After = ""
    limit: Annotated[int, Query(ge=1, le=MOST)] = USUAL

    def of(self, items: Sequence[T], key: Callable[[T], str]) -> Answer[list[T]]:
        """The part of a list that is read as a whole, because it is short. Raises: NotFoundError if `after` is gone."""
        keys = [key(item) for item in items]
        if self.after and self.after not in keys:
            raise NotFoundError(f"{self.after[:80]!r} is not in this list any more; begin at its start")
        start = keys.index(self.after) + 1 if self.after else 0
        made = answer(list(items[start : start + self.limit]))
        if start + self.limit < len(items):
            link(made, self.request, keys[start + self.limit - 1], self.limit)
        return made


Paged = Annotated[Page, Depends()]


def link(response: Answer[list[T]], request: Request, after: str, limit: int) -> None:
    """Says where the next page is; what else was asked for stays."""
    where = request.url.include_query_params(after=after, limit=limit)
    response.headers["Link"] = f'<{where.path}?{where.query}>; rel="next"'
