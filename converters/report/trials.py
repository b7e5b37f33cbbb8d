"""A search's trials: loss against cost as inline SVG, with the Pareto front as a staircase.

Pure: trials in, SVG and rows out. Colours come from the page's style sheet, by class.

Always true
 1. What holds the contract on the search half is filled, what does not is hollow.
 2. Better is down and left.
"""

from collections.abc import Sequence

from markupsafe import Markup

from converters.report import numbers
from edgekit.evidence import TrialEvidence

_WIDTH, _HEIGHT = 1040, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 18.0, 14.0, 46.0


def measured(trials: Sequence[TrialEvidence]) -> list[TrialEvidence]:
    """Those with both figures, cheapest first."""
    found = [item for item in trials if item.loss is not None and item.cost is not None]
    return sorted(found, key=_at)


def front(trials: Sequence[TrialEvidence]) -> list[TrialEvidence]:
    """The rows of the front, cheapest first."""
    return [item for item in measured(trials) if item.is_on_front]


def special(item: TrialEvidence) -> str:
    """How a trial departs from its recipe, for a person."""
    parts = [f"{name} {value}" for name, value in item.settings.items()]
    if item.float_layers:
        parts.append(f"in float: {', '.join(item.float_layers)}")
    return "; ".join(parts) or "the recipe as it is"


def chart(trials: Sequence[TrialEvidence], metric: str) -> Markup:
    """Nothing where fewer than two trials have figures."""
    shown = measured(trials)
    if len(shown) < 2:
        return Markup("")
    costs, losses = zip(*map(_at, shown), strict=True)
    across = _Scale(min(costs), max(costs), _LEFT, _WIDTH - _RIGHT)
    down = _Scale(min(losses), max(losses), _HEIGHT - _BOTTOM, _TOP)
    unit = shown[0].cost.unit if shown[0].cost else ""
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            _WIDTH, _HEIGHT, f"trials: loss of {metric} against cost; the table below holds the front"
        ),
        *(_vertical(across(value), numbers.tick(value, across.step)) for value in across.ticks),
        *(_horizontal(down(value), numbers.tick(value, down.step)) for value in down.ticks),
        Markup('<text class="axis-title middle" x="{}" y="{}">{}</text>').format(
            _WIDTH / 2, _HEIGHT - 6, f"cost, {unit}"
        ),
        Markup('<text class="axis-title middle" transform="translate(14 {}) rotate(-90)">{}</text>').format(
            _HEIGHT / 2, f"loss of {metric}"
        ),
        _stairs([_at(item) for item in shown if item.is_on_front], across, down),
        *(_mark(item, across, down) for item in shown),
        Markup("</svg>"),
    ]
    return Markup("\n").join(parts)


class _Scale:
    """From values to places, with a little room at both ends."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        room = (high - low) * 0.08 or abs(high) * 0.1 or 0.1
        self._low, self._high, self._start, self._end = low - room, high + room, start, end
        self.ticks = numbers.ticks(self._low, self._high)
        self.step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else self._high - self._low

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _at(item: TrialEvidence) -> tuple[float, float]:
    assert item.cost is not None
    assert item.loss is not None
    return item.cost.value, item.loss.value


def _vertical(x: float, text: str) -> Markup:
    bottom = _HEIGHT - _BOTTOM
    return Markup(
        '<line class="grid" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>'
        '<text class="tick middle" x="{0:.1f}" y="{3}">{4}</text>'
    ).format(x, _TOP, bottom, bottom + 17, text)


def _horizontal(y: float, text: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{1}" y1="{0:.1f}" x2="{2}" y2="{0:.1f}"/>'
        '<text class="tick end" x="{3}" y="{4:.1f}">{5}</text>'
    ).format(y, _LEFT, _WIDTH - _RIGHT, _LEFT - 8, y + 4, text)


def _stairs(corners: Sequence[tuple[float, float]], across: _Scale, down: _Scale) -> Markup:
    if len(corners) < 2:
        return Markup("")
    first, *others = [(across(cost), down(loss)) for cost, loss in corners]
    steps = f"M{first[0]:.1f} {first[1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in others)
    return Markup('<path class="front" d="{}"/>').format(steps)


def _mark(item: TrialEvidence, across: _Scale, down: _Scale) -> Markup:
    cost, loss = _at(item)
    x, y = across(cost), down(loss)
    ring = Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="10"/>').format(x, y)
    return (ring if item.candidate else Markup("")) + Markup(
        '<circle class="mark{} e-{}" cx="{:.1f}" cy="{:.1f}" r="5.5"><title>{}</title></circle>'
    ).format(
        "" if item.holds else " hollow",
        item.recipe.partition("/")[0],
        x,
        y,
        f"trial {item.number}, {item.recipe}: {special(item)}",
    )
