"""Whether the world has changed: releases by how far their inputs have moved from what they were trained on."""

from typing import NamedTuple

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from fleet import api
from fleet.api import ReleasePoint
from fleet.rules import seen
from fleet.server.store import glance, history, releases
from fleet.server.web import charts, memory, words
from fleet.server.web.bars import Bars
from fleet.server.web.chart import Chart
from fleet.server.web.frame import On
from fleet.server.web.memory import Memory

router = APIRouter(tags=["page"])
_DAYS = 7
_DAY_S = 86_400.0
# By convention (see `edgekit` docs on drift): below the first nothing moved, from the second on it did.
SLIGHT, MOVED = 0.1, 0.2
# Bundles that are looked at: those on most devices; those whose histograms are shown, and how many of each.
_MOST, _DRAWN, _OF_EACH = 60, 6, 4
_POINTS = 170


class Row(NamedTuple):
    """A bundle that devices run: its drift now, the largest in the time shown, and since when it lies above `MOVED`."""

    bundle: api.BundleView
    runs: int
    now: float | None
    most: float | None
    since: float | None
    charts: list[Chart]
    bars: tuple[Bars, ...] = ()

    @property
    def state(self) -> str:
        if self.now is None:
            return "pending"
        return "satisfied" if self.now < SLIGHT else "warning" if self.now < MOVED else "critical"


@router.get("/drift", include_in_schema=False)
def show(page: On) -> Response:
    now = page.ctx.clock()
    with page.ctx.database.read() as connection:
        runs = glance.runs(connection)
        bundles = [
            bundle
            for one in releases.everything(connection)
            for bundle in one.bundles
            if runs.get(bundle.sha256)
        ]
        bundles.sort(key=lambda bundle: -runs[bundle.sha256])
        rows = [
            _row(
                bundle,
                runs,
                _points(connection, memory.of(page.ctx.database), bundle, now),
            )
            for bundle in bundles[:_MOST]
        ]
        rows.sort(key=lambda row: -(row.now or 0.0))
        rows = [
            row._replace(bars=_bars(connection, memory.of(page.ctx.database), row.bundle.sha256, now))
            if at < _DRAWN
            else row
            for at, row in enumerate(rows)
        ]
    return page.show(
        "drift.html.jinja",
        rows=rows,
        days=_DAYS,
        slight=SLIGHT,
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


def _seen(connection: Connection, kept: Memory, sha256: str, now: float) -> seen.Seen:
    """Of the last day, which has up to 1440 minutes: counted once for many who look."""
    since = now - _DAY_S
    return kept.counted(("seen", sha256), lambda: history.seen_of(connection, sha256, since))


def _bars(connection: Connection, kept: Memory, sha256: str, now: float) -> tuple[Bars, ...]:
    """What devices saw and gave in the last day, beside what the bundle was judged on."""
    reference = releases.reference_of(connection, sha256)
    if reference is None:
        return ()
    found = seen.compare(reference, _seen(connection, kept, sha256, now))
    return tuple(Bars(one) for one in found)


def _row(bundle: api.BundleView, runs: dict[str, int], points: list[ReleasePoint]) -> Row:
    known = [(p.at, p.drift_psi) for p in sorted(points, key=lambda p: p.at) if p.drift_psi is not None]
    since = None
    for at, value in known:
        since = (since or at) if value >= MOVED else None
    limit = ((MOVED, f"{MOVED:g}: moved"),)
    found = [chart._replace(limits=limit) for chart in charts.of_release(points) if chart.unit == "PSI"]
    latest = known[-1][1] if known else None
    return Row(bundle, runs[bundle.sha256], latest, max((v for _, v in known), default=None), since, found)
