"""Lines over time, drawn by the server as SVG. Pure.

Always true
 1. An axis starts at zero, or has it within; one that is logarithmic says so; every axis has its unit.
 2. Where nothing was measured there is no line. Each line differs from the others by dashes too, not by colour alone.
 3. Behind every chart stands a table with the same figures.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from markupsafe import Markup

from fleet.server.web.words import NOTHING

WIDE, HALF, NARROW = (1040, 260), (620, 230), (400, 240)
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 22, 26, 34
_STEPS_S = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
    43_200,
    86_400,
    7 * 86_400,
)
# A gap of more than so many lengths of a point breaks the line.
_GAP = 2.5


class Point(NamedTuple):
    """`at` in unix seconds, covering `length_s` from there on. `low` to `high` is its interval."""

    at: float
    length_s: float
    value: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """`css` is the class of its line: new, old, limit, p50, p95."""

    name: str
    css: str
    points: Sequence[Point]


class Mark(NamedTuple):
    """Something that happened: a stage opened, a release changed."""

    at: float
    words: str


class Chart(NamedTuple):
    """`scale` is what a value is multiplied by to be in `unit`. `limits` are (value, words) of lines across."""

    title: str
    unit: str
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    limits: tuple[tuple[float, str], ...] = ()
    scale: float = 1.0
    is_log: bool = False
    # A difference: zero lies within, and has a line of its own.
    is_signed: bool = False

    @property
    def is_empty(self) -> bool:
        return not any(series.points for series in self.series)

    @property
    def wide(self) -> Markup:
        return draw(self, *WIDE)

    @property
    def half(self) -> Markup:
        return draw(self, *HALF)

    @property
    def narrow(self) -> Markup:
        return draw(self, *NARROW)

    @property
    def rows(self) -> list[tuple[datetime, list[str]]]:
        """The table: moments, the newest first, and what each line was then."""
        by_time = [{point.at: point for point in series.points} for series in self.series]
        moments = sorted({at for found in by_time for at in found}, reverse=True)
        return [
            (datetime.fromtimestamp(at, UTC), [_told(self, found.get(at)) for found in by_time])
            for at in moments
        ]


class Plane(NamedTuple):
    """Where a moment and a value lie; values are scaled."""

    width: int
    height: int
    start: float
    end: float
    low: float
    high: float
    is_log: bool

    def x(self, at: float) -> float:
        held = min(max(at, self.start), self.end)
        return _LEFT + (held - self.start) / (self.end - self.start) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        held = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(held / self.low) / math.log(self.high / self.low)
        else:
            share = (held - self.low) / (self.high - self.low)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def draw(chart: Chart, width: int, height: int) -> Markup:
    """The picture; nothing where no line has a point."""
    if chart.is_empty:
        return Markup("")
    plane = _plane(chart, width, height)
    name = f"{chart.title}, {chart.unit}, over time; the table below holds the same figures"
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            width, height, name
        ),
        _axes(plane, chart),
        *(_band(plane, chart, series) for series in chart.series),
        *_marks(plane, chart),
        *_limits(plane, chart),
        *(_line(plane, chart, series) for series in chart.series),
        *_pointers(plane, chart),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def _plane(chart: Chart, width: int, height: int) -> Plane:
    points = [point for series in chart.series for point in series.points]
    start, end = min(p.at for p in points), max(p.at + p.length_s for p in points)
    values = [p.value * chart.scale for p in points] + [limit * chart.scale for limit, _ in chart.limits]
    if chart.is_signed:
        low, high = _both_sides(points, values, chart.scale)
        return Plane(width, height, start, max(end, start + 1), low, high, is_log=False)
    # A band may leave the picture where it is far wider than what was seen.
    most = max(values)
    edges = [p.high * chart.scale for p in points if p.high is not None]
    top = max(most, min(max(edges, default=most), 2.5 * most if most > 0 else max(edges, default=1.0)))
    if chart.is_log:
        above = [value for value in values if value > 0] or [1.0]
        top = max(top, min(above)) * 1.3
        # A millionth of the largest is as good as nothing.
        low = max(min(above) / 1.3, top / 1e6)
        return Plane(width, height, start, max(end, start + 1), low, top, is_log=True)
    return Plane(width, height, start, max(end, start + 1), 0.0, top * 1.12 or 1.0, is_log=False)


def _both_sides(points: Sequence[Point], values: Sequence[float], scale: float) -> tuple[float, float]:
    """What the axis of a difference reaches from and to. The first intervals may be so wide that they leave the picture:
    it holds the newest, thrice as wide.
    """
    newest = max(points)
    ends = [value * scale for value in (newest.low, newest.high) if value is not None]
    middle = newest.value * scale
    kept = [middle + 3 * (end - middle) for end in ends]
    found = [0.0, *values, *kept]
    room = 0.08 * (max(found) - min(found)) or 1.0
    return min(found) - room, max(found) + room


def _axes(plane: Plane, chart: Chart) -> Markup:
    parts = []
    for value in _ticks(plane):
        y = plane.y(value)
        parts.append(_stroke("grid", _LEFT, y, plane.width - _RIGHT, y))
        parts.append(_text("end", _LEFT - 7, y + 4, _number(value)))
    unit = f"{chart.unit}, logarithmic" if chart.is_log else chart.unit
    parts.append(_text("unit", 4, 12, unit))
    free = 0.0
    for at in time_ticks(plane.start, plane.end, 5 if plane.width < 600 else 9):
        x, words = plane.x(at), clock(at, plane.end - plane.start)
        parts.append(_stroke("tick", x, plane.height - _BOTTOM, x, plane.height - _BOTTOM + 4))
        # The last one must not stand out over the edge.
        half = 3.2 * len(words)
        is_last = x + half > plane.width
        right = x + 10 if is_last else x + half
        # Where the one before leaves no room, the mark alone stands.
        if right - 2 * half >= free:
            css = "end" if is_last else "middle"
            parts.append(_text(css, right if is_last else x, plane.height - _BOTTOM + 17, words))
            free = right + 6
    if chart.is_signed:
        parts.append(_stroke("zero", _LEFT, plane.y(0.0), plane.width - _RIGHT, plane.y(0.0)))
    parts.append(_stroke("axis", _LEFT, plane.height - _BOTTOM, plane.width - _RIGHT, plane.height - _BOTTOM))
    return Markup("").join(parts)


def _ticks(plane: Plane) -> list[float]:
    if plane.is_log:
        decade = range(math.floor(math.log10(plane.low)), math.ceil(math.log10(plane.high)) + 1)
        found = [m * 10.0**power for power in decade for m in (1, 2, 5)]
        return [value for value in found if plane.low <= value <= plane.high]
    raw = (plane.high - plane.low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    return [step * n for n in range(math.ceil(plane.low / step), int(plane.high / step) + 1)]


def time_ticks(start: float, end: float, most: int) -> list[float]:
    """Round moments from `start` to `end`, at most so many."""
    step = next((s for s in _STEPS_S if (end - start) / s <= most), _STEPS_S[-1])
    first = math.ceil(start / step)
    return [float(step * n) for n in range(first, int(end // step) + 1)][: most + 1]


def clock(at: float, span_s: float) -> str:
    """A moment (UTC) as exactly as an axis of that length needs it."""
    moment = datetime.fromtimestamp(at, UTC)
    if span_s > 3 * 86_400:
        return f"{moment:%d %b}"
    return f"{moment:%H:%M:%S}" if span_s < 300 else f"{moment:%H:%M}"


def _runs(series: Series) -> list[list[Point]]:
    """Points that belong to one stroke: a gap ends it."""
    found: list[list[Point]] = []
    for point in sorted(series.points):
        last = found[-1][-1] if found else None
        if last is not None and point.at - last.at <= _GAP * max(last.length_s, point.length_s):
            found[-1].append(point)
        else:
            found.append([point])
    return found


def _middle(point: Point) -> float:
    return point.at + point.length_s / 2


def _band(plane: Plane, chart: Chart, series: Series) -> Markup:
    paths = []
    for run in _runs(series):
        known = [(p, p.low, p.high) for p in run if p.low is not None and p.high is not None]
        if len(known) < 2:
            continue
        up = [f"{plane.x(_middle(p)):.1f} {plane.y(high * chart.scale):.1f}" for p, _, high in known]
        down = [
            f"{plane.x(_middle(p)):.1f} {plane.y(low * chart.scale):.1f}" for p, low, _ in reversed(known)
        ]
        paths.append(f"M{'L'.join([*up, *down])}Z")
    return (
        Markup('<path class="band {}" d="{}"/>').format(series.css, "".join(paths)) if paths else Markup("")
    )


def _line(plane: Plane, chart: Chart, series: Series) -> Markup:
    parts = []
    for run in _runs(series):
        steps = [f"{plane.x(_middle(p)):.1f} {plane.y(p.value * chart.scale):.1f}" for p in run]
        if len(run) == 1:
            x, y = steps[0].split()
            parts.append(Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(series.css, x, y))
        else:
            parts.append(Markup('<path class="line {}" d="M{}"/>').format(series.css, "L".join(steps)))
    return Markup("").join(parts)


def _marks(plane: Plane, chart: Chart) -> list[Markup]:
    """Words stand beside their mark where the one before leaves room, and always in its tooltip."""
    parts, free = [], 0.0
    for mark in sorted(chart.marks):
        if not plane.start <= mark.at <= plane.end:
            continue
        x, width = plane.x(mark.at), 6.6 * len(mark.words) + 8
        says = f"{clock(mark.at, 0)} {mark.words}"
        parts.append(
            Markup('<g class="mark"><title>{}</title>{}</g>').format(
                says, _stroke("", x, _TOP - 8, x, plane.height - _BOTTOM)
            )
        )
        if x + 4 >= free and x + width < plane.width:
            parts.append(_text("mark-words", x + 4, _TOP - 1, mark.words))
            free = x + width
    return parts


def _limits(plane: Plane, chart: Chart) -> list[Markup]:
    parts = []
    for value, words in chart.limits:
        y = plane.y(value * chart.scale)
        parts.append(_stroke("limit", _LEFT, y, plane.width - _RIGHT, y))
        parts.append(_text("limit-words end", plane.width - _RIGHT - 4, y - 5, words))
    return parts


def _pointers(plane: Plane, chart: Chart) -> list[Markup]:
    """A strip for every moment, which shows a line and says the figures of all lines then."""
    moments = sorted({(point.at, point.length_s) for series in chart.series for point in series.points})
    by_time = [(series.name, {point.at: point for point in series.points}) for series in chart.series]
    parts = []
    for at, length in moments:
        told = [f"{name} {_told(chart, found[at])}" for name, found in by_time if at in found]
        says = f"{clock(at, 0)} UTC: " + ", ".join(told)
        left, right, x = plane.x(at), plane.x(at + length), plane.x(at + length / 2)
        parts.append(
            Markup(
                '<g class="at"><title>{}</title><rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>{}</g>'
            ).format(
                says,
                left,
                _TOP,
                max(right - left, 0.5),
                plane.height - _TOP - _BOTTOM,
                _stroke("", x, _TOP, x, plane.height - _BOTTOM),
            )
        )
    return parts


def _told(chart: Chart, point: Point | None) -> str:
    if point is None:
        return NOTHING
    value = f"{_number(point.value * chart.scale)} {chart.unit}"
    if point.low is None or point.high is None:
        return value
    return f"{value} ({_number(point.low * chart.scale)} to {_number(point.high * chart.scale)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _stroke(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        css, x1, y1, x2, y2
    )


def _text(css: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)
