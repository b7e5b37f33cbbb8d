"""`edgekit fleet drift`: how far what devices meet has moved (docs/drift.md)."""

import click

from fleet import api
from fleet.client import render
from fleet.client.options import connected, examples, with_fleet

_SHOWN = 4
# By convention below the first nothing moved, from the second on it did.
_SLIGHT, _MOVED = 0.1, 0.2


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
    named = f"; {one.named} named drifted" if one.named else ""
    render.say(f"{one.release} ({one.profile}) on {one.devices} devices{named}")
    if not one.indices:
        render.say("    no device knows yet: it takes half an hour of traffic at one window a minute")
    for label, index in list(one.indices.items())[:_SHOWN]:
        state = "as it was" if index < _SLIGHT else "moved a little" if index < _MOVED else "moved"
        render.say(f"    {label}: {state} (index {index:.2f})")
    if len(one.indices) > _SHOWN:
        render.say(f"    and {len(one.indices) - _SHOWN} more, which moved less")
    for label, sure in one.confidence.items():
        render.say(f"    confidence of {label}: {sure.found:.0%}, {sure.expected:.0%} at build")
    if one.anomalies:
        told = ", ".join(f"{kind} {count}" for kind, count in one.anomalies.items())
        render.say(f"    inputs that did not fit, in a day: {told}")


COMMANDS = (drift,)
