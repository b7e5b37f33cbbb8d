"""The `edgekit` command: a thin skin that loads a package only when one of its commands is called."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import click

from edgekit import __version__, analytics, interrupt, safe
from edgekit.cli import trouble
from edgekit.distribution import extra
from edgekit.errors import EdgeKitError
from edgekit.quiet import hush_the_end

# Command → where its click object lives, and the line that `--help` shows without importing it.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "build": (
        "converters.commands.build:build",
        "Turn a trained model into bundles, one per hardware profile.",
    ),
    "report": ("converters.commands.report:report", "Draw report.html from evidence files."),
    "cache": ("converters.commands.cache:cache", "Show or clear what builds keep."),
    "inspect": ("edgekit.cli.bundles:inspect", "Show what is in a bundle."),
    "verify": ("edgekit.cli.bundles:verify", "Run a bundle's self-test on this machine."),
    "emulator": ("converters.commands.emulator:emulator", "Set up, show and remove the ARM emulator."),
    "run": ("edgekit.cli.bundles:run", "Run a bundle on input files."),
    "explain": ("edgekit.cli.explain:explain", "Say what a bundle's answer rests on."),
    "diff": ("edgekit.cli.bundles:diff", "Compare two bundles."),
    "profiles": ("edgekit.cli.profiles:profiles", "List, show and detect hardware profiles."),
    "agent": ("device_agent.cli:agent", "Run the agent on a device."),
    "fleet": ("fleet.client.cli:fleet", "Run the fleet service; enrol, publish, roll out."),
    "keys": ("fleet.client.keys_cli:main", "Keep the publisher's offline keys."),
    "completion": ("edgekit.cli.completion:completion", "Print what a shell completes by."),
}
# What a package on the right needs, for the message when it is not installed.
EXTRAS: Mapping[str, str] = {
    "converters": "build",
    "device_agent": "agent",
    "fleet": "fleet",
    "edgekit": "agent",
}

# Set by a shell that asks what could follow.
_COMPLETION = "_EDGEKIT_COMPLETE"


class LazyGroup(click.Group):
    """A group whose commands are imported on use; `--help` reads their summaries from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"'edgekit {cmd_name}' needs {error.name}; "
                f"install it with: {extra(EXTRAS[module.partition('.')[0]])}"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgekit")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, *, debug: bool) -> None:
    """EdgeKit takes a trained model to a fleet of small computers and keeps it healthy there."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command; every error becomes one line and an exit code, Ctrl-C 130, SIGTERM 143. `--debug` shows tracebacks."""
    debug = "--debug" in sys.argv[1:]
    interrupt.install()
    analytics.switch_off()
    hush_the_end()
    _learn_to_complete()
    try:
        code = cli.main(standalone_mode=False, complete_var=_COMPLETION)
    except (KeyboardInterrupt, click.exceptions.Abort):
        _end_interrupted()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EdgeKitError as error:
        if interrupt.was_requested():
            _end_interrupted()
        if debug:
            raise
        # What a service, a device or a file is called stands in it.
        click.echo(f"edgekit: {safe.lines(str(error))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Who read the output is gone; Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # What native code made of a KeyboardInterrupt is no bug to show; anything else is.
        if interrupt.was_requested():
            _end_interrupted()
        if debug:
            raise
        _end_unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _learn_to_complete() -> None:
    """Only where a shell asks: it costs time that no other command has to pay."""
    if _COMPLETION in os.environ:
        importlib.import_module("edgekit.cli.completion")


def _end_unexpected(error: Exception) -> NoReturn:
    """What the system refused is the user's to mend; anything else is a bug of ours, said so in a line."""
    if isinstance(error, OSError):
        click.echo(f"edgekit: {trouble.sentence(error)}", err=True)
        sys.exit(trouble.exit_code(error))
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    click.echo(f"edgekit: a bug in EdgeKit, {told} (edgekit --debug shows where; please report it)", err=True)
    sys.exit(1)


def _end_interrupted() -> NoReturn:
    """Everything is unwound by now.

    No sys.exit: Python would still end by the signal itself if the interrupt had passed through an exec() of some
    library, and native thread pools may hang in their exit handlers.
    """
    click.echo(f"edgekit: {interrupt.word()}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(interrupt.exit_code())
