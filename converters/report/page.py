"""The page: sheets in, one self-contained HTML file out.

Always true
 1. Nothing is fetched and nothing runs: no script, no font, no image from elsewhere; the page's own policy forbids it.
 2. Behind every chart stands a table with the same figures.
 3. Text from models and tools is escaped.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from converters.report import chart, numbers, sliced, trials
from converters.sheet import Sheet
from edgekit import __version__, look
from edgekit.evidence import CandidateEvidence, Figure, LayerEvidence, worst_output

# Layers shown of a candidate: those that lose most.
LAYERS = 12
# Decibels at and above which a layer's bar is empty.
HARMLESS_DB = 60.0
_BUDGETS: Mapping[str, tuple[str, str]] = {
    "latency_p95_ms": ("latency p95", "ms"),
    "memory_mb": ("memory", "MB"),
    "size_mb": ("size", "MB"),
}


def render(sheets: Sequence[Sheet]) -> str:
    """The page for the profiles of one build, in the order given."""
    return _template().render(
        look=Markup(look.tokens()),  # noqa: S704  # our own style sheet
        sheets=sheets,
        first=sheets[0],
        edgekit=__version__,
        tools=dict(
            sorted({name: version for sheet in sheets for name, version in sheet.tools.items()}.items())
        ),
        origins=_origins(sheets),
        built=max(sheet.built for sheet in sheets),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("converters.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "ms": numbers.milliseconds,
        "score": numbers.score,
        "signed": numbers.signed,
        "small": numbers.small,
        "size": numbers.size,
        "decibels": numbers.decibels,
        "day": _day,
    }
    environment.globals |= {
        "scatter": chart.scatter,
        "limit": chart.limit,
        "points": chart.points,
        "trials_chart": trials.chart,
        "trials_front": trials.front,
        "special": trials.special,
        "layers_of": _layers,
        "diverges": _diverges,
        "budgets_of": _budgets,
        "bar": _bar,
        "latency": latency,
        "worst_output": worst_output,
        "fidelity": numbers.fidelity,
        "how_long": _origin,
        "slices_shown": sliced.shown,
        "slices_hidden": sliced.hidden,
        "slice_of": sliced.of,
        "slice_interval": sliced.interval,
    }
    return environment.get_template("page.html.jinja")


def _day(built: str) -> str:
    """`26 November 2026, 19:50 UTC` of an ISO 8601 time; without `%d`, whose zero nobody writes."""
    at = datetime.fromisoformat(built).astimezone(UTC)
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def latency(item: CandidateEvidence) -> tuple[str, str]:
    """Median and 95th percentile; an estimate's range stands in the first."""
    p50, p95 = item.latency_p50_ms, item.latency_p95_ms
    if p50 is None or p95 is None:
        return "", ""
    if p50.how == "measured":
        return numbers.milliseconds(p50.value), numbers.milliseconds(p95.value)
    high = p50.high if p50.high is not None else p50.value
    return f"{numbers.milliseconds(p50.value)}{numbers.RANGE}{numbers.milliseconds(high)}", ""


def _layers(item: CandidateEvidence) -> list[dict[str, Any]]:
    """The layers that lose most, as the build ranked them (worst first), with the length of their bars in percent:
    longer is worse, by the divergence where it was measured.
    """
    most = max((layer.divergence or 0.0 for layer in item.layers), default=0.0)
    return [{"layer": layer, "share": 100 * _harm(layer, most)} for layer in item.layers[:LAYERS]]


def _harm(layer: LayerEvidence, most: float) -> float:
    """0..1; `most` is the candidate's largest divergence."""
    if layer.divergence is None:
        harm = 1 - layer.snr_db / HARMLESS_DB
    else:
        harm = layer.divergence / most if most else 0.0
    return min(max(harm, 0.01), 1)


def _diverges(*items: CandidateEvidence) -> bool:
    """Whether divergences were measured of any one's layers."""
    return any(layer.divergence is not None for item in items for layer in item.layers)


def _budgets(sheet: Sheet) -> list[dict[str, str]]:
    """The contract's limits with their outcome for the pick."""
    drop = sheet.contract.max_accuracy_drop
    rows = []
    if drop is not None:
        outcome = "met" if sheet.picked else "missed"
        rows.append(
            {
                "what": "accuracy drop",
                "limit": f"≤ {drop:g}{' (the default, as none was set)' if sheet.is_limit_default else ''}",
                "outcome": outcome,
            }
        )
    if sheet.contract.max_drop_per_slice is not None:
        verdicts = {each.verdict for each in sheet.pick.slices} if sheet.pick else {"missed"}
        outcome = next((word for word in ("missed", "undecided") if word in verdicts), "met")
        rows.append(
            {
                "what": "drop of each group",
                "limit": f"≤ {sheet.contract.max_drop_per_slice:g}",
                "outcome": "unverified" if outcome == "undecided" else outcome,
            }
        )
    for key, (what, unit) in _BUDGETS.items():
        limit = getattr(sheet.contract, key)
        if limit is not None:
            rows.append(
                {"what": what, "limit": f"≤ {limit:g} {unit}", "outcome": sheet.budgets.get(key, "missed")}
            )
    return rows


def _bar(value: float | None, values: Sequence[float | None]) -> float:
    """Length of a bar in percent of the column's largest value."""
    most = max((number for number in values if number), default=0.0)
    return 100 * (value or 0.0) / most if most else 0.0


def _origin(figure: Figure | None) -> str:
    """What a figure was obtained on, in words."""
    if figure is None:
        return ""
    on = figure.on
    engine = f", {on.engine} {on.engine_version}".rstrip() if on.engine else ""
    threads = f", {on.threads} thread{'s' if on.threads != 1 else ''}" if on.threads else ""
    return f"{figure.how} on {on.cpu}{engine}{threads}"


def _origins(sheets: Sequence[Sheet]) -> list[tuple[str, str]]:
    """Every machine that figures come from, with its instruction sets."""
    found: dict[str, str] = {}
    for sheet in sheets:
        for figure in (sheet.source_accuracy, *(item.accuracy for item in sheet.candidates)):
            if figure is not None:
                found.setdefault(figure.on.cpu, ", ".join(figure.on.isa))
    return sorted(found.items())
