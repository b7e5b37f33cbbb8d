"""`edgekit fleet drift`: how far what devices meet has moved (docs/drift.md)."""

import click

from fleet import api
from fleet.client import render
from fleet.client.options import connected, examples, with_fleet

_SHOWN = 4


@click.command(epilog=examples("edgekit fleet drift", "edgekit fleet drift --json"))
@with_fleet
def drift(*, place: str | None, as_json: bool) -> None:
    """How far inputs, outputs and confidence of each running bundle are from what it was judged on."""
    with connected(place) as client:
        found = client.drift()
    if as_json:
        render.show_json(found)
        return
    if not found.bundles:
        click.echo("no device runs anything that is published here")
    for one in found.bundles:
        _tell(one)


def _tell(one: api.DriftView) -> None:
    render.say(f"{one.release} ({one.profile}) on {one.devices} devices: {one.words}")
    for label, said in list(one.said.items())[:_SHOWN]:
        render.say(f"    {label}: {said.words}")
    if len(one.said) > _SHOWN:
        render.say(f"    and {len(one.said) - _SHOWN} more, which moved less")
    for label, sure in one.confidence.items():
        render.say(f"    confidence of {label}: {sure.found:.0%}, {sure.expected:.0%} at build")
    if one.anomalies:
        told = ", ".join(f"{kind} {count}" for kind, count in one.anomalies.items())
        render.say(f"    inputs that did not fit, in a day: {told}")


COMMANDS = (drift,)
