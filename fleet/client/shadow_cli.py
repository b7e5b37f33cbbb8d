"""`edgekit fleet shadow …`: a release that devices compare with what they serve."""

import click

from fleet import api
from fleet.client import render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet
from fleet.client.sheet import sheet


@click.group(
    epilog=examples(
        "edgekit fleet shadow start digits@2.0.0 --to 'site=lab' --share 10%",
        "edgekit fleet shadow status h1",
        "edgekit fleet shadow stop h1",
    )
)
def shadow() -> None:
    """A release that gets copies of live inputs, and answers nobody. See docs/shadow.md."""


@shadow.command(epilog=examples("edgekit fleet shadow start digits@2.0.0 --to 'site=lab' --share 10%"))
@click.argument("release", metavar="NAME@VERSION", shell_complete=completes("release"))
@click.option("--to", "selector", required=True, help="Which devices, as of a rollout.")
@click.option(
    "--share", default="10%", show_default=True, help="Of one processor's time, at most; up to 50%."
)
@click.option("--deployment", default="", help="The model slot; the name of the release unless set.")
@with_fleet
def start(
    *, release: str, selector: str, share: str, deployment: str, place: str | None, as_json: bool
) -> None:
    """Let devices that match now, and can run NAME@VERSION, compare it with what they serve."""
    wanted = api.NewShadow(release=release, to=selector, share=share, deployment=deployment)
    with connected(place) as client:
        found = client.start_shadow(wanted)
    _show(found, as_json=as_json)


@shadow.command(epilog=examples("edgekit fleet shadow status", "edgekit fleet shadow status h1"))
@click.argument("shadow_id", metavar="[ID]", required=False, shell_complete=completes("shadow"))
@with_fleet
def status(*, shadow_id: str | None, place: str | None, as_json: bool) -> None:
    """All shadows; with ID one, its agreement by output and by device."""
    with connected(place) as client:
        if shadow_id is not None:
            _show(client.shadow(shadow_id), as_json=as_json)
            return
        found = client.shadows()
    render.show_lines(found, _line, none="no shadows yet", as_json=as_json)


def _line(one: api.ShadowView) -> str:
    return f"{one.id}  {one.release} beside {one.deployment}  {one.status}  {one.words}"


@shadow.command(epilog=examples("edgekit fleet shadow stop h1"))
@click.argument("shadow_id", metavar="ID", shell_complete=completes("shadow"))
@with_fleet
def stop(*, shadow_id: str, place: str | None, as_json: bool) -> None:
    """End it; its devices delete it as soon as they hear."""
    with connected(place) as client:
        _show(client.stop_shadow(shadow_id), as_json=as_json)


def _show(found: api.ShadowView, *, as_json: bool) -> None:
    if as_json:
        render.show_json(found)
        return
    render.say(
        f"{found.id}: {found.release} beside {found.deployment} on {found.members} devices ({found.to}), at most"
        f" {found.share:.0%} of a processor: {found.status}{f' ({found.reason})' if found.reason else ''}"
    )
    render.say(found.words)
    if found.outputs:
        table = sheet("output", "agreement", "95 %", "devices", "inputs")
        for each in found.outputs:
            interval = f"{each.low:.1%} to {each.high:.1%}"
            table.add(each.output, f"{each.mean:.1%}", interval, str(each.devices), str(each.inputs))
        render.show(table)
    if found.latency_ratio is not None:
        render.say(f"its calls take {found.latency_ratio:.2f} x the served model's time on the same inputs")
    if found.devices:
        table = sheet("device", "state", "compared", "dropped", "failed", "agreement", "time", "reason")
        for one in found.devices:
            agreement = "-" if one.agreement is None else f"{one.agreement:.1%}"
            ratio = "-" if one.latency_ratio is None else f"{one.latency_ratio:.2f} x"
            counts = (str(one.compared), str(one.dropped), str(one.failed))
            table.add(one.device, one.state or "-", *counts, agreement, ratio, one.reason)
        render.show(table)


COMMANDS = (shadow,)
