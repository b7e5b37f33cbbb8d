"""How answers reach a terminal or a pipe: JSON for machines, sentences and sheets for people.

Always true
 1. Nothing of others is printed but through here, where it becomes safe for a terminal (`edgekit.safe`).
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console, RenderableType
from rich.text import Text

from edgekit import safe

T = TypeVar("T")

_COLOURS = {
    "completed": "green",
    "succeeded": "green",
    "satisfied": "green",
    "idle": "green",
    "online": "green",
    "good": "green",
    "open": "green",
    "running": "cyan",
    "paused": "yellow",
    "inconclusive": "yellow",
    "waiting": "dim",
    "queued": "dim",
    "pending": "dim",
    "offline": "dim",
    "not enrolled": "dim",
    "": "",
}
_MOVING = {
    "notified", "fetching", "staged", "probation", "rolling_back", "aborting",
    "fetch", "stage", "selftest", "switch", "commit",
}  # fmt: skip
# Wide enough for any line: what goes into a pipe is neither wrapped nor cut.
_UNLIMITED = 100_000


def show_json(value: Any) -> None:
    click.echo(safe.json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()))


def show_json_line(value: Any) -> None:
    click.echo(safe.json(msgspec.json.encode(value).decode()))


def say(words: str, *, err: bool = False) -> None:
    """Sentences, a line each."""
    click.echo(safe.lines(words), err=err)


def show_lines(found: Sequence[T], line: Callable[[T], str], *, none: str, as_json: bool) -> None:
    """What was asked for, a line each; `none` says that there is nothing."""
    if as_json:
        show_json(found)
    else:
        say("\n".join(map(line, found)) or none)


def show(renderable: RenderableType) -> None:
    Console(width=None if sys.stdout.isatty() else _UNLIMITED).print(renderable, highlight=False)


def coloured(state: str) -> Text:
    return Text(safe.text(state), style=_COLOURS.get(state, "cyan" if state in _MOVING else "red"))


def words(*parts: str | tuple[str, str]) -> Text:
    """Text of pieces, some with their style."""
    made = Text()
    for part in parts:
        given, style = part if isinstance(part, tuple) else (part, "")
        made.append(safe.text(given), style)
    return made
