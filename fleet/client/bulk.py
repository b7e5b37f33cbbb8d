"""One command for many devices: named, or found by a filter; asked about first, and told one by one.

Always true
 1. What many devices lose is done only after a person said yes, or a script said `--yes`.
 2. A device that refuses stops none of the others; all that refused are told at the end, and the exit code is theirs.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from edgekit.errors import EdgeKitError, FleetError, UsageError
from fleet.client import render
from fleet.client.complete import completes
from fleet.client.rest import Client
from fleet.client.transport import AwayError

T = TypeVar("T")
_MOST_NAMES = 8
Command = Callable[..., Any]


def many(command: Command) -> Command:
    """Adds `[DEVICE]...` and `--where`."""
    command = with_where(command)
    return click.argument("devices", nargs=-1, metavar="[DEVICE]...", shell_complete=completes("device"))(
        command
    )


def with_where(command: Command) -> Command:
    """Adds `--where`."""
    return click.option(
        "--where",
        metavar="FILTER",
        default=None,
        help="All that a filter finds: 'site=lab and state=failed'.",
    )(command)


def with_yes(command: Command) -> Command:
    """Adds `--yes`."""
    return click.option(
        "--yes", "is_sure", is_flag=True, help="Do not ask; needed in scripts for many devices."
    )(command)


@dataclass(frozen=True)
class Chosen:
    """`is_one` where a person named one device: then it is answered for as one."""

    names: tuple[str, ...]
    is_one: bool


def choose(client: Client, names: Sequence[str], where: str | None) -> Chosen:
    """Raises: UsageError unless devices are either named or looked for, and there are some."""
    if bool(names) == (where is not None):
        raise UsageError("which devices? name them, or find them with --where 'site=lab'")
    if where is None:
        unique = tuple(dict.fromkeys(names))
        return Chosen(unique, is_one=len(unique) == 1)
    found = tuple(one.device for one in client.find(where))
    if not found:
        raise UsageError(f"--where {where!r} finds no device; nothing was done")
    return Chosen(found, is_one=False)


def confirm(chosen: Chosen, what: str, *, is_sure: bool, is_final: bool = False) -> None:
    """Ask whether `what` (`{}` stands for the devices) shall be; where it `is_final`, for the name or number to be typed.

    A script that names one device is taken at its word. Raises: UsageError where nobody can be asked; Abort for no.
    """
    if is_sure:
        return
    count = len(chosen.names)
    more = f" and {count - _MOST_NAMES} more" if count > _MOST_NAMES else ""
    whom = (
        chosen.names[0]
        if chosen.is_one
        else f"{count} devices ({', '.join(chosen.names[:_MOST_NAMES])}{more})"
    )
    if not _is_asked():
        if chosen.is_one:
            return
        raise UsageError(f"this would {what.format(whom)}; give --yes if it shall")
    render.say(f"This will {what.format(whom)}.", err=True)
    if not is_final:
        click.confirm("Go on?", abort=True, err=True)
        return
    key = chosen.names[0] if chosen.is_one else str(count)
    if (
        click.prompt(f"It cannot be undone; type {key} to go on", err=True, default="", show_default=False)
        != key
    ):
        raise click.Abort


def _is_asked() -> bool:
    """Whether a person sits there."""
    return sys.stdin.isatty()


def run(chosen: Chosen, act: Callable[[str], T], told: Callable[[str, T], str], *, as_json: bool) -> None:
    """Do it to each. Raises: what the service says, for one device; FleetError that names all that refused, for many."""
    if chosen.is_one:
        done = act(chosen.names[0])
        if as_json:
            render.show_json(done)
        else:
            render.say(told(chosen.names[0], done))
        return
    answers: list[T] = []
    refusals: list[str] = []
    for name in chosen.names:
        try:
            done = act(name)
        except AwayError as error:
            raise FleetError(
                f"{error}\n{len(answers)} of {len(chosen.names)} devices were done before"
            ) from error
        except EdgeKitError as error:
            refusals.append(f"{name}: {error}")
            continue
        answers.append(done)
        if not as_json:
            render.say(told(name, done))
    if as_json:
        render.show_json(answers)
    if refusals:
        listed = "\n".join(f"  {one}" for one in refusals)
        raise FleetError(
            f"{len(refusals)} of {len(chosen.names)} devices were refused, the others are done:\n{listed}"
        )
