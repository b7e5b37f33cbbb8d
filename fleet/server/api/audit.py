"""The audit log: reading, and whether it is whole."""

from typing import Annotated

from fastapi import Query

from fleet import api
from fleet.audit_entry import Entry
from fleet.server.api.context import Answer, Ctx, answer
from fleet.server.api.routing import Router
from fleet.server.store import audit

router = Router(prefix="/api/v1", tags=["audit"])

MAX_ENTRIES = 1000


@router.get("/audit")
def listing(
    ctx: Ctx,
    after: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 100,
) -> Answer[list[Entry]]:
    """Entries with an id above `after`, in order; without it the newest, the newest first."""
    with ctx.database.read() as connection:
        if after is None:
            return answer(audit.newest(connection, limit))
        return answer(list(audit.entries(connection, after=after, limit=limit)))


@router.get("/audit/heads")
def heads(ctx: Ctx) -> Answer[list[str]]:
    """All signed heads, DSSE envelopes as text, the oldest first."""
    with ctx.database.read() as connection:
        return answer([envelope.decode() for envelope in audit.heads(connection)])


@router.get("/audit/verdict")
def verdict(ctx: Ctx) -> Answer[api.AuditVerdict]:
    """Whether the log is whole, looked at from its first entry on."""
    found = ctx.notary.examine(ctx.clock())
    return answer(api.AuditVerdict(found.count, found.newest, found.covered, found.heads, found.problems))
