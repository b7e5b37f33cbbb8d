"""Whether the world has changed: releases by how far their inputs have moved from what they were trained on."""

from typing import NamedTuple

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from fleet import api
from fleet.api import ReleasePoint
from fleet.rules.seen import Compared
from fleet.server import drifting
from fleet.server.store import history
from fleet.server.store.history import Told
from fleet.server.web import charts, memory, words
from fleet.server.web.bars import Bars
from fleet.server.web.chart import Chart
from fleet.server.web.frame import On
from fleet.server.web.memory import Memory

router = APIRouter(tags=["page"])
_DAYS = 7
_DAY_S = 86_400.0
# By convention (see `edgekit` docs on drift).
MOVED = 0.2
# Bundles whose histograms are shown, and how many of each.
_DRAWN, _OF_EACH = 6, 4
_POINTS = 170


class Row(NamedTuple):
    """A bundle that devices run: what is said of its drift, and since when it lies above `MOVED` on average over all devices."""

    bundle: api.BundleView
    view: api.DriftView
    since: float | None
    charts: list[Chart]
    bars: tuple[Bars, ...] = ()

    @property
    def kind(self) -> str:
        return _KINDS[self.view.state]

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """Of each thing, how it looks, what it is and what devices say of it now."""
        return [
            ("warning" if said.moved else "satisfied", _title(label), said.words)
            for label, said in self.view.said.items()
        ]


def _title(label: str) -> str:
    """`input image` of `inputs/image`."""
    section, _, name = label.partition("/")
    return f"{section.removesuffix('s')} {name}"


_KINDS: dict[str, str] = {
    "drifted": "critical",
    "moved": "warning",
    "well": "satisfied",
    "unknown": "pending",
}


@router.get("/drift", include_in_schema=False)
def show(page: On) -> Response:
    now = page.ctx.clock()
    with page.ctx.database.read() as connection:
        kept = memory.of(page.ctx.database)
        running = {bundle.sha256: bundle for bundle, _ in drifting.running(connection)}

        def told(connection: Connection, sha256: str, now: float) -> Told:
            # Of the last day, which has up to 1440 minutes: counted once for many who look.
            return kept.counted(("told", sha256), lambda: drifting.told(connection, sha256, now))

        views = kept.counted("drift", lambda: drifting.views(connection, now, told))
        rows = [
            _row(running[view.sha256], view, _points(connection, kept, running[view.sha256], now))
            for view in views
            if view.sha256 in running
        ]
        rows = [
            _detailed(connection, row, told(connection, row.view.sha256, now)) if at < _DRAWN else row
            for at, row in enumerate(rows)
        ]
    return page.show(
        "drift.html.jinja",
        rows=rows,
        days=_DAYS,
        moved=MOVED,
        moment=words.moment,
        first=_OF_EACH,
    )


def _points(connection: Connection, kept: Memory, bundle: api.BundleView, now: float) -> list[ReleasePoint]:
    """Of the days shown: by the hour or so, however finely they were kept."""
    since = now - _DAYS * _DAY_S

    def read() -> list[ReleasePoint]:
        return history.shortened(connection, bundle.name, bundle.sha256, since, now, _POINTS)

    return kept.counted(("points", bundle.sha256), read)


def _detailed(connection: Connection, row: Row, said: Told) -> Row:
    """With what devices saw and gave in the last day beside what the bundle was judged on."""
    found: list[Compared] = drifting.compared(connection, row.view.sha256, said)
    return row._replace(bars=tuple(Bars(one) for one in found))


def _row(bundle: api.BundleView, view: api.DriftView, points: list[ReleasePoint]) -> Row:
    since = None
    for p in sorted(points, key=lambda p: p.at):
        if p.drift_psi is not None:
            since = (since or p.at) if p.drift_psi >= MOVED else None
    limit = ((MOVED, f"{MOVED:g}: moved"),)
    found = [chart._replace(limits=limit) for chart in charts.of_release(points) if chart.unit == "PSI"]
    return Row(bundle, view, since, found)
