"""Whether the world has changed: releases by how far their inputs have moved from what they were trained on."""

from typing import NamedTuple

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from fleet import api
from fleet.api import ReleasePoint
from fleet.rules import telling
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
# By convention (see `edgekit` docs on drift): below the first nothing moved, from the second on it did.
SLIGHT, MOVED = 0.1, 0.2
# Bundles whose histograms are shown, and how many of each.
_DRAWN, _OF_EACH = 6, 4
_POINTS = 170


class Row(NamedTuple):
    """A bundle that devices run: its drift over the day, the largest in the time shown, and since when it lies above
    `MOVED`; how many devices are named, what they said of each thing in the last hour, and of inputs that did not fit.
    """

    bundle: api.BundleView
    runs: int
    now: float | None
    most: float | None
    since: float | None
    charts: list[Chart]
    named: int = 0
    indices: tuple[tuple[str, float], ...] = ()
    anomalies: tuple[tuple[str, int], ...] = ()
    confidence: tuple[tuple[str, api.Confidence], ...] = ()
    bars: tuple[Bars, ...] = ()

    @property
    def state(self) -> str:
        return _state(self.now)

    @property
    def told(self) -> list[tuple[str, float, str]]:
        """What devices say of each thing now, in words."""
        return [(label.replace("/", " ", 1), index, _state(index)) for label, index in self.indices]


def _state(index: float | None) -> str:
    if index is None:
        return "pending"
    return "satisfied" if index < SLIGHT else "warning" if index < MOVED else "critical"


@router.get("/drift", include_in_schema=False)
def show(page: On) -> Response:
    now = page.ctx.clock()
    with page.ctx.database.read() as connection:
        kept = memory.of(page.ctx.database)
        named = drifting.named(connection)
        rows = [
            _row(bundle, runs, _points(connection, kept, bundle, now))._replace(
                named=named.get(bundle.sha256, 0)
            )
            for bundle, runs in drifting.running(connection)
        ]
        rows.sort(key=lambda row: -(row.now or 0.0))
        rows = [_detailed(connection, kept, row, now) if at < _DRAWN else row for at, row in enumerate(rows)]
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


def _told(connection: Connection, kept: Memory, sha256: str, now: float) -> Told:
    """Of the last day, which has up to 1440 minutes: counted once for many who look."""
    return kept.counted(("told", sha256), lambda: drifting.told(connection, sha256, now))


def _detailed(connection: Connection, kept: Memory, row: Row, now: float) -> Row:
    """With what devices saw and gave in the last day beside what the bundle was judged on, and what they told."""
    sha256 = row.bundle.sha256
    said = _told(connection, kept, sha256, now)
    found: list[Compared] = drifting.compared(connection, sha256, said)
    return row._replace(
        indices=tuple(telling.means(said.moved).items()),
        anomalies=tuple(said.anomalies.items()),
        confidence=tuple(drifting.confidence(found).items()),
        bars=tuple(Bars(one) for one in found),
    )


def _row(bundle: api.BundleView, runs: int, points: list[ReleasePoint]) -> Row:
    known = [(p.at, p.drift_psi) for p in sorted(points, key=lambda p: p.at) if p.drift_psi is not None]
    since = None
    for at, value in known:
        since = (since or at) if value >= MOVED else None
    limit = ((MOVED, f"{MOVED:g}: moved"),)
    found = [chart._replace(limits=limit) for chart in charts.of_release(points) if chart.unit == "PSI"]
    latest = known[-1][1] if known else None
    return Row(bundle, runs, latest, max((v for _, v in known), default=None), since, found)
