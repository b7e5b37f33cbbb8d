"""Tables for people: as wide as they must be, never cut.

Always true
 1. Every character of every cell is shown: what does not fit is folded, and a table that does not fit becomes records, one
    line for each column.
 2. Cells are text, never markup, and safe for a terminal (`edgekit.safe`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekit import safe

_GAP = 2
# Below this a folded column is harder to read than a record.
_LEAST_PROSE = 24

Cell = str | Text


def cell(given: object, style: str = "") -> Text:
    return Text(safe.text(given), style=style)


@dataclass(frozen=True)
class Column:
    """`is_prose` may be folded at any word; the others stay whole: names, versions, digests. One that `is_optional` is
    left out where it is empty in every row. What `is_shared` by rows that follow each other, and begin alike, is shown in
    the first of them.
    """

    title: str
    is_prose: bool = False
    is_right: bool = False
    is_optional: bool = False
    is_shared: bool = False


@dataclass
class Sheet:
    """Rows under columns."""

    columns: Sequence[Column]
    rows: list[tuple[Text, ...]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        row = tuple(one if isinstance(one, Text) else cell(one) for one in cells)
        if len(row) != len(self.columns):
            raise ValueError(f"{len(row)} cells for {len(self.columns)} columns")
        self.rows.append(row)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = [
            at
            for at, column in enumerate(self.columns)
            if not column.is_optional or any(row[at].plain for row in self.rows)
        ]
        widths = {at: self._width(at) for at in shown}
        gaps = _GAP * (len(shown) - 1)
        prose = [at for at in shown if self.columns[at].is_prose]
        room = options.max_width - gaps - sum(widths[at] for at in shown if at not in prose)
        if sum(widths[at] for at in prose) > room:
            if sum(min(widths[at], _LEAST_PROSE) for at in prose) > room:
                yield from self._records(shown)
                return
            widths |= _shared(room, {at: widths[at] for at in prose})
        yield self._table(widths)

    def _width(self, at: int) -> int:
        return max([len(self.columns[at].title), *(row[at].cell_len for row in self.rows)])

    def _table(self, widths: dict[int, int]) -> Table:
        table = Table(
            box=None, pad_edge=False, padding=(0, _GAP, 0, 0), collapse_padding=True, header_style="bold"
        )
        for at, width in widths.items():
            column = self.columns[at]
            table.add_column(
                cell(column.title), width=width, overflow="fold", no_wrap=not column.is_prose,
                justify="right" if column.is_right else "left",
            )  # fmt: skip
        before = ""
        for row in self.rows:
            is_more = bool(before) and row[0].plain == before and self.columns[0].is_shared
            table.add_row(*(Text() if is_more and self.columns[at].is_shared else row[at] for at in widths))
            before = row[0].plain
        return table

    def _records(self, shown: Sequence[int]) -> RenderResult:
        name_width = max(len(self.columns[at].title) for at in shown)
        for row in self.rows:
            filled = [at for at in shown if row[at].plain]
            if not filled:
                continue
            head, *others = filled
            title = row[head].copy()
            title.stylize("bold")
            yield title
            told = [(self.columns[at].title, row[at]) for at in others]
            yield Padding(pairs(told, name_width), (0, 0, 0, 2))


def sheet(*titles: str) -> Sheet:
    """One whose columns all stay whole."""
    return Sheet([Column(title) for title in titles])


def pairs(rows: Iterable[tuple[str, Cell]], name_width: int | None = None) -> Table:
    """Names and values, a line each; long values are folded beside their name."""
    found = list(rows)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    width = name_width if name_width is not None else max((len(name) for name, _ in found), default=0)
    table.add_column(width=width, no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in found:
        table.add_row(cell(name), value if isinstance(value, Text) else cell(value))
    return table


def _shared(room: int, wanted: dict[int, int]) -> dict[int, int]:
    """Divide room among columns: who needs less than a fair share gets that, the others the rest in equal parts."""
    left, given = room, {}
    for count, at in zip(range(len(wanted), 0, -1), sorted(wanted, key=wanted.__getitem__), strict=True):
        given[at] = min(wanted[at], left // count)
        left -= given[at]
    return {at: given[at] for at in wanted}
