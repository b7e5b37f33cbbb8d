"""Experiments: which of two releases is better."""

from typing import NamedTuple

import msgspec
from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, NotFoundError, UsageError
from fleet import api
from fleet.server.api import experiments as rest
from fleet.server.store import experiments as store
from fleet.server.store import releases
from fleet.server.web import charts, words
from fleet.server.web.forms import Form, valid
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])
# A picture of the interval: half as wide again as what it must hold.
_ROOM = 1.25


class Span(NamedTuple):
    """Where an interval lies on a line, in percent from its left; `zero` is where both releases are alike."""

    low: float
    high: float
    middle: float
    zero: float


def span(one: api.ExperimentView) -> Span | None:
    if one.low is None or one.high is None or one.difference is None:
        return None
    reach = max(abs(one.low), abs(one.high), 1e-12) * _ROOM

    def at(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    return Span(at(one.low), at(one.high), at(one.difference), 50.0)


@router.get("/experiments", include_in_schema=False)
def listing(page: On) -> Response:
    return _listing(page)


def _listing(
    page: Page, *, given: dict[str, str] | None = None, error: str = "", status: int = 200
) -> Response:
    found = msgspec.json.decode(rest.listing(page.ctx, page.whole).body, type=list[api.ExperimentView])
    with page.ctx.database.read() as connection:
        known = [releases.title(one.name, one.version) for one in releases.everything(connection)]
    return page.show(
        "experiments.html.jinja",
        status=status,
        found=found,
        span=span,
        known=known,
        given=given
        or {"a": "", "b": "", "to": "", "goal": "latency_mean", "split": "50/50", "deployment": ""},
        error=error,
        refused=page.why_not("POST", "/experiments"),
    )


@router.post("/experiments", include_in_schema=False)
def start(page: On, given: Form) -> Response:
    fields = {name: given.one(name) for name in ("a", "b", "to", "goal", "split", "deployment")}
    try:
        wanted = valid(api.NewExperiment(**{**fields, "split": fields["split"] or "50/50"}))
        made = msgspec.json.decode(rest.start(page.ctx, page.caller, wanted).body, type=api.ExperimentView)
    except EdgeKitError as error:
        return _listing(page, given=fields, error=str(error), status=error.http_status)
    return page.done(f"/experiments/{made.id}", f"Experiment {made.id} has begun.")


@router.get("/experiments/{experiment}", include_in_schema=False)
def show(page: On, experiment: str) -> Response:
    one = _one(page, experiment)
    with page.ctx.database.read() as connection:
        noted = store.points_of(connection, store.parse_id(experiment))
    return page.show(
        "experiment.html.jinja",
        one=one,
        span=span(one),
        charts=charts.of_experiment(noted, one.goal),
        verbs=[(verb, act.title) for verb, act in ACTS.items()] if one.status == "running" else [],
        refused=page.why_not("POST", "/experiments/{experiment}/{verb}"),
    )


def _one(page: Page, experiment: str) -> api.ExperimentView:
    return msgspec.json.decode(rest.show(page.ctx, experiment).body, type=api.ExperimentView)


class Act(NamedTuple):
    title: str
    command: str


ACTS = {
    "adopt-A": Act("Adopt A", "edgekit fleet experiment adopt {id} A"),
    "adopt-B": Act("Adopt B", "edgekit fleet experiment adopt {id} B"),
    "stop": Act("Stop", "edgekit fleet experiment stop {id}"),
}


@router.get("/experiments/{experiment}/{verb}", include_in_schema=False)
def ask(page: On, experiment: str, verb: str) -> Response:
    return _asked(page, experiment, verb)


def _asked(page: Page, experiment: str, verb: str, *, error: str = "", status: int = 200) -> Response:
    one, act = _one(page, experiment), _act(verb)
    return page.show(
        "act.html.jinja",
        status=status,
        title=f"{act.title}: experiment {one.id}",
        says=_says(one, verb),
        button=act.title,
        is_final=True,
        typed=one.id,
        profiles=[],
        asks_time=False,
        command=act.command.format(id=one.id),
        back=f"/experiments/{one.id}",
        to=f"/experiments/{one.id}/{verb}",
        fields=(),
        hidden={},
        error=error,
    )


def _says(one: api.ExperimentView, verb: str) -> list[str]:
    both = one.a.assigned + one.b.assigned
    verdict = f"The verdict so far: {words.sentence(one.words)}"
    if verb == "stop":
        return [f"{words.devices(both)} go back to what each ran before.", verdict]
    better, other = (one.a, one.b) if verb == "adopt-A" else (one.b, one.a)
    return [
        f"{words.devices(other.assigned)} of the other arm move to {better.release}.",
        f"{better.release} is what devices of {one.to!r} run from now on.",
        verdict,
    ]


@router.post("/experiments/{experiment}/{verb}", include_in_schema=False)
def do(page: On, experiment: str, verb: str, given: Form) -> Response:
    act = _act(verb)
    try:
        if given.one("typed") != experiment:
            raise UsageError(f"type {experiment} to say that you mean this experiment; nothing was done")
        if verb == "stop":
            rest.stop(page.ctx, page.caller, experiment)
        else:
            rest.adopt(page.ctx, page.caller, experiment, "A" if verb == "adopt-A" else "B")
    except EdgeKitError as error:
        return _asked(page, experiment, verb, error=str(error), status=error.http_status)
    return page.done(f"/experiments/{experiment}", f"Experiment {experiment}: {act.title.lower()}: done.")


def _act(verb: str) -> Act:
    """Raises: NotFoundError."""
    try:
        return ACTS[verb]
    except KeyError as error:
        raise NotFoundError(f"there is nothing like {verb[:40]!r} to do to an experiment") from error
