"""How far what devices meet has moved from what their models were judged on."""

from fleet import api
from fleet.server import drifting
from fleet.server.api.context import Answer, Ctx, answer
from fleet.server.api.routing import Router

router = Router(prefix="/api/v1", tags=["history"])


@router.get("/drift")
def drift(ctx: Ctx) -> Answer[api.DriftAnswer]:
    """Of each bundle that devices run, what they say of drift, confidence and inputs that do not fit."""
    with ctx.database.read() as connection:
        return answer(api.DriftAnswer(tuple(drifting.views(connection, ctx.clock()))))
