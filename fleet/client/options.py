"""Options that every fleet command has, and the client they lead to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from fleet.client import config
from fleet.client.rest import Client

FLEET_HELP = "State folder or client.toml of the fleet [env: EDGEKIT_FLEET]."
Command = Callable[..., Any]


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def with_fleet(command: Command) -> Command:
    """Adds `--fleet` (that of the group holds where it is not given) and `--json`."""
    command = click.option("--json", "as_json", is_flag=True, help="Answer as JSON on stdout.")(command)
    return click.option("--fleet", "place", default=None, callback=_of_the_group, help=FLEET_HELP)(command)


def _of_the_group(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return value or (ctx.obj or {}).get("fleet")


@contextmanager
def connected(place: str | None) -> Iterator[Client]:
    client = Client(config.find(place))
    try:
        yield client
    finally:
        client.close()
