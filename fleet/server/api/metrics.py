"""`GET /metrics`, for Prometheus.

It stands beside the API, behind a token with the role viewer and no scope, rather than on a listener of its own: a
Prometheus on another machine reaches it through the same TLS, its token can be revoked, and there is no second port to
guard. Prometheus sends the token by `authorization: {credentials_file: …}` (docs/monitoring.md).
"""

from fastapi import APIRouter, Response

from fleet.server.api.context import Ctx
from fleet.server.metrics import CONTENT_TYPE

router = APIRouter(tags=["monitoring"])


@router.get("/metrics", include_in_schema=False)
def metrics(ctx: Ctx) -> Response:
    return Response(ctx.metrics.text(), headers={"content-type": CONTENT_TYPE})
