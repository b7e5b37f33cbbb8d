"""`edgekit fleet device command|commands`: what is asked of a device once, and what came of it."""

import re
import time
from collections.abc import Callable, Collection, Sequence

import click

from edgekit.errors import ConflictError, FleetError, NotFoundError, UsageError
from edgekit.wire.commands import ClearRefused, Level, LogLevel, Restart, SelfTest
from fleet import api
from fleet.client import command_views, render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet
from fleet.client.rest import Client

_LOOK_S = 0.5
# Of a digest, where a person types one.
LEAST_DIGITS = 6
_DIGEST, _BEGINNING = re.compile(r"[0-9a-f]{64}"), re.compile(rf"[0-9a-f]{{{LEAST_DIGITS},64}}")
_expires = click.option(
    "--expires", default="", metavar="DURATION", help="How long it may wait for the device.  [default: 1h]"
)
_wait = click.option("--wait", is_flag=True, help="Until it is over; exit code 5 unless it was done.")
_device = click.argument("device", shell_complete=completes("device"))
_deployment = click.option("--deployment", default="", help="One model slot of the device.")


class NotDoneError(FleetError):
    """A command that was waited for was not done."""

    code = "command"


@click.group(
    epilog=examples(
        "edgekit fleet device command self-test roof-1 --wait",
        "edgekit fleet device command measure roof-1 9f2c41d07a e31b88aa02 --wait --json",
        "edgekit fleet device command clear-refused roof-1",
        "edgekit fleet device command restart roof-1 --deployment digits --wait",
        "edgekit fleet device command log-level roof-1 debug --for 600",
    )
)
def command() -> None:
    """Ask something of a device once: signed, done when it is online, answered for.

    'edgekit fleet device commands DEVICE' shows what came of it.
    """


@command.command("self-test", epilog=examples("edgekit fleet device command self-test roof-1 --wait"))
@_device
@_deployment
@_expires
@_wait
@with_fleet
def self_test(
    *, device: str, deployment: str, expires: str, wait: bool, place: str | None, as_json: bool
) -> None:
    """Run the golden inputs of what serves, beside it and below it in priority, and show the figures."""
    _ask(device, SelfTest(deployment), expires, wait=wait, place=place, as_json=as_json)


@command.command(
    epilog=examples("edgekit fleet device command measure roof-1 9f2c41d07a --deployment digits --wait")
)
@_device
@click.argument("digests", nargs=-1, required=True, metavar="SHA256...")
@click.option("--deployment", default="", help="Time what serves in this model slot beside them.")
@click.option(
    "--budget", default=10.0, show_default=True, type=click.FloatRange(0.5, 600), help="Seconds of timing."
)
@_expires
@_wait
@with_fleet
def measure(
    *,
    device: str,
    digests: tuple[str, ...],
    deployment: str,
    budget: float,
    expires: str,
    wait: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Bring published bundles to DEVICE, by the beginning of their digests, and time them there, call by call in turn.

    None will serve.
    """

    def ask(client: Client) -> api.Ask:
        known = [one.sha256 for each in client.releases() for one in (*each.bundles, *each.alternates)]
        return api.MeasureHere(whole(digests, known), deployment, budget)

    _ask(device, ask, expires, wait=wait, place=place, as_json=as_json)


@command.command("clear-refused", epilog=examples("edgekit fleet device command clear-refused roof-1"))
@_device
@click.argument("digests", nargs=-1, metavar="[SHA256]...")
@_expires
@_wait
@with_fleet
def clear_refused(
    *,
    device: str,
    digests: tuple[str, ...],
    expires: str,
    wait: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Forget what DEVICE holds against these bundles, or all; what is ordered is tried once more."""
    for one in digests:
        if not _DIGEST.fullmatch(one):
            raise UsageError(
                f"{one[:80]!r} is no digest: 64 hexadecimal digits, as 'edgekit fleet releases' shows them"
            )
    _ask(device, ClearRefused(digests), expires, wait=wait, place=place, as_json=as_json)


@command.command(epilog=examples("edgekit fleet device command restart roof-1 --wait"))
@_device
@click.option("--deployment", default="", help="Only the worker of this model slot; no request is lost.")
@_expires
@_wait
@with_fleet
def restart(
    *, device: str, deployment: str, expires: str, wait: bool, place: str | None, as_json: bool
) -> None:
    """Start the agent anew in its process, with the words it was started with, or one worker of it."""
    _ask(device, Restart(deployment), expires, wait=wait, place=place, as_json=as_json)


@command.command(
    "log-level", epilog=examples("edgekit fleet device command log-level roof-1 debug --for 1800")
)
@_device
@click.argument("level", type=click.Choice(["debug", "info", "warning"]))
@click.option(
    "--for",
    "seconds",
    default=900.0,
    show_default=True,
    type=click.FloatRange(1, 86_400),
    help="Seconds until it logs as usual again.",
)
@_expires
@_wait
@with_fleet
def log_level(
    *,
    device: str,
    level: Level,
    seconds: float,
    expires: str,
    wait: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Let the agent of DEVICE log more, or less, for a while."""
    _ask(device, LogLevel(level, seconds), expires, wait=wait, place=place, as_json=as_json)


@click.command(
    epilog=examples(
        "edgekit fleet device commands roof-1", "edgekit fleet device commands roof-1 4f0c6c1e8a3b4b86 --json"
    )
)
@click.argument("device", shell_complete=completes("device"))
@click.argument("number", required=False, metavar="[ID]")
@with_fleet
def commands(*, device: str, number: str | None, place: str | None, as_json: bool) -> None:
    """What was asked of DEVICE, the newest first, and what came of it; or one of them, with its figures."""
    with connected(place) as client:
        if number:
            _show(client.command_of(device, number), as_json=as_json)
            return
        found = list(client.commands(device))
    if as_json:
        render.show_json(found)
    else:
        render.show(command_views.listed(found))


def whole(given: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """The whole digests that begin so. Raises: UsageError for what is none; NotFoundError, or for several, ConflictError."""
    return tuple(_whole(one, known) for one in given)


def _whole(given: str, known: Collection[str]) -> str:
    if _DIGEST.fullmatch(given):
        return given
    if not _BEGINNING.fullmatch(given):
        raise UsageError(
            f"{given[:80]!r} is no digest: at least {LEAST_DIGITS} of its 64 hexadecimal digits, as"
            " 'edgekit fleet releases' shows them"
        )
    found = sorted(one for one in known if one.startswith(given))
    if not found:
        raise NotFoundError(f"no bundle whose sha256 begins with {given} is published here")
    if len(found) > 1:
        raise ConflictError(f"{len(found)} bundles begin with {given}; write more of the digest")
    return found[0]


def _ask(
    device: str,
    ask: api.Ask | Callable[[Client], api.Ask],
    expires: str,
    *,
    wait: bool,
    place: str | None,
    as_json: bool,
) -> None:
    with connected(place) as client:
        action = ask(client) if callable(ask) else ask
        made = client.command(device, api.NewCommand(action, expires))
        if wait:
            made = waited_for(client, made)
    is_missed = wait and made.state != "done"
    _show(made, as_json=as_json, is_said=is_missed)
    if is_missed:
        raise NotDoneError(
            f"{device}: {made.kind} {made.id} {made.state}: {made.reason or 'no reason given'}"
        )
    if not wait and not as_json:
        render.say(f"follow it with: edgekit fleet device commands {device} {made.id}")


def waited_for(client: Client, command: api.CommandView) -> api.CommandView:
    """The command once it is over: the fleet says so at the latest a day after it expired."""
    while not command.is_over:
        time.sleep(_LOOK_S)
        command = client.command_of(command.device, command.id)
    return command


def _show(made: api.CommandView, *, as_json: bool, is_said: bool = False) -> None:
    """`is_said`: how it ended is told as an error."""
    if as_json:
        render.show_json(made)
        return
    if not is_said:
        reason = f": {made.reason}" if made.reason else ""
        render.say(f"{made.device}: {made.kind} {made.id} {made.state}{reason}")
    if made.payload is not None:
        render.show(command_views.figures(made.payload))


COMMANDS = (command, commands)
