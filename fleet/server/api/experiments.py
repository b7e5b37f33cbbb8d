"""Experiments: start, look, stop, adopt."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Depends
from sqlalchemy import Connection

from edgekit.errors import ConflictError
from fleet import api
from fleet.rules.experiment import Side
from fleet.server import trials
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router
from fleet.server.clock import Now
from fleet.server.store import experiments, releases, settings
from fleet.server.store.experiments import ExperimentRow

router = Router(prefix="/api/v1", tags=["experiments"])


@router.post("/experiments", status_code=201)
def start(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewExperiment, Depends(body(api.NewExperiment))]
) -> Answer[api.ExperimentView]:
    """Two releases on a fixed split of the devices, compared by a goal."""
    now = ctx.time.now()
    with ctx.database.begin() as connection:
        if settings.is_frozen(connection):
            raise ConflictError("the fleet is frozen; 'edgekit fleet unfreeze' first")
        found = trials.start(connection, wanted, now=now, who=caller.who)
        made = view(connection, found, now)
    ctx.wake()
    return answer(made, 201)


@router.get("/experiments")
def listing(ctx: Ctx, page: Paged) -> Answer[list[api.ExperimentView]]:
    """Experiments, the newest first."""
    with ctx.database.read() as connection:
        now = ctx.time.now()
        views = [view(connection, found, now) for found in experiments.everything(connection)]
    return page.of(views, lambda found: found.id)


@router.get("/experiments/{experiment}")
def show(ctx: Ctx, experiment: str) -> Answer[api.ExperimentView]:
    """An experiment and what can be said by now."""
    with ctx.database.read() as connection:
        found = experiments.get(connection, experiments.parse_id(experiment))
        return answer(view(connection, found, ctx.time.now()))


@router.post("/experiments/{experiment}/stop")
def stop(ctx: Ctx, caller: Caller, experiment: str) -> Answer[api.ExperimentView]:
    """Each device goes back to what it ran before."""
    now = ctx.time.now()
    with ctx.database.begin() as connection:
        found = trials.stop(connection, experiments.parse_id(experiment), now=now, who=caller.who)
        made = view(connection, found, now)
    ctx.wake()
    return answer(made)


@router.post("/experiments/{experiment}/adopt/{arm}")
def adopt(ctx: Ctx, caller: Caller, experiment: str, arm: Literal["A", "B"]) -> Answer[api.ExperimentView]:
    """All follow this arm from now on."""
    now = ctx.time.now()
    with ctx.database.begin() as connection:
        found = trials.adopt(connection, experiments.parse_id(experiment), arm, now=now, who=caller.who)
        made = view(connection, found, now)
    ctx.wake()
    return answer(made)


def view(connection: Connection, found: ExperimentRow, now: Now) -> api.ExperimentView:
    verdict = trials.verdict(connection, found, now)
    titles = (releases.title(found.name_a, found.version_a), releases.title(found.name_b, found.version_b))
    return api.ExperimentView(
        id=experiments.label(found.id),
        status=found.status,
        reason=found.reason,
        deployment=found.deployment,
        to=found.selector,
        goal=found.goal,
        outcome=verdict.outcome.value,
        words=verdict.words,
        a=_arm(titles[0], found.share, verdict.a),
        b=_arm(titles[1], 1 - found.share, verdict.b),
        difference=verdict.difference,
        low=verdict.low,
        high=verdict.high,
        created=datetime.fromtimestamp(found.created_at + now.wall - now.steady, UTC),
    )


def _arm(release: str, share: float, side: Side) -> api.ArmView:
    return api.ArmView(
        release, share, side.assigned, side.reporting, side.measured, side.mean, side.error_rate
    )
