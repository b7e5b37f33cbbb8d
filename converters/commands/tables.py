"""A build's sheets on a terminal: a table for each profile that fits its width, and below it the reasons.

Always true
 1. One line a candidate, the pick first; a reason or a note stands once, with all the candidates that it holds for.
 2. On a terminal the least important columns go first where the width is short; into a pipe go all of them, whole.
 3. Nothing is told here alone: result.json, the evidence and report.html hold all of it, unrounded.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from converters.report import numbers, sliced
from converters.sheet import Sheet
from edgekit.cli import render
from edgekit.errors import GuiltyLayer
from edgekit.evidence import BucketEvidence, CandidateEvidence, worst_output

# How a note about corrupted inputs begins (judge/accuracy.py).
SHIFTED = "on corrupted inputs"
_STYLES: Mapping[str, str] = {
    "picked": "bold green",
    "alternate": "cyan",
    "lost": "",
    "refused": "yellow",
    "failed": "dim",
}
# Characters of an output's name in the table: whole if they fit, otherwise down to the last of these.
_NAMES = (40, 20, 12, 8)
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
# A number on its own: neither in a recipe's name (static-int8) nor in a version (5.2.0).
_NUMBER = re.compile(r"(?<![\w./-])[+-]?\d+(?:\.\d+)?(?![\w./-])")
_PARENTHESIS = re.compile(r" \([^()]*\)")


@dataclass(frozen=True)
class Column:
    """`rank` 0 is never left out; of the others, those with the highest go first where the terminal is narrow."""

    title: Callable[[Sheet], str]
    cell: Callable[[CandidateEvidence], str]
    rank: int = 0
    is_numeric: bool = True

    def width(self, sheet: Sheet) -> int:
        return max(len(self.title(sheet)), *(len(self.cell(item)) for item in sheet.candidates))


def show(sheet: Sheet, *, verbose: bool) -> None:
    """One profile: its table, why each candidate ended as it did, and what to know."""
    columns = _fitting(sheet, None if verbose else render.width())
    render.compact(
        title(sheet),
        [column.title(sheet) for column in columns],
        [(_STYLES[item.status], [column.cell(item) for column in columns]) for item in sheet.ranked],
        numeric=[column.title(sheet) for column in columns if column.is_numeric],
    )
    render.explained(_verbatim(sheet) if verbose else reasons(sheet))
    if verbose:
        _show_outputs(sheet)
    _show_slices(sheet)
    _show_buckets(sheet)
    _show_notes(sheet, verbose=verbose)


def text(sheet: Sheet) -> str:
    """What `show` prints into a pipe."""
    written = io.StringIO()
    with redirect_stdout(written), redirect_stderr(written):
        show(sheet, verbose=False)
    return written.getvalue()


def show_layers(layers: Sequence[GuiltyLayer]) -> None:
    """The layers at fault where nothing met the contract."""
    render.table(
        "layers that lose most, each quantized alone",
        ["profile", "recipe", "layer", "kind", "SNR dB", "KL nats"],
        [
            [
                layer.profile,
                layer.recipe,
                layer.name,
                layer.op_type,
                f"{layer.snr_db:.1f}",
                "" if layer.divergence is None else f"{layer.divergence:.4f}",
            ]
            for layer in layers
        ],
        numeric=("SNR dB", "KL nats"),
    )


def title(sheet: Sheet) -> str:
    where = f"measured on {sheet.boards}" if sheet.boards else "measured here"
    how = where if sheet.is_measured else "latency estimated, not measured"
    how = "times of this CPU, which only rank" if sheet.ranks_only else how
    score, drop = sheet.source_accuracy, sheet.contract.max_accuracy_drop
    source = f"; source {sheet.metric} {numbers.score(score.value)}" if score else ""
    limit = "" if drop is None else f", limit {drop:g}{' (default)' if sheet.is_limit_default else ''}"
    head = "" if sheet.picked else "no candidate meets the contract of "
    return f"{head}{sheet.name} {sheet.version} for {sheet.profile} ({how}){source}{limit}"


def _size(item: CandidateEvidence) -> str:
    """Bundle and model in one unit, that of the bundle."""
    if item.size_bytes is None:
        return ""
    return pair_of_sizes(item.bundle_bytes, item.size_bytes)


def pair_of_sizes(bundle_bytes: int | None, model_bytes: int) -> str:
    """`128/13.5 kB`; without a bundle the model's size alone behind a dash."""
    if bundle_bytes is None:
        return f"{numbers.NONE}/{numbers.size(model_bytes)}"
    whole, unit = numbers.size(bundle_bytes).split()
    return f"{whole}/{numbers.in_unit(model_bytes, unit)} {unit}"


def _score(item: CandidateEvidence) -> str:
    if item.accuracy is None:
        return ""
    return f"{numbers.ABOUT if item.samples else ''}{numbers.score(item.accuracy.value)}"


def _drop(item: CandidateEvidence) -> str:
    drop = item.accuracy_drop
    if drop is None:
        return ""
    bound = "" if drop.high is None else f" ≤{numbers.brief(drop.high)}"
    return f"{numbers.brief(drop.value)}{bound}"


def _times(item: CandidateEvidence) -> str:
    p50, p95 = item.latency_p50_ms, item.latency_p95_ms
    if p50 is None or p95 is None:
        return ""
    if p50.how == "measured":
        return f"{numbers.milliseconds(p50.value)}/{numbers.milliseconds(p95.value)}"
    high = p50.value if p50.high is None else p50.high
    return f"{numbers.milliseconds(p50.value)}{numbers.RANGE}{numbers.milliseconds(high)}"


def _memory(item: CandidateEvidence) -> str:
    return f"{item.memory_mb.value:.0f}" if item.memory_mb else ""


def _worst(item: CandidateEvidence, characters: int | None) -> str:
    found = worst_output(item.outputs)
    if found is None:
        return ""
    name = found.name
    if characters is not None and len(name) > characters:
        name = name[: characters - 1] + ELLIPSIS
    return f"{name} {numbers.fidelity(found)}"


def _columns(characters: int | None) -> list[Column]:
    """All columns, with that many characters of an output's name."""
    return [
        Column(lambda _: "candidate", lambda item: item.recipe, is_numeric=False),
        Column(lambda _: "status", lambda item: item.status, is_numeric=False),
        Column(lambda _: "bundle/model", _size, rank=3),
        Column(lambda sheet: sheet.metric if len(sheet.metric) <= len("cosine") else "score", _score, rank=2),
        Column(lambda _: "drop ≤95 %", _drop),
        Column(lambda _: "worst output", lambda item: _worst(item, characters), rank=1, is_numeric=False),
        Column(lambda sheet: "p50/p95 ms" if sheet.is_measured else "est. ms", _times),
        Column(lambda _: "MB", _memory, rank=4),
    ]


def saying(sheet: Sheet, characters: int | None = None) -> list[Column]:
    """The columns that say something of this sheet, with that many characters of an output's name (None: all)."""
    return [column for column in _columns(characters) if any(map(column.cell, sheet.candidates))]


def _fitting(sheet: Sheet, width: int | None) -> list[Column]:
    """The columns that say something of this sheet, and fit."""

    def fits(columns: Sequence[Column]) -> bool:
        # One space between two columns.
        return width is None or sum(column.width(sheet) + 1 for column in columns) - 1 <= width

    if width is None:
        return saying(sheet)
    columns: list[Column] = []
    for characters in _NAMES:
        columns = saying(sheet, characters)
        if fits(columns):
            return columns
    while not fits(columns) and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    return columns


def _verbatim(sheet: Sheet) -> list[tuple[str, str, str]]:
    """Each candidate's own reason and notes."""
    rows = []
    for item in sheet.ranked:
        rows.append((_STYLES[item.status], item.recipe, item.reason))
        rows += [("", "", note) for note in item.notes]
    return rows


def reasons(sheet: Sheet) -> list[tuple[str, str, str]]:
    """Each reason once, with the candidates that it holds for."""
    groups: dict[tuple[str, str], list[CandidateEvidence]] = {}
    for item in sheet.ranked:
        groups.setdefault((item.status, _NUMBER.sub("#", item.reason)), []).append(item)
    return [
        (
            _STYLES[status],
            status,
            f"{', '.join(item.recipe for item in items)}: {merged([item.reason for item in items])}",
        )
        for (status, _), items in groups.items()
    ]


def merged(reasons: Sequence[str]) -> str:
    """Reasons that differ in their numbers alone as one, each number a range; what stands in brackets is left out.

    >>> merged(["takes 2.5 x its time (2 to 3)", "takes 4 x its time (3 to 5)"])
    'takes 2.5 to 4 x its time'
    """
    if len(set(reasons)) == 1:
        return reasons[0]
    plain = [_PARENTHESIS.sub("", reason) for reason in reasons]
    spans = zip(*(_NUMBER.findall(reason) for reason in plain), strict=True)
    ranges = (
        f"{min(span, key=float)} to {max(span, key=float)}" if len(set(span)) > 1 else span[0]
        for span in spans
    )
    return _NUMBER.sub(lambda _: next(ranges), plain[0])


def _show_outputs(sheet: Sheet) -> None:
    """Every output of every candidate."""
    rows = [
        (
            "" if output.holds else "red",
            [
                item.recipe,
                output.name,
                output.kind,
                f"{output.metric} {numbers.score(output.value)}",
                "" if output.drop_bound is None else numbers.score(output.drop_bound),
                "" if output.snr_db is None else f"{output.snr_db:.1f}",
                output.reason or ("holds" if output.holds else "does not hold"),
            ],
        )
        for item in sheet.ranked
        for output in item.outputs
    ]
    if rows:
        columns = ["candidate", "output", "kind", "figure", "drop at most", "SNR dB", "verdict"]
        render.compact(
            "every output against the float source", columns, rows, numeric=("drop at most", "SNR dB")
        )


def _show_slices(sheet: Sheet) -> None:
    """What each group of the samples loses in each candidate, the groups that lose most."""
    groups = sliced.shown(sheet)
    if not groups:
        return
    limit = sheet.contract.max_drop_per_slice
    told = "" if limit is None else f", limit {limit:g} each (! beyond it, ? not shown by so few samples)"
    left = sliced.hidden(sheet)
    more = f"; {left} groups that lose less are in the report" if left else ""
    render.compact(
        f"{sheet.metric} lost by group{told}{more}",
        ["candidate", *(f"{each.name} ({each.samples})" for each in groups)],
        [
            (
                _STYLES[item.status],
                [item.recipe, *(sliced.interval(sliced.of(item, each.name)) for each in groups)],
            )
            for item in sliced.judged(sheet.ranked)
        ],
        numeric=[f"{each.name} ({each.samples})" for each in groups],
    )


def _show_buckets(sheet: Sheet) -> None:
    """The pick's figures in each bucket, of a model that has some."""
    if sheet.pick is None or not sheet.pick.buckets:
        return
    columns = ["bucket", "share", "judged", "accuracy", "source", "p50 ms", "p95 ms"]
    rows = (("", _bucket_row(each)) for each in sheet.pick.buckets)
    render.compact(f"{sheet.picked} by bucket", columns, rows, numeric=columns)


def _bucket_row(each: BucketEvidence) -> list[str]:
    times = (each.latency_p50_ms, each.latency_p95_ms)
    return [
        str(each.size),
        f"{each.share:.0%}",
        str(each.samples),
        f"{each.accuracy.value:.4f}",
        f"{each.source_accuracy.value:.4f}",
        *(f"{found.value:.3f}" if found else "" for found in times),
    ]


def _show_notes(sheet: Sheet, *, verbose: bool) -> None:
    """What holds for the profile, what corrupted inputs showed, and the pick's own; the others' in full if asked for."""
    for note in sheet.notes:
        render.note(f"  {sheet.profile}: {note}")
    if verbose:
        return
    shown = {note: names for note, names in _notes(sheet.ranked).items() if _matters(sheet, note)}
    for note, names in shown.items():
        render.stderr().print(
            f"  {', '.join(names)}: {note}",
            style="red" if note.startswith(SHIFTED) else "yellow",
            markup=False,
            soft_wrap=True,
        )


def _matters(sheet: Sheet, note: str) -> bool:
    return note.startswith(SHIFTED) or (sheet.pick is not None and note in sheet.pick.notes)


def _notes(items: Iterable[CandidateEvidence]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in items:
        for note in item.notes:
            found.setdefault(note, []).append(item.recipe)
    return found
