"""The releases, and one beside the release before it: evidence by profile, where it runs, who signed it."""

from typing import NamedTuple

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from edgekit import evidence
from edgekit.errors import BundleError, EdgeKitError, NotFoundError
from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure
from fleet import api
from fleet.server.api import blocked as rest
from fleet.server.store import blocked, glance, history, releases
from fleet.server.web import charts, signed, words
from fleet.server.web.forms import Form, valid
from fleet.server.web.frame import On, Page

router = APIRouter(tags=["page"])
_DAY_S = 86_400.0


class Cell(NamedTuple):
    """A figure: the value, how it was obtained, on what; `delta` against the release before, and whether that is better."""

    text: str
    how: str
    on: str
    delta: str = ""
    is_better: bool | None = None


class Side(NamedTuple):
    """A profile of a release. `cells` by the names of `FIGURES`; `proof` is None without evidence."""

    bundle: api.BundleView
    runs: int
    proof: BuildEvidence | None
    cells: dict[str, Cell]


class Kind(NamedTuple):
    """A row of the comparison; `sign` 1 where more is better."""

    name: str
    words: str
    sign: int


FIGURES = (
    Kind("accuracy", "Accuracy", 1),
    Kind("drop", "Drop against its source", -1),
    Kind("p50", "Engine time, median", -1),
    Kind("p95", "Engine time, 95th percentile", -1),
    Kind("memory", "Peak memory", -1),
    Kind("size", "Bundle", -1),
)


@router.get("/releases", include_in_schema=False)
def listing(page: On) -> Response:
    with page.ctx.database.read() as connection:
        known = releases.everything(connection)
        runs = glance.runs(connection)
        shut = {one.subject: one for one in blocked.everything(connection)}
    by_name: dict[str, list[api.ReleaseView]] = {}
    for one in known:
        by_name.setdefault(one.name, []).append(one)
    return page.show(
        "releases.html.jinja",
        by_name=by_name,
        runs={_title(one): sum(runs.get(bundle.sha256, 0) for bundle in one.bundles) for one in known},
        shut=shut,
        title_of=_title,
        refused=page.why_not("GET", "/rollouts/start"),
    )


def _title(one: api.ReleaseView) -> str:
    return releases.title(one.name, one.version)


@router.get("/releases/{name}/{version}", include_in_schema=False)
def show(page: On, name: str, version: str, beside: str = "") -> Response:
    now = page.ctx.clock()
    with page.ctx.database.read() as connection:
        known = [one for one in releases.everything(connection) if one.name == name]
        one = _of(known, version)
        older = _of(known, beside) if beside else _before(known, one)
        runs = glance.runs(connection)
        was = (
            {bundle.profile: _side(connection, bundle, runs, None) for bundle in older.bundles}
            if older
            else {}
        )
        sides = {
            b.profile: (_side(connection, b, runs, was.get(b.profile)), was.get(b.profile))
            for b in one.bundles
        }
        shut = {found.subject: found for found in blocked.everything(connection)}
        points = {
            b.profile: charts.of_release(history.of_release(connection, name, b.sha256, now - _DAY_S, now))
            for b in one.bundles
        }
    title = releases.title(name, version)
    return page.show(
        "release.html.jinja",
        one=one,
        title=title,
        older=older,
        known=[found.version for found in known if found.version != version],
        sides=sides,
        figures=FIGURES,
        shut=shut.get(title),
        points=points,
        signature=signed.of_model(page.ctx.tuf, name),
        refused_start=page.why_not("GET", "/rollouts/start"),
        refused_block=page.why_not("POST", "/releases/{name}/{version}/{verb}"),
    )


def _of(known: list[api.ReleaseView], version: str) -> api.ReleaseView:
    """Raises: NotFoundError."""
    found = next((one for one in known if one.version == version), None)
    if found is None:
        raise NotFoundError(
            f"there is no release of version {version[:60]!r}; the list of releases shows them all"
        )
    return found


def _before(known: list[api.ReleaseView], one: api.ReleaseView) -> api.ReleaseView | None:
    """The one published last before it: `known` are newest first."""
    at = known.index(one)
    return known[at + 1] if at + 1 < len(known) else None


def _side(connection: Connection, bundle: api.BundleView, runs: dict[str, int], was: Side | None) -> Side:
    proof = _proof(connection, bundle)
    found = _figures(bundle, proof)
    cells = {name: _cell(name, figure, was) for name, figure in found.items()}
    return Side(bundle, runs.get(bundle.sha256, 0), proof, cells)


def _proof(connection: Connection, bundle: api.BundleView) -> BuildEvidence | None:
    if not bundle.has_evidence:
        return None
    try:
        return evidence.decode(releases.statement(connection, bundle.sha256), sha256=bundle.sha256).predicate
    except BundleError:
        return None


def _figures(bundle: api.BundleView, proof: BuildEvidence | None) -> dict[str, Figure | float]:
    found: dict[str, Figure | float | None] = {"size": float(bundle.length)}
    if proof is not None:
        picked = _picked(proof)
        found |= {
            "accuracy": proof.accuracy,
            "drop": picked.accuracy_drop if picked is not None else None,
            "p50": proof.latency_p50_ms,
            "p95": proof.latency_p95_ms,
            "memory": proof.memory_mb,
        }
    return {name: figure for name, figure in found.items() if figure is not None}


def _picked(proof: BuildEvidence) -> CandidateEvidence | None:
    return next((one for one in proof.candidates if one.status == "picked"), None)


_SHOW = {
    "accuracy": lambda value: f"{value:.4g}",
    "drop": lambda value: f"{value:+.4f}",
    "p50": words.milliseconds,
    "p95": words.milliseconds,
    "memory": lambda value: f"{value:.3g} MB",
    "size": words.size,
}


def _cell(name: str, figure: Figure | float, was: Side | None) -> Cell:
    value = figure.value if isinstance(figure, Figure) else figure
    text = _SHOW[name](value)
    how, on = "", ""
    if isinstance(figure, Figure):
        if figure.high is not None and figure.high > figure.value:
            text += f" (at most {_SHOW[name](figure.high)})"
        how = figure.how
        on = ", ".join(
            x for x in (figure.on.cpu, f"{figure.on.engine} {figure.on.engine_version}".strip()) if x
        )
    before = _figures(was.bundle, was.proof).get(name) if was is not None else None
    if before is None:
        return Cell(text, how, on)
    old = before.value if isinstance(before, Figure) else before
    change = value - old
    kind = next(one for one in FIGURES if one.name == name)
    # What is within a hundredth of the old figure is not told as better or worse.
    is_same = (
        abs(change) <= 0.01 * max(abs(old), 1e-9) if name not in ("accuracy", "drop") else abs(change) < 5e-4
    )
    if is_same:
        return Cell(text, how, on, "as before")
    told = f"{change:+.4f}" if name in ("accuracy", "drop") else f"{change / old * 100:+.0f} %" if old else ""
    return Cell(text, how, on, told, is_better=change * kind.sign > 0)


@router.get("/releases/{name}/{version}/{verb}", include_in_schema=False)
def ask(page: On, name: str, version: str, verb: str) -> Response:
    return _asked(page, name, version, verb)


def _asked(page: Page, name: str, version: str, verb: str, *, error: str = "", status: int = 200) -> Response:
    title = releases.title(name, version)
    if verb not in ("block", "unblock"):
        raise NotFoundError(f"there is nothing like {verb[:40]!r} to do to a release")
    with page.ctx.database.read() as connection:
        runs = glance.runs(connection)
        known = [one for one in releases.everything(connection) if one.name == name]
    many = sum(runs.get(bundle.sha256, 0) for bundle in _of(known, version).bundles)
    blocks = [
        f"From now on no order names {title}; rollouts of it that run are paused.",
        f"{words.devices(many)} ordered to run it {'keeps' if many == 1 else 'keep'} it until something else is ordered.",
    ]
    frees = [
        f"Orders may name {title} again.",
        "Rollouts that were paused stay so: resuming one is a person's decision.",
    ]
    return page.show(
        "act.html.jinja",
        status=status,
        title=f"{verb.capitalize()} {title}",
        says=blocks if verb == "block" else frees,
        button=f"{verb.capitalize()} it",
        is_final=False,
        typed="",
        profiles=[],
        asks_time=False,
        command=f"edgekit fleet {verb} {title}",
        back=f"/releases/{name}/{version}",
        to=f"/releases/{name}/{version}/{verb}",
        fields=(("reason", "Why (for the audit log)", ""),),
        hidden={},
        error=error,
    )


@router.post("/releases/{name}/{version}/{verb}", include_in_schema=False)
def do(page: On, name: str, version: str, verb: str, given: Form) -> Response:
    title = releases.title(name, version)
    try:
        if verb == "block":
            rest.block(page.ctx, page.caller, valid(api.Block(title, given.one("reason"))))
        elif verb == "unblock":
            rest.unblock(page.ctx, page.caller, title, valid(api.Reason(given.one("reason"))))
        else:
            raise NotFoundError(f"there is nothing like {verb[:40]!r} to do to a release")
    except EdgeKitError as error:
        return _asked(page, name, version, verb, error=str(error), status=error.http_status)
    return page.done(f"/releases/{name}/{version}", f"{title} is {verb}ed.")
