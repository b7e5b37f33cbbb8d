"""Options that every fleet command has, and the client they lead to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from fleet.client import config
from fleet.client.rest import Client

Command = Callable[..., Any]


def with_fleet(command: Command) -> Command:
    """Adds `--fleet` and `--json`."""
    command = click.option("--json", "as_json", is_flag=True, help="Answer as JSON on stdout.")(command)
    return click.option(
        "--fleet",
        "place",
        default=None,
        help="State folder or client.toml of the fleet [env: EDGEKIT_FLEET].",
    )(command)


@contextmanager
def connected(place: str | None) -> Iterator[Client]:
    client = Client(config.find(place))
    try:
        yield client
    finally:
        client.close()
