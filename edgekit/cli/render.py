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
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from edgekit.plain import plain

# A pipe gets lines as long as they are; a terminal gets its own width.
_WIDTH = None if sys.stdout.isatty() else 160


def stdout() -> Console:
    return Console(highlight=False, width=_WIDTH)


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
    finally:
        partial.unlink(missing_ok=True)


def progress() -> Progress:
    """A progress display on stderr that vanishes when done and prints nothing into a pipe."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
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
