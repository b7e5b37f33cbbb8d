"""What devices saw beside what the model was judged on, bin by bin, drawn by the server as SVG. Pure.

Always true
 1. All bins are drawn as wide as each other: a reference has about as much in each, so bins far out would not be seen.
 2. The reference is an outline and what devices saw a filled bar inside of it: told apart without colour.
 3. Behind every picture stands a table with the same figures.
"""

import math
from typing import NamedTuple

from markupsafe import Markup

from fleet.rules.seen import Compared

_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 6, 12, 30
# Edges that are written below.
_WRITTEN = 6


class Bin(NamedTuple):
    """A row of the table; shares of values."""

    words: str
    expected: float
    found: float


class Bars(NamedTuple):
    """A picture of one thing that devices see (`inputs`) or give (`outputs`)."""

    one: Compared

    @property
    def title(self) -> str:
        return f"{self.one.section.removesuffix('s')} {self.one.label}"

    @property
    def bins(self) -> list[Bin]:
        edges = self.one.edges
        last = len(self.one.found) - 1
        found = []
        for at, (expected, share) in enumerate(zip(self.one.expected, self.one.found, strict=True)):
            low, high = number(edges[at]), number(edges[at + 1])
            # The ends are open.
            words = f"below {high}" if at == 0 else f"from {low}" if at == last else f"{low} to {high}"
            found.append(Bin("all" if last == 0 else words, expected, share))
        return found

    @property
    def svg(self) -> Markup:
        bins, most = self.bins, max(*self.one.expected, *self.one.found)
        top = most * 1.08
        name = f"{self.title}: shares of values in {len(bins)} bins, the reference and devices; the table below holds the same"
        parts = [
            Markup('<svg class="chart bars" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
                _WIDTH, _HEIGHT, name
            ),
            *(_tick(value, top) for value in _ticks(top)),
            *(_bin(at, one, len(bins), top) for at, one in enumerate(bins)),
            *_edges(self.one.edges),
            Markup("</svg>"),
        ]
        return Markup("").join(parts)


def number(value: float) -> str:
    return f"{value:.3g}"


def _ticks(top: float) -> list[float]:
    """Up to four shares, of round percent."""
    power = 10.0 ** math.floor(math.log10(top / 3))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= top / 4)
    return [step * at for at in range(int(top / step) + 1)]


def _y(share: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - share / top * (_HEIGHT - _TOP - _BOTTOM)


def _x(at: float, bins: int) -> float:
    return _LEFT + at / bins * (_WIDTH - _LEFT - _RIGHT)


def _tick(share: float, top: float) -> Markup:
    y = _y(share, top)
    return Markup(
        '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/><text class="end" x="{}" y="{:.1f}">{:g}%</text>'
    ).format(_LEFT, y, _WIDTH - _RIGHT, y, _LEFT - 6, y + 4, round(100 * share, 3))


def _bin(at: int, one: Bin, bins: int, top: float) -> Markup:
    left, width, base = _x(at, bins), _x(1, bins) - _x(0, bins), _HEIGHT - _BOTTOM
    gap, inside = width * 0.06, width * 0.22
    want, have = _y(one.expected, top), _y(one.found, top)
    says = f"{one.words}: {one.found:.1%} of what devices say, {one.expected:.1%} of the reference"
    return Markup(
        '<g class="at"><title>{}</title><rect class="hit" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}"/>'
        '<rect class="have" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
        '<rect class="want" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/></g>'
    ).format(
        says, left, _TOP, width, base - _TOP,
        left + inside, have, width - 2 * inside, base - have,
        left + gap, want, width - 2 * gap, base - want,
    )  # fmt: skip


def _edges(edges: tuple[float, ...]) -> list[Markup]:
    """Some of the edges between bins, as many as can be read."""
    bins = len(edges) - 1
    step = max(1, math.ceil((bins - 1) / _WRITTEN))
    return [
        Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(
            _x(at, bins), _HEIGHT - _BOTTOM + 16, number(edges[at])
        )
        for at in range(1, bins, step)
    ]
