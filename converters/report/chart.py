"""Accuracy against latency, as inline SVG: a scatter whose labels never cover each other or a point.

Pure: a sheet in, SVG out. Colours and fonts come from the page's style sheet, by class.

Always true
 1. What was measured is a filled circle with a line from median to 95th percentile; an estimate is a hollow diamond
    on its range. Shape tells them apart, colour only the engine.
 2. Better is up and left, whichever way the metric counts.
 3. The scales fit what may be chosen among: a candidate that loses several times the limit stands at the lower edge as
    a triangle with its figure, a long tail of latencies ends at the right edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from converters.report import numbers
from converters.sheet import Sheet
from edgekit.evidence import CandidateEvidence

# Width of a character of the labels' font, in the chart's units, rounded up.
_CHAR = 6.4
_LINE = 15.0
# A point and the room around it.
_RADIUS = 5.5
_CLEAR = 8.0
# How far the accuracy axis reaches below the source, in limits or in the spread of what stands, whichever is more.
_REACH = 2.5
# How far the latency axis reaches beyond the slowest median for the tails of others.
_TAIL = 3.0
# Space for axis titles and tick labels.
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 18.0, 16.0, 48.0


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def is_inside(self, other: "Box") -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Point:
    """A candidate with figures; `number` is its row in the table. Latencies in ms, `low` to `high`."""

    number: int
    candidate: CandidateEvidence
    latency: float
    low: float
    high: float
    accuracy: float
    worst: float
    is_measured: bool


def points(sheet: Sheet) -> list[Point]:
    """The candidates that have both figures, numbered as in the table."""
    found: list[Point] = []
    for number, item in enumerate(sheet.ranked, 1):
        p50, p95, accuracy = item.latency_p50_ms, item.latency_p95_ms, item.accuracy
        if p50 is None or p95 is None or accuracy is None or p50.value <= 0:
            continue
        high = max(p95.high or p95.value, p50.value)
        is_measured = p50.how == "measured"
        drop = item.accuracy_drop
        beyond = 0.0 if drop is None or drop.high is None else max(drop.high - drop.value, 0.0)
        found.append(
            Point(
                number=number,
                candidate=item,
                latency=p50.value if is_measured else math.sqrt(p50.value * high),
                low=p50.value,
                high=high,
                accuracy=accuracy.value,
                worst=accuracy.value - beyond if sheet.higher_is_better else accuracy.value + beyond,
                is_measured=is_measured,
            )
        )
    return found


def limit(sheet: Sheet) -> float | None:
    """The accuracy that the contract asks for."""
    drop = sheet.contract.max_accuracy_drop
    if drop is None or sheet.source_accuracy is None:
        return None
    return sheet.source_accuracy.value + (-drop if sheet.higher_is_better else drop)


def front(shown: Sequence[Point], *, higher_is_better: bool) -> list[Point]:
    """The Pareto front, fastest first: nothing else is both faster and more accurate."""
    sign = 1 if higher_is_better else -1
    best = -math.inf
    found: list[Point] = []
    for point in sorted(shown, key=lambda item: (item.latency, -sign * item.accuracy)):
        if sign * point.accuracy > best:
            found.append(point)
            best = sign * point.accuracy
    return found


@dataclass(frozen=True)
class Frame:
    """The plot's area and its two scales; `low_x` to `high_x` in ms, logarithmic."""

    width: float
    height: float
    low_x: float
    high_x: float
    low_y: float
    high_y: float
    is_upward: bool

    @property
    def area(self) -> Box:
        return Box(_LEFT, _TOP, self.width - _RIGHT, self.height - _BOTTOM)

    def x(self, ms: float) -> float:
        held = min(max(ms, self.low_x), self.high_x)
        share = math.log(held / self.low_x) / math.log(self.high_x / self.low_x)
        return self.area.left + share * (self.area.right - self.area.left)

    def y(self, accuracy: float) -> float:
        held = min(max(accuracy, self.low_y), self.high_y)
        share = (held - self.low_y) / (self.high_y - self.low_y)
        up = share if self.is_upward else 1 - share
        return self.area.bottom - up * (self.area.bottom - self.area.top)

    def is_beyond(self, accuracy: float) -> bool:
        """Whether a point's accuracy lies below the plot."""
        return accuracy < self.low_y if self.is_upward else accuracy > self.high_y


def scatter(sheet: Sheet, width: int, height: int, *, are_names_shown: bool) -> Markup:
    """The chart, or nothing where no candidate has both figures. Without names, labels are the table's numbers."""
    shown = points(sheet)
    if not shown:
        return Markup("")
    frame = _frame(sheet, shown, width, height)
    title = f"{sheet.metric} against latency for {sheet.profile}; the table below holds the same figures"
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            width, height, title
        ),
        _axes(frame, sheet.metric),
        *_lines(frame, sheet),
        _front(frame, front(shown, higher_is_better=sheet.higher_is_better)),
        *(_whiskers(frame, point) for point in shown),
        *(_mark(frame, point, is_picked=point.candidate.recipe == sheet.picked) for point in shown),
        *_labels(frame, shown, sheet, are_names_shown=are_names_shown),
        Markup("</svg>"),
    ]
    return Markup("\n").join(parts)


def _frame(sheet: Sheet, shown: Sequence[Point], width: int, height: int) -> Frame:
    budget = sheet.contract.latency_p95_ms
    slowest = max(point.latency for point in shown)
    times = [point.latency for point in shown] + [min(point.high, slowest * _TAIL) for point in shown]
    times += [point.low for point in shown] + ([budget] if budget else [])
    low_x, high_x = min(times) / 1.35, max(times) * 1.35
    if high_x / low_x < 10:
        middle = math.sqrt(low_x * high_x)
        low_x, high_x = middle / math.sqrt(10), middle * math.sqrt(10)
    heights = _heights(sheet, shown)
    low_y, high_y = min(heights), max(heights)
    room = max(high_y - low_y, 0.002) * 0.18
    return Frame(width, height, low_x, high_x, low_y - room, high_y + room, sheet.higher_is_better)


def _heights(sheet: Sheet, shown: Sequence[Point]) -> list[float]:
    """The accuracies that the plot must hold: source, limit, and every point that is not far below both."""
    sign = 1 if sheet.higher_is_better else -1
    asked = limit(sheet)
    source = [sheet.source_accuracy.value] if sheet.source_accuracy is not None else []
    marks = [*source, *([asked] if asked is not None else [])]
    best = max(sign * value for value in [*marks, *(point.accuracy for point in shown)])
    standing = [point.accuracy for point in shown if point.candidate.status not in ("refused", "failed")]
    unit = best - min((sign * value for value in [*marks, *standing]), default=best)
    least = best - _REACH * max(unit, 0.002) if marks or standing else -math.inf
    told = [value for point in shown for value in (point.accuracy, point.worst)]
    return [*marks, *(value for value in told if sign * value >= least), sign * best]


def _axes(frame: Frame, metric: str) -> Markup:
    area = frame.area
    parts: list[Markup] = []
    values = numbers.ticks(frame.low_y, frame.high_y)
    step = values[1] - values[0] if len(values) > 1 else frame.high_y - frame.low_y
    for value in values:
        y = frame.y(value)
        parts.append(_line("grid", area.left, y, area.right, y))
        parts.append(_text("tick end", area.left - 8, y + 4, numbers.tick(value, step)))
    for value in numbers.log_ticks(frame.low_x, frame.high_x, most=9 if frame.width > 500 else 6):
        x = frame.x(value)
        parts.append(_line("grid", x, area.top, x, area.bottom))
        parts.append(_text("tick middle", x, area.bottom + 18, f"{value:g}"))
    parts.append(_line("axis", area.left, area.bottom, area.right, area.bottom))
    parts.append(
        _text("axis-title middle", (area.left + area.right) / 2, frame.height - 8, "latency, ms (log scale)")
    )
    middle = (area.top + area.bottom) / 2
    parts.append(
        Markup(
            '<text class="axis-title middle" transform="translate(14 {:.1f}) rotate(-90)">{}</text>'
        ).format(middle, metric)
    )
    return Markup("").join(parts)


def _lines(frame: Frame, sheet: Sheet) -> list[Markup]:
    """Source accuracy, the contract's limit, the latency budget."""
    area = frame.area
    parts: list[Markup] = []
    if sheet.source_accuracy is not None:
        y = frame.y(sheet.source_accuracy.value)
        parts += [_line("source", area.left, y, area.right, y)]
    asked = limit(sheet)
    if asked is not None:
        y = frame.y(asked)
        parts.append(
            Markup('<rect class="forbidden" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                area.left, y, area.right - area.left, max(area.bottom - y, 0)
            )
        )
        parts.append(_line("limit", area.left, y, area.right, y))
    budget = sheet.contract.latency_p95_ms
    if budget:
        x = frame.x(budget)
        parts.append(_line("limit", x, area.top, x, area.bottom))
    return parts


def _fixed_labels(frame: Frame, sheet: Sheet) -> list[tuple[str, str, float, float, Box]]:
    """Labels of the lines: class, text, anchor, and the box that others must leave free."""
    area = frame.area
    found: list[tuple[str, str, float, float, Box]] = []

    def add(css: str, text: str, right: float, baseline: float) -> None:
        box = Box(right - len(text) * _CHAR, baseline - 11, right, baseline + 4)
        found.append((f"{css} end", text, right, baseline, box))

    if sheet.source_accuracy is not None:
        y = frame.y(sheet.source_accuracy.value)
        add("source-label", f"source {numbers.score(sheet.source_accuracy.value)}", area.right - 4, y - 6)
    asked = limit(sheet)
    if asked is not None:
        add("limit-label", f"limit {numbers.score(asked)}", area.right - 4, frame.y(asked) + 15)
    budget = sheet.contract.latency_p95_ms
    if budget:
        text = f"p95 budget {budget:g} ms"
        x = frame.x(budget)
        right = x - 5 if x - 5 - len(text) * _CHAR > area.left else x + 5 + len(text) * _CHAR
        add("limit-label", text, right, area.top + 12)
    return found


def _front(frame: Frame, along: Sequence[Point]) -> Markup:
    """The Pareto front as a staircase."""
    if len(along) < 2:
        return Markup("")
    steps: list[str] = []
    for index, point in enumerate(along):
        x, y = frame.x(point.latency), frame.y(point.accuracy)
        steps.append(f"M{x:.1f} {y:.1f}" if index == 0 else f"H{x:.1f}V{y:.1f}")
    return Markup('<path class="front" d="{}"/>').format("".join(steps))


def _whiskers(frame: Frame, point: Point) -> Markup:
    css = f"whisker e-{_engine(point)}"
    y, x = frame.y(point.accuracy), frame.x(point.latency)
    lines = _line(css, frame.x(point.low), y, frame.x(point.high), y)
    if point.worst != point.accuracy:
        lines += _line(css, x, y, x, frame.y(point.worst))
    return lines


def _mark(frame: Frame, point: Point, *, is_picked: bool) -> Markup:
    x, y, r = frame.x(point.latency), frame.y(point.accuracy), _RADIUS
    css = f"e-{_engine(point)}"
    told = Markup("<title>{}: {}, {} ms</title>").format(
        point.candidate.recipe,
        numbers.score(point.accuracy),
        numbers.milliseconds(point.low)
        + ("" if point.is_measured else f"{numbers.RANGE}{numbers.milliseconds(point.high)}"),
    )
    ring = (
        Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(x, y, r + 4.5)
        if is_picked
        else Markup("")
    )
    if frame.is_beyond(point.accuracy):
        corners = f"M{x - r:.1f} {y - r - 4:.1f}h{2 * r:.1f}l{-r:.1f} {r + 3:.1f}z"
        css += "" if point.is_measured else " hollow"
        shape = Markup('<path class="mark beyond {}" d="{}">{}</path>').format(css, corners, told)
    elif point.is_measured:
        shape = Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">{}</circle>').format(
            css, x, y, r, told
        )
    else:
        corners = f"M{x:.1f} {y - r - 1:.1f}l{r + 1:.1f} {r + 1:.1f}l{-r - 1:.1f} {r + 1:.1f}l{-r - 1:.1f} {-r - 1:.1f}z"
        shape = Markup('<path class="mark hollow {}" d="{}">{}</path>').format(css, corners, told)
    return ring + shape


def _labels(frame: Frame, shown: Sequence[Point], sheet: Sheet, *, are_names_shown: bool) -> list[Markup]:
    """Each label at the nearest free place around its point, the pick's first; a thin line leads to a far one."""
    fixed = _fixed_labels(frame, sheet)
    taken = [box for *_, box in fixed]
    taken += [_around(frame.x(point.latency), frame.y(point.accuracy), _CLEAR, _CLEAR) for point in shown]
    # Nor on a line: whiskers, and the source's accuracy across the whole plot.
    taken += [
        Box(frame.x(point.low), frame.y(point.accuracy) - 1, frame.x(point.high), frame.y(point.accuracy) + 1)
        for point in shown
    ]
    if sheet.source_accuracy is not None:
        y = frame.y(sheet.source_accuracy.value)
        taken.append(Box(frame.area.left, y - 1, frame.area.right, y + 1))
    parts: list[Markup] = [_text(css, x, y, text) for css, text, x, y, _ in fixed]
    order = sorted(shown, key=lambda point: (point.candidate.recipe != sheet.picked, point.latency))
    for point in order:
        is_picked = point.candidate.recipe == sheet.picked
        text = point.candidate.recipe if are_names_shown or is_picked else str(point.number)
        if frame.is_beyond(point.accuracy):
            text = f"{text}: {numbers.score(point.accuracy)}"
        width = len(text) * (_CHAR + (0.7 if is_picked else 0)) + 4
        x, y = frame.x(point.latency), frame.y(point.accuracy)
        place = _place(x, y, width, taken, frame.area)
        if place is None:
            continue  # the table still has it, under the number in the mark's tooltip
        taken.append(place)
        middle_x, middle_y = (place.left + place.right) / 2, (place.top + place.bottom) / 2
        near_x = min(max(x, place.left), place.right)
        near_y = min(max(y, place.top), place.bottom)
        if math.hypot(near_x - x, near_y - y) > 2 * _CLEAR:
            parts.append(_line("leader", x, y, near_x, near_y))
        css = "label middle picked" if is_picked else "label middle"
        parts.append(_text(css, middle_x, middle_y + 4, text))
    return parts


def _place(x: float, y: float, width: float, taken: Sequence[Box], area: Box) -> Box | None:
    """The free box nearest to a point, trying rings of growing distance."""
    for distance in (4, 16, 30, 46, 64, 84, 106, 130):
        reach = _CLEAR + distance
        ring = [
            _around(x, y - reach - _LINE / 2, width / 2, _LINE / 2),
            _around(x, y + reach + _LINE / 2, width / 2, _LINE / 2),
            _around(x + reach + width / 2, y, width / 2, _LINE / 2),
            _around(x - reach - width / 2, y, width / 2, _LINE / 2),
            *(
                _around(
                    x + side * (reach / 2 + width / 2), y + up * (reach + _LINE / 2), width / 2, _LINE / 2
                )
                for up in (-1, 1)
                for side in (1, -1)
            ),
        ]
        for box in ring:
            if box.is_inside(area) and not any(box.meets(other) for other in taken):
                return box
    return None


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def _engine(point: Point) -> str:
    return point.candidate.recipe.partition("/")[0]


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        css, x1, y1, x2, y2
    )


def _text(css: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, escape(text))
