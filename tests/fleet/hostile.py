"""Answers in which every text is an attack on the operator's terminal, and a walk over all commands that show them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import click
import msgspec

# Colours and cursor by CSI (7- and 8-bit), a window title, a line end, markup of rich, what turns writing round, what
# cannot be seen, and a bell.
ATTACK = "\x1b[2J\x1b[31mok\x9b5A\x1b]0;title\x07\r\n[red]x[/red]\u202eabc\u200b\x7f\x00"
# What of it must never reach a terminal.
ACTS = frozenset("\x1b\x9b\x07\r\x7f\x00\u202e\u200b")


_PLAIN: dict[Any, Any] = {
    str: ATTACK,
    object: ATTACK,
    Any: ATTACK,
    bytes: ATTACK.encode(),
    datetime: datetime(2026, 11, 27, tzinfo=UTC),
}


def answer(kind: Any) -> Any:
    """A value of this type with an attack in each of its texts."""
    origin, given = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin is not None:
        return _of_generic(origin, given)
    if issubclass(kind, Enum):
        return next(iter(kind))
    if issubclass(kind, msgspec.Struct):
        return kind(**{field.name: answer(field.type) for field in msgspec.structs.fields(kind)})
    return kind(3)


def _of_generic(origin: Any, given: tuple[Any, ...]) -> Any:
    if origin is Literal:
        return given[0]
    if origin in (list, tuple):
        return origin([answer(given[0])] * 2)
    if origin is dict:
        return {answer(given[0]): answer(given[1])}
    # Annotated, or one of several.
    return answer(next(one for one in given if one is not type(None)))


def walk(
    command: click.Command, path: tuple[str, ...], above: click.Context | None = None
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group below this one, with the words that lead to it."""
    ctx = click.Context(command, info_name=path[-1], parent=above)
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from walk(found, (*path, name), ctx)
