"""The cost of a fleet over its size, as a picture: both axes logarithmic, one line a figure."""

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (960, 600), 80, 270, 50, 70
_LINES = (
    ("plan of a rollout", "plan_ms", "#8c564b"),
    ("tick that gives out orders", "open_tick_ms", "#d62728"),
    ("tick, 1/60 fresh", "tick_ms_p50", "#1f77b4"),
    ("  of that CPU of its process", "tick_cpu_ms_p50", "#17becf"),
    ("tick, nothing new", "tick_idle_ms", "#2ca02c"),
    ("page of 500 devices", "page_ms", "#9467bd"),
)


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """`measured` are figures of `scale.tables`, by size."""
    points = [row | {"plan_ms": 1000 * row["plan_s"]} for row in measured]
    sizes = [row["devices"] for row in points]
    image = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    values = [row[name] for row in points for _, name, _ in _LINES]
    x = _scale(min(sizes), max(sizes), _LEFT, _SIZE[0] - _RIGHT)
    y = _scale(
        10 ** math.floor(math.log10(min(values))),
        10 ** math.ceil(math.log10(max(values))),
        _SIZE[1] - _BOTTOM,
        _TOP,
    )
    for power in range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1):
        at = y(10.0**power)
        pen.line([(_LEFT, at), (_SIZE[0] - _RIGHT, at)], fill="#dddddd")
        pen.text((_LEFT - 10, at), f"{10.0**power:g} ms", fill="black", font=font, anchor="rm")
    for size in sizes:
        pen.line([(x(size), _TOP), (x(size), _SIZE[1] - _BOTTOM)], fill="#dddddd")
        pen.text((x(size), _SIZE[1] - _BOTTOM + 8), f"{size:,}", fill="black", font=font, anchor="ma")
    pen.text(
        ((x(sizes[0]) + x(sizes[-1])) / 2, _SIZE[1] - 30),
        "devices in the open stage",
        fill="black",
        font=font,
        anchor="ma",
    )
    for words, name, colour in _LINES:
        line = [(x(row["devices"]), y(row[name])) for row in points]
        pen.line(line, fill=colour, width=3)
        for at in line:
            pen.ellipse([at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4], fill=colour)
        pen.text((line[-1][0] + 12, line[-1][1]), words, fill=colour, font=font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def _scale(low: float, high: float, start: float, end: float) -> Any:
    span = max(1e-9, math.log(high) - math.log(low))
    return lambda value: start + (end - start) * (math.log(value) - math.log(low)) / span
