"""`edgekit fleet describe`: the descriptions that tools read, of the REST interface and of the wire."""

import click

from fleet.client.options import connected, examples, with_fleet


@click.group(
    epilog=examples(
        "edgekit fleet describe api > openapi.json", "edgekit fleet describe wire > asyncapi.json"
    )
)
def describe() -> None:
    """Descriptions for tools: OpenAPI of the REST interface, AsyncAPI of the MQTT wire."""


@describe.command(epilog=examples("edgekit fleet describe api > openapi.json"))
@with_fleet
def api(*, place: str | None, as_json: bool) -> None:  # noqa: ARG001  # it is JSON in any case
    """The OpenAPI 3.1 document, as the service gives it."""
    with connected(place) as client:
        click.echo(client.openapi(), nl=False)


@describe.command(epilog=examples("edgekit fleet describe wire > asyncapi.json"))
def wire() -> None:
    """The AsyncAPI 3 document of what fleet and devices say to each other; it needs no service."""
    from edgekit.wire import asyncapi

    click.echo(asyncapi.text(), nl=False)


COMMANDS = (describe,)
