"""How commands show things: tables for people on stdout, JSON for machines, progress and notes on stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from edgekit.plain import plain

# Wide enough for any line: what goes into a pipe is neither wrapped nor cut.
_UNLIMITED = 100_000


def stdout(*, is_whole: bool = False) -> Console:
    """A terminal gets its own width (COLUMNS, where set), a pipe or a file lines as long as they are; so does a terminal
    with `is_whole`, which then breaks long lines itself.
    """
    return Console(highlight=False, width=None if sys.stdout.isatty() and not is_whole else _UNLIMITED)


def width() -> int | None:
    """Columns of the terminal that standard output goes to; None where it goes elsewhere."""
    return stdout().width if sys.stdout.isatty() else None


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Iterable[str] = ()
) -> None:
    """Print a table; the columns named in `numeric` are aligned right. Cells are plain text, never markup."""
    right = set(numeric)
    shown = Table(title=title, title_justify="left")
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    stdout().print(shown)


def compact(
    title: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    numeric: Iterable[str] = (),
) -> None:
    """Print a table without frames: each row is one line, never cut, and comes with its style, e.g. `("dim", cells)`.

    Whether the rows fit `width()` is the caller's to see to. Cells are plain text, never markup.
    """
    right = set(numeric)
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        shown.add_column(
            Text(column, style="dim"),
            justify="right" if column in right else "left",
            no_wrap=True,
            overflow="crop",
        )
    for style, cells in rows:
        shown.add_row(*(Text(cell) for cell in cells), style=style)
    stdout().print(Text(title, style="bold"))
    stdout(is_whole=True).print(shown)


def explained(rows: Iterable[tuple[str, str, str]]) -> None:
    """Print words with what they mean beside them, each row (style, word, text); long texts wrap below themselves."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for style, word, text in rows:
        shown.add_row(Text(word, style=style), Text(text))
    stdout().print(shown)


def pairs(title: str, values: Iterable[tuple[str, str]]) -> None:
    """Print names and values below a title."""
    shown = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in values:
        shown.add_row(name, value.replace("[", r"\["))
    stdout().print(shown)


def as_json(value: Any) -> str:
    """Indented JSON of anything msgspec can encode."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=plain), indent=2).decode()


def print_json(value: Any) -> None:
    click.echo(as_json(value))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        # A full disk is told by a call that knows no name.
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def progress(*after: ProgressColumn, bar_width: int = 40) -> Progress:
    """A progress display on stderr that vanishes when done and prints nothing into a pipe; `after` are further columns."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *after,
        console=stderr(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def note(message: str) -> None:
    """A line for the person, on stderr."""
    with contextlib.suppress(BrokenPipeError):
        click.echo(message, err=True)


def size(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError(count)


def json_lines(values: Iterable[Any]) -> None:
    """One compact JSON document a line, flushed as they come."""
    for value in values:
        click.echo(json.dumps(msgspec.to_builtins(value)))
        sys.stdout.flush()
